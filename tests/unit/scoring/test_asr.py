"""Hearing: real recordings as their words, each clip on its own, and what cannot be opened."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample
from transformers import (
    GenerationConfig,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from helpers.example import DIGITS
from helpers.spoken_digits import VOICES, read_digits, rows_of
from helpers.tiny_whisper import save_whisper
from sheen.scoring.asr import AsrPipeline, Pocketsphinx, open_transcriber
from sheen.scoring.wer import error_rate

GRAMMAR = DIGITS / "digits.gram"
RATE = 16000
TEXTS = {name: text for voice in VOICES for name, text, *_ in rows_of(voice)}
RMS = [f"rms-{number:04d}" for number in range(1, 16)]

Waveform = NDArray[np.float32]


def recording(name: str, sample_rate: int = RATE) -> Waveform:
    return read_digits(name, sample_rate)


def noise(samples: int, level: float = 0.1, seed: int = 0) -> Waveform:
    draws = np.random.default_rng(seed).standard_normal(samples)
    return (level * draws).astype(np.float32)


@pytest.fixture(scope="module")
def asr() -> Pocketsphinx:
    return Pocketsphinx(GRAMMAR)


# pocketsphinx


def test_recordings_are_heard_as_their_words(asr: Pocketsphinx) -> None:
    heard = asr.transcribe([recording(name) for name in RMS], RATE)
    measured = error_rate("word", [TEXTS[name] for name in RMS], heard)
    assert measured.units >= 50
    assert measured.rate <= 0.05


@pytest.mark.parametrize("voice", VOICES)
def test_every_voice_of_the_example_is_understood(asr: Pocketsphinx, voice: str) -> None:
    names = [f"{voice}-{number:04d}" for number in range(1, 7)]
    heard = asr.transcribe([recording(name) for name in names], RATE)
    assert error_rate("word", [TEXTS[name] for name in names], heard).rate <= 0.1


def test_shuffled_speech_is_not_understood(asr: Pocketsphinx) -> None:
    """The same sounds in another order: what the ASR recognises is the words, not the voice."""
    rng = np.random.default_rng(0)
    shuffled = []
    for name in RMS:
        pieces = np.array_split(recording(name), len(recording(name)) // 800)
        shuffled.append(np.concatenate([pieces[i] for i in rng.permutation(len(pieces))]))
    heard = asr.transcribe(shuffled, RATE)
    assert error_rate("word", [TEXTS[name] for name in RMS], heard).rate > 0.7


def test_a_clip_is_heard_whatever_was_heard_before(asr: Pocketsphinx) -> None:
    # After any of the others, an ear that keeps its estimate of the noise hears awb-0052 otherwise.
    names = ["awb-0052", "slt-0001", "rms-0001", "slt-0052", "awb-0051", "kal16-0001"]
    clips = [recording(name) for name in names]
    alone = [Pocketsphinx(GRAMMAR).transcribe([clip], RATE)[0] for clip in clips]
    assert asr.transcribe(clips, RATE) == alone
    assert asr.transcribe(clips[::-1], RATE)[::-1] == alone
    for other in (*clips[1:], noise(RATE, 0.3)):
        assert asr.transcribe([other, clips[0]], RATE)[1] == alone[0]


def test_silence_around_a_clip_changes_nothing(asr: Pocketsphinx) -> None:
    clips = [recording(name) for name in RMS[:6]]
    padded = [np.pad(clip, 3000) for clip in clips]
    assert asr.transcribe(padded, RATE) == asr.transcribe(clips, RATE)


def test_the_sample_rate_does_not_matter(asr: Pocketsphinx) -> None:
    names = [*RMS[:4], "slt-0001", "awb-0001", "kal16-0001"]
    at_24k = asr.transcribe([recording(name, 24000) for name in names], 24000)
    assert at_24k == asr.transcribe([recording(name) for name in names], RATE)
    # The rate is not merely ignored.
    assert at_24k != asr.transcribe([recording(name, 24000) for name in names], RATE)


def test_where_nothing_is_said_nothing_is_heard(asr: Pocketsphinx) -> None:
    silence = np.zeros(RATE, np.float32)
    clips = [silence[:0], silence[:1], silence, recording("rms-0001")]
    for rate in (RATE, 24000):
        heard = asr.transcribe(clips[:3], rate)
        assert heard == ["", "", ""]
    assert asr.transcribe(clips, RATE)[3] == TEXTS["rms-0001"]
    assert asr.transcribe([], RATE) == []


def test_a_grammar_is_all_that_can_be_heard(tmp_path: Path) -> None:
    grammar = tmp_path / "two.gram"
    grammar.write_text("#JSGF V1.0;\ngrammar two;\npublic <two> = (nine | two)+;\n", "utf-8")
    heard = Pocketsphinx(grammar).transcribe([recording(name) for name in RMS[:5]], RATE)
    assert set(" ".join(heard).split()) == {"nine", "two"}


@pytest.mark.slow
def test_without_a_grammar_the_language_model_hears() -> None:
    names = RMS[:3]
    asr = Pocketsphinx()
    heard = asr.transcribe([recording(name) for name in names], RATE)
    assert error_rate("word", [TEXTS[name] for name in names], heard).rate <= 0.4
    assert "language model" in asr.name


def test_the_name_tells_grammars_apart(asr: Pocketsphinx, tmp_path: Path) -> None:
    other = tmp_path / GRAMMAR.name
    other.write_bytes(GRAMMAR.read_bytes().replace(b"zero | ", b""))
    assert "pocketsphinx 5." in asr.name
    assert GRAMMAR.name in asr.name
    assert Pocketsphinx(other).name != asr.name
    other.write_bytes(GRAMMAR.read_bytes())
    assert Pocketsphinx(other).name == asr.name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zero one two",
        "#JSGF V1.0;\ngrammar g;\n<private> = one;\n",
        "#JSGF V1.0;\ngrammar g;\npublic <g> = one | blorptwo;\n",
    ],
)
def test_a_wrong_grammar_is_named(tmp_path: Path, text: str) -> None:
    grammar = tmp_path / "wrong.gram"
    grammar.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"--grammar.*wrong\.gram"):
        open_transcriber("pocketsphinx", str(grammar))


def test_the_reason_against_a_grammar_is_on_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    grammar = tmp_path / "wrong.gram"
    grammar.write_text("#JSGF V1.0;\ngrammar g;\npublic <g> = one | blorptwo;\n", "utf-8")
    with pytest.raises(ValueError, match=r"wrong\.gram"):
        Pocketsphinx(grammar)
    assert "blorptwo" in capfd.readouterr().err


def test_hearing_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    clips = [recording("rms-0001"), noise(RATE), np.zeros(0, np.float32)]
    Pocketsphinx(GRAMMAR).transcribe(clips, RATE)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("what", ["missing.gram", ""])
def test_a_grammar_that_is_no_file_is_named(tmp_path: Path, what: str) -> None:
    with pytest.raises(ValueError, match=str(tmp_path / what)):
        open_transcriber("pocketsphinx", str(tmp_path / what))


def test_a_stereo_clip_is_refused(asr: Pocketsphinx) -> None:
    with pytest.raises(ValueError, match=r"waveform 1 has shape \(2, 100\)"):
        asr.transcribe([np.zeros(100, np.float32), np.zeros((2, 100), np.float32)], RATE)


# Recognisers of transformers: tiny, untrained, saved and opened like any other.


def save_ctc(folder: Path) -> None:
    folder.mkdir()
    characters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {character: index for index, character in enumerate(characters)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        initializer_range=1.0,
        pad_token_id=0,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    Wav2Vec2Processor(
        Wav2Vec2FeatureExtractor(sampling_rate=RATE), Wav2Vec2CTCTokenizer(folder / "vocab.json")
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recognisers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_ctc(folder / "ctc")
        save_whisper(folder / "whisper")
        save_whisper(folder / "english", multilingual=False)
    return folder


@pytest.mark.parametrize("model", ["ctc", "whisper"])
def test_batched_equals_single(models: Path, model: str) -> None:
    """The last clip is longer than Whisper's window, and one is empty."""
    asr = AsrPipeline(str(models / model), batch_size=3)
    lengths = (16000, 9000, 0, 23000, 4000, 50000)
    clips = [noise(length, seed=length) for length in lengths]
    heard = asr.transcribe(clips, RATE)
    assert [type(text) for text in heard] == [str] * len(clips)
    assert heard == [asr.transcribe([clip], RATE)[0] for clip in clips]
    assert heard[::-1] == asr.transcribe(clips[::-1], RATE)
    assert [bool(text) for text in heard] == [length > 0 for length in lengths]
    assert len(set(heard)) == len(clips)


