"""Hearing: real recordings as their words, each clip on its own, and what cannot be opened."""

import json
import shutil
from collections.abc import Callable, Sequence
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
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from helpers.example import NEW_VOICE, VOICE, VOICES, clips_of, read_clip
from helpers.recogniser import tiny_en
from helpers.tiny_whisper import save_whisper
from sheen.scoring.asr.pipeline import AsrPipeline, pipeline_kinds
from sheen.scoring.asr.transcribers import Transcriber, check_transcriber, open_transcriber
from sheen.scoring.wer import error_rate, normalize_english, normalize_words

RATE = 16000

Waveform = NDArray[np.float32]


def noise(samples: int, level: float = 0.1, seed: int = 0) -> Waveform:
    draws = np.random.default_rng(seed).standard_normal(samples)
    return (level * draws).astype(np.float32)


def english(texts: Sequence[str]) -> list[str]:
    return [normalize_english(text) for text in texts]


# Whisper tiny.en


@pytest.fixture(scope="module")
def asr() -> Transcriber:
    return open_transcriber(tiny_en())


@pytest.mark.slow
def test_recordings_are_heard_as_their_words(asr: Transcriber) -> None:
    """Of every voice of the example."""
    clips = [clip for voice in (*VOICES, NEW_VOICE) for clip in clips_of(voice)[8:10]]
    heard = asr.transcribe([read_clip(clip, RATE) for clip in clips], RATE)
    measured = error_rate("word", english([clip.text for clip in clips]), english(heard))
    assert measured.units >= 40
    assert measured.rate <= 0.1


