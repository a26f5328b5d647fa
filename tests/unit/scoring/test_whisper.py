"""faster-whisper as ASR: what it opens, clips independent of one another, and refusals."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample

from helpers.tiny_whisper import save_faster_whisper
from sheen.scoring.asr.pipeline import AsrPipeline
from sheen.scoring.asr.transcribers import check_transcriber, open_transcriber
from sheen.scoring.asr.whisper import NAMES, RATE, FasterWhisper, find_whisper

Waveform = NDArray[np.float32]


def noise(samples: int, seed: int = 0) -> Waveform:
    draws = np.random.default_rng(seed).standard_normal(samples)
    return (0.1 * draws).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained models: they transcribe noise as strings of letters, each clip as another one."""
    folder = tmp_path_factory.mktemp("whisper")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        save_faster_whisper(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def tiny(folders: Path) -> FasterWhisper:
    return FasterWhisper(str(folders / "tiny"))


def test_a_clip_is_transcribed_whatever_came_before(tiny: FasterWhisper) -> None:
    clips = [noise(length, seed=length) for length in (16000, 9000, 0, 23000)]
    texts = tiny.transcribe(clips, RATE)
    assert texts == [tiny.transcribe([clip], RATE)[0] for clip in clips]
    assert texts[::-1] == tiny.transcribe(clips[::-1], RATE)
    assert [bool(text) for text in texts] == [True, True, False, True]
    assert len(set(texts)) == len(clips)
    assert tiny.transcribe([], RATE) == []


def test_a_clip_is_resampled_to_its_rate(tiny: FasterWhisper) -> None:
    clip = noise(24000)
    at_16k = resample(torch.from_numpy(clip), 24000, RATE).numpy()
    text = tiny.transcribe([clip], 24000)
    assert text == tiny.transcribe([at_16k], RATE)
    assert text != tiny.transcribe([clip], RATE)


def test_a_ctranslate2_folder_is_opened_and_named_with_its_settings(folders: Path) -> None:
    folder = str(folders / "tiny")
    check_transcriber(folder)
    opened = open_transcriber(folder)
    assert isinstance(opened, FasterWhisper)
    for part in (folder, "faster-whisper 1.", "int8", "greedy", "language en"):
        assert part in opened.name


def test_a_transformers_folder_is_not_opened_as_faster_whisper(folders: Path) -> None:
    folder = str(folders / "tiny-transformers")
    assert find_whisper(folder) is None
    assert isinstance(open_transcriber(folder), AsrPipeline)


def test_the_names_are_those_of_the_library() -> None:
    from faster_whisper import available_models

    assert set(available_models()) == NAMES


def test_a_name_is_no_folder_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    assert find_whisper("base") == "base"
    with pytest.raises(ValueError, match=r"--asr: ASR model '\./base': the folder has no"):
        check_transcriber("./base")


def test_a_folder_without_a_model_is_named_with_what_was_expected(tmp_path: Path) -> None:
    for attempt in (open_transcriber, check_transcriber):
        with pytest.raises(ValueError, match="--asr: ") as raised:
            attempt(str(tmp_path))
        message = str(raised.value)
        assert "\n" not in message
        for part in (str(tmp_path), "model.bin", "tokenizer.json", "config.json"):
            assert part in message


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("tokenizer.json", r"without tokenizer\.json"),
        ("vocabulary.json", r"without vocabulary\.json or vocabulary\.txt"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused_before_weights_are_read(
    folders: Path, tmp_path: Path, missing: str, named: str
) -> None:
    folder = shutil.copytree(folders / "tiny", tmp_path / "model")
    (folder / missing).unlink()
    (folder / "model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=f"--asr: ASR model '{folder}': .*{named}"):
        check_transcriber(str(folder))


def test_torn_weights_are_one_line(folders: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folders / "tiny", tmp_path / "model")
    whole = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"--asr: ASR model '{folder}' on cpu: ") as raised:
        open_transcriber(str(folder))
    assert "\n" not in str(raised.value)


def test_a_language_that_it_does_not_know_is_named(folders: Path) -> None:
    """Before the weights are read, too: by the size of its vocabulary, or its name."""
    for attempt in (open_transcriber, check_transcriber):
        with pytest.raises(ValueError, match=r"does not know language 'klingon'; it knows .*en"):
            attempt(str(folders / "tiny"), language="klingon")
    for name, language in (("tiny.en", "de"), ("tiny", "klingon")):
        with pytest.raises(ValueError, match=f"--asr-language: .*'{name}' does not .*'{language}'"):
            check_transcriber(name, language)
    check_transcriber("tiny", "de")
    check_transcriber(str(folders / "tiny"), "en")


def test_words_that_are_known_get_times_that_rise_within_the_clip(tiny: FasterWhisper) -> None:
    clip = noise(20_000)
    words = ["four", "two,", "seven", "$5", "naïve", "你", "a"]
    times = tiny.align(clip, 20_000, words)
    assert len(times) == len(words)
    edges = [times[0][0], *(end for _, end in times)]
    assert edges == sorted(edges)
    assert 0 <= edges[0] <= edges[-1] <= 1.0
    assert [start for start, _ in times] == edges[:-1]
    assert times == tiny.align(clip, 20_000, words)
    assert tiny.align(clip, 20_000, []) == []
    assert tiny.align(clip[:0], 20_000, ["four"]) == [(0.0, 0.0)]


def test_what_cannot_be_aligned_is_refused(tiny: FasterWhisper) -> None:
    with pytest.raises(ValueError, match=r"31\.0 s; at most 30 s"):
        tiny.align(noise(31 * RATE), RATE, ["four"])
    with pytest.raises(ValueError, match="tokens"):
        tiny.align(noise(RATE), RATE, ["four"] * 200)


def test_a_stereo_clip_is_refused(tiny: FasterWhisper) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 100\), expected \[n\]"):
        tiny.transcribe([np.zeros((2, 100), np.float32)], RATE)


def test_words_have_times_and_a_clip_does_not_depend_on_its_neighbours(tiny: FasterWhisper) -> None:
    clips = [noise(length, seed=length) for length in (16000, 9000, 0, 23000)]
    found = tiny.transcribe_words(clips, RATE)
    assert found == [tiny.transcribe_words([clip], RATE)[0] for clip in clips]
    assert found[::-1] == tiny.transcribe_words(clips[::-1], RATE)
    for clip, transcript in zip(clips, found, strict=True):
        if not len(clip):
            assert (transcript.text, transcript.words) == ("", [])
            continue
        assert transcript.text
        assert transcript.words is not None
        assert all(0 <= word.start <= word.end for word in transcript.words)
        assert transcript.avg_logprob is not None
        assert transcript.avg_logprob < 0
        assert transcript.no_speech_prob is not None
        assert transcript.language == "en"