@pytest.mark.parametrize("model", ["ctc", "whisper"])
def test_words_have_times_in_order_within_the_clip(
    models: Path, model: str, tmp_path: Path
) -> None:
    """Of a Whisper that knows which heads of its attention follow the speech, and of CTC. Random
    models' words are noise; those of CTC stand where their letters do."""
    folder = tmp_path / model
    shutil.copytree(models / model, folder)
    if model == "whisper":
        assert AsrPipeline(str(folder)).transcribe_words([noise(9000)], RATE)[0].words is None
        config = GenerationConfig.from_pretrained(folder)
        config.alignment_heads = [[0, 0], [0, 1]]
        config.save_pretrained(folder)
    asr = AsrPipeline(str(folder))
    clips = [noise(length, seed=length) for length in (9000, 16000, 0, 23000)]
    found = asr.transcribe_words(clips, RATE)
    assert found == [asr.transcribe_words([clip], RATE)[0] for clip in clips]
    told = 0
    for transcript, clip in zip(found, clips, strict=True):
        if transcript.words is None:
            continue
        told += len(transcript.words)
        assert "".join(word.text for word in transcript.words) == "".join(transcript.text.split())
        times = [time for word in transcript.words for time in (word.start, word.end)]
        assert all(0 <= time <= len(clip) / RATE for time in times)
        assert all(word.start <= word.end for word in transcript.words)
        starts = [word.start for word in transcript.words]
        assert starts == sorted(starts)
    assert told
    if model == "ctc":
        assert [each.text for each in found] == asr.transcribe(clips, RATE)