@pytest.mark.slow
def test_shuffled_speech_is_not_understood(asr: Transcriber) -> None:
    """The same sounds in another order: what the ASR recognises is the words, not the voice."""
    rng = np.random.default_rng(0)
    clips = clips_of(VOICE)[8:10]
    shuffled = []
    for clip in clips:
        wave = read_clip(clip, RATE)
        pieces = np.array_split(wave, len(wave) // 800)
        shuffled.append(np.concatenate([pieces[i] for i in rng.permutation(len(pieces))]))
    heard = asr.transcribe(shuffled, RATE)
    assert error_rate("word", english([clip.text for clip in clips]), english(heard)).rate > 0.7


@pytest.mark.slow
def test_the_sample_rate_is_not_ignored(asr: Transcriber) -> None:
    clip = clips_of(VOICE)[8]
    (heard,) = asr.transcribe([read_clip(clip)], 24_000)
    assert error_rate("word", english([clip.text]), english([heard])).rate <= 0.2
    assert asr.transcribe([read_clip(clip)], RATE) != [heard]


@pytest.mark.slow
def test_hearing_prints_nothing(asr: Transcriber, capfd: pytest.CaptureFixture[str]) -> None:
    clips = [read_clip(clips_of(VOICE)[8], RATE), noise(RATE), np.zeros(0, np.float32)]
    assert asr.transcribe(clips, RATE)[2] == ""
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_words_are_found_where_they_are_said(asr: Transcriber) -> None:
    clip = read_clip(clips_of(VOICE)[8], RATE)
    later = np.concatenate([np.zeros(RATE, np.float32), clip])
    (found,), (moved,) = asr.transcribe_words([clip], RATE), asr.transcribe_words([later], RATE)
    assert found.text == asr.transcribe([clip], RATE)[0]
    assert found.words
    assert moved.words
    assert " ".join(word.text for word in found.words) == found.text
    assert normalize_words(moved.text) == normalize_words(found.text)
    for word, after in zip(found.words, moved.words, strict=True):
        assert 0 <= word.start < word.end <= len(clip) / RATE
        assert after.end - word.end == pytest.approx(1.0, abs=0.3)


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_language_is_set_where_there_are_several(models: Path) -> None:
    clip = noise(9000)
    whisper = str(models / "whisper")
    guessed, french = (open_transcriber(whisper, language=language) for language in (None, "fr"))
    assert guessed.transcribe([clip], RATE) != french.transcribe([clip], RATE)
    assert "fr" in french.name.removeprefix(str(models))
    (told,) = french.transcribe_words([clip], RATE)
    assert (told.language, told.language_probability) == ("fr", 1.0)
    # One that has none to choose from is taken to be of that language.
    ctc = open_transcriber(str(models / "ctc"), language="fr")
    assert ctc.transcribe_words([clip], RATE)[0].language == "fr"
    for attempt in (open_transcriber, check_transcriber):
        for model, language in (("english", "fr"), ("whisper", "de")):
            with pytest.raises(
                ValueError, match=f"--asr.*: .*{model}.*language '{language}'; it kn"
            ):
                attempt(str(models / model), language=language)
    english = open_transcriber(str(models / "english"), language=None)
    assert english.transcribe_words([clip], RATE)[0].language == "en"
    assert english.guess_language(clip, RATE) is None


def test_whisper_says_how_sure_it_is_and_of_which_language(models: Path) -> None:
    """Compared with the network's own probabilities of what it wrote."""
    asr = AsrPipeline(str(models / "whisper"))
    model = WhisperForConditionalGeneration.from_pretrained(models / "whisper")
    extractor = WhisperFeatureExtractor.from_pretrained(models / "whisper")
    clips = [noise(length, seed=length) for length in (9000, 16000, 23000)]
    found = asr.transcribe_words(clips, RATE)
    assert asr.transcribe_words(clips[::-1], RATE) == found[::-1]
    codes = model.generation_config.lang_to_id
    quiet = model.generation_config.no_timestamps_token_id - 1
    for clip, transcript in zip(clips, found, strict=True):
        features = extractor(clip, sampling_rate=RATE, return_tensors="pt").input_features
        (written,) = model.generate(features, return_segments=True, num_beams=1)["segments"]
        tokens = written[0]["result"][None]
        with torch.no_grad():
            logits = model(input_features=features, decoder_input_ids=tokens[:, :-1]).logits[0]
        chosen = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
        assert transcript.avg_logprob == pytest.approx(float(chosen[-12:].mean()), abs=1e-4)
        first = logits[0].softmax(-1)
        assert transcript.no_speech_prob == pytest.approx(float(first[quiet]), abs=1e-5)
        share = first[list(codes.values())]
        assert transcript.language == [*codes][int(share.argmax())].strip("<|>")
        assert transcript.language_probability == pytest.approx(
            float(share.max() / share.sum()), abs=1e-5
        )
        assert asr.guess_language(clip, RATE) == (
            transcript.language,
            pytest.approx(transcript.language_probability, abs=1e-5),
        )
    (long,) = asr.transcribe_words([noise(50_000)], RATE)
    assert long.text
    assert (long.no_speech_prob, long.language) == (None, None)
    assert asr.guess_language(clips[0][:0], RATE) is None


@pytest.mark.parametrize("where", ["{folder}/missing", "{folder}", "nobody/no-such-recogniser"])
def test_a_recogniser_that_is_not_there_is_named(tmp_path: Path, where: str) -> None:
    asr = where.format(folder=tmp_path)
    with pytest.raises(ValueError, match=f"--asr.*{asr}"):
        open_transcriber(asr)


@pytest.mark.parametrize("attempt", [open_transcriber, check_transcriber])
def test_a_model_that_does_not_hear_is_named(base: Path, attempt: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=f"--asr.*{base}"):
        attempt(str(base))


def test_no_model_that_the_pipeline_opens_is_refused() -> None:
    """Of all its families, which a version of transformers may add to."""
    from transformers.pipelines import SUPPORTED_TASKS

    families = SUPPORTED_TASKS["automatic-speech-recognition"]["pt"]
    kinds = [set(family._model_mapping._model_mapping) for family in families]
    assert pipeline_kinds() == set().union(*kinds)
    assert {"whisper", "wav2vec2", "parakeet_tdt"} <= pipeline_kinds()


def test_an_unknown_device_is_named(models: Path) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        open_transcriber(str(models / "ctc"), device="nonsense")