@pytest.mark.parametrize("model", ["ctc", "whisper"])
def test_recognisers_get_their_own_sample_rate(models: Path, model: str) -> None:
    asr = open_transcriber(str(models / model))
    assert str(models / model) in asr.name
    clip = noise(24000)
    at_16k = resample(torch.from_numpy(clip), 24000, 16000).numpy()
    heard = asr.transcribe([clip], 24000)
    assert heard == asr.transcribe([at_16k], 16000)
    assert heard != asr.transcribe([clip], 16000)


def test_a_language_is_for_multilingual_whisper(models: Path) -> None:
    clip = noise(9000)
    guessed, french = (
        AsrPipeline(str(models / "whisper"), language=language) for language in (None, "fr")
    )
    assert guessed.transcribe([clip], RATE) != french.transcribe([clip], RATE)
    assert "fr" in french.name.removeprefix(str(models))
    for model in ("ctc", "english"):
        with pytest.raises(ValueError, match=f"language 'fr'.*{model}"):
            AsrPipeline(str(models / model), language="fr")


@pytest.mark.parametrize("where", ["{folder}/missing", "{folder}", "nobody/no-such-recogniser"])
def test_a_recogniser_that_is_not_there_is_named(tmp_path: Path, where: str) -> None:
    asr = where.format(folder=tmp_path)
    with pytest.raises(ValueError, match=f"--asr.*{asr}"):
        open_transcriber(asr)


def test_a_model_that_does_not_hear_is_named(base: Path) -> None:
    with pytest.raises(ValueError, match=f"--asr.*{base}"):
        open_transcriber(str(base))


def test_a_grammar_is_refused_with_a_recogniser(models: Path) -> None:
    with pytest.raises(ValueError, match=r"--grammar .*digits\.gram"):
        open_transcriber(str(models / "ctc"), grammar=str(GRAMMAR))


def test_an_unknown_device_is_named(models: Path) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        open_transcriber(str(models / "ctc"), device="nonsense")


def test_words_are_found_where_they_are_said(asr: Pocketsphinx) -> None:
    clip = recording(RMS[0])
    later = np.concatenate([np.zeros(RATE, np.float32), clip])
    (found,), (moved,) = asr.transcribe_words([clip], RATE), asr.transcribe_words([later], RATE)
    assert found.text == asr.transcribe([clip], RATE)[0]
    assert found.words
    assert moved.words
    assert " ".join(word.text for word in found.words) == found.text
    assert [word.text for word in moved.words] == [word.text for word in found.words]
    for word, after in zip(found.words, moved.words, strict=True):
        assert 0 <= word.start < word.end <= len(clip) / RATE
        assert after.start - word.start == pytest.approx(1.0, abs=0.1)
