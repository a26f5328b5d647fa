"""Recordings as segments: found, split and drawn the same way whenever and by whomever."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from helpers.example import CODEC, DEMO, NEW_VOICE, VOICES, clips_of, flac
from sheen.audio.io import decode_audio
from sheen.codec.snac import open_codec
from sheen.data.corpus import AUDIO_SUFFIXES
from sheen.train.codec.data import Recordings, SegmentReader, find_recordings, sample_names
from sheen.train.codec.trainer import segment_samples

RATE = 8000
SAMPLES = 400


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> str:
    """A float WAV: what is read is what was written, bit by bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples.astype(np.float32), rate, format="WAV", subtype="FLOAT")
    return str(path)


def ramp(number: int, samples: int) -> np.ndarray:
    """Recording `number`: its integer part names it, its fraction is the position."""
    return number + np.arange(samples, dtype=np.float32) / 4096


def whose(segment: Tensor | np.ndarray) -> int:
    return int(segment[0])


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Ten recordings that can be told apart, each longer than a segment."""
    folder = tmp_path_factory.mktemp("recordings")
    return [
        write(folder / f"{number:02d}.wav", ramp(number, SAMPLES + 100 * number))
        for number in range(1, 11)
    ]


def reader(paths: list[str], **changes: Any) -> SegmentReader:
    arguments: dict[str, Any] = {
        "sample_rate": RATE,
        "samples": SAMPLES,
        "per_rank": 4,
        "rank": 0,
        "world": 1,
        "seed": 0,
    } | changes
    return SegmentReader(paths, **arguments)


def heard(paths: list[str], start: int, stop: int, **changes: Any) -> Tensor:
    """`[steps, per_rank, samples]`"""
    return torch.stack(list(reader(paths, **changes).batches(start, stop)))


# Segments


def test_a_resumed_run_hears_what_it_would_have_heard(recordings: list[str]) -> None:
    whole = heard(recordings, 0, 12)
    assert whole.shape == (12, 4, SAMPLES)
    assert whole.dtype == torch.float32
    for start in (1, 2, 5, 11):
        assert torch.equal(heard(recordings, start, 12), whole[start:])
    assert torch.equal(heard(recordings, 3, 4), whole[3:4]), "a single step"


def test_a_run_at_its_end_hears_nothing(recordings: list[str]) -> None:
    assert list(reader(recordings).batches(12, 12)) == []


def test_ranks_share_what_one_rank_would_hear(recordings: list[str]) -> None:
    one = heard(recordings, 0, 9, per_rank=6)
    two = [heard(recordings, 0, 9, per_rank=3, world=2, rank=rank) for rank in (0, 1)]
    assert torch.equal(torch.cat(two, dim=1), one)
    three = [heard(recordings, 4, 9, per_rank=2, world=3, rank=rank) for rank in (0, 1, 2)]
    assert torch.equal(torch.cat(three, dim=1), one[4:])


@pytest.mark.slow
def test_perturbed_segments_have_speeds_up_to_the_limit_and_resume_alike(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A tone of 400 Hz, whose zero crossings tell the speed."""
    tone = np.sin(2 * np.pi * 400 * np.arange(4 * RATE) / RATE)
    paths = [write(tmp_path_factory.mktemp("tone") / "tone.wav", tone)]
    perturbed = {"speed_perturbation": 0.5, "samples": RATE // 2}
    whole = heard(paths, 0, 16, **perturbed)
    inner = whole.flatten(0, 1)[:, 800:3200]  # the filter's edges aside
    speeds = (inner.sign().diff(dim=1) != 0).sum(dim=1) / 2 / (2400 / RATE) / 400
    assert ((speeds * 20).round() / 20 - speeds).abs().max() < 0.01, "multiples of a twentieth"
    assert speeds.min() >= 0.64
    assert speeds.max() <= 1.51
    assert speeds.min() < 0.75
    assert speeds.max() > 1.35
    assert torch.equal(heard(paths, 7, 16, **perturbed), whole[7:])


def test_every_recording_is_heard_once_in_an_epoch(recordings: list[str]) -> None:
    """Also where a step, or a rank's part of it, spans the border of two epochs."""
    names = [whose(segment) for segment in heard(recordings, 0, 25, per_rank=2).flatten(0, 1)]
    epochs = [names[first : first + 10] for first in range(0, 50, 10)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(1, 11))
    assert len({tuple(epoch) for epoch in epochs}) == 5, "each in another order"
    spanning = heard(recordings, 0, 15, per_rank=4).flatten(0, 1)
    assert Counter(whose(segment) for segment in spanning) == dict.fromkeys(range(1, 11), 6)
    many = heard(recordings[:3], 0, 2, per_rank=7).flatten(0, 1)
    assert Counter(whose(segment) for segment in many)[1] in (4, 5), "several epochs in a step"


def test_another_seed_hears_other_segments(recordings: list[str]) -> None:
    first, second = heard(recordings, 0, 5), heard(recordings, 0, 5, seed=1)
    assert not torch.equal(first, second)
    orders = [[whose(s) for s in run.flatten(0, 1)] for run in (first, second)]
    assert orders[0] != orders[1]
    alone = [heard(recordings[-1:], 0, 1, seed=seed) for seed in (0, 1)]
    assert not torch.equal(*alone), "cut elsewhere, too"


def test_a_long_recording_is_cut_inside_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", ramp(1, SAMPLES + 3))
    segments = heard([path], 0, 20).flatten(0, 1)
    starts = Counter(round(float(segment[0] - 1) * 4096) for segment in segments)
    assert set(starts) == {0, 1, 2, 3}, "the first and the last start too"
    for segment in segments:
        assert torch.equal(segment.diff(), torch.full((SAMPLES - 1,), 1 / 4096))


@pytest.mark.parametrize("samples", [1, SAMPLES - 1, SAMPLES])
def test_a_short_recording_is_padded_at_its_end(tmp_path: Path, samples: int) -> None:
    path = write(tmp_path / "short.wav", ramp(1, samples))
    for segment in heard([path], 0, 3).flatten(0, 1):
        assert torch.equal(segment[:samples], torch.from_numpy(ramp(1, samples)))
        assert (segment[samples:] == 0).all()


def test_segments_are_at_the_codecs_rate(tmp_path: Path) -> None:
    source = tmp_path / "clip.flac"
    source.write_bytes(flac(clips_of(VOICES[0])[0]))
    decoded = decode_audio(source.read_bytes(), 24000)
    (segment,) = heard([str(source)], 0, 1, sample_rate=24000, samples=6144, per_rank=1)[0]
    at = (torch.from_numpy(decoded).unfold(0, 6144, 1) == segment).all(dim=1)
    assert at.sum() >= 1


@pytest.fixture
def spoiled(recordings: list[str], tmp_path: Path) -> Iterator[list[str]]:
    """The ten, of which the second and third cannot be read, and an eleventh that is not there."""
    paths = list(recordings)
    for at, data in ((1, b""), (2, b"this is no audio at all, only a text with this name")):
        path = tmp_path / f"bad-{at}.wav"
        path.write_bytes(data)
        paths[at] = str(path)
    return [*paths, str(tmp_path / "absent.wav")]


def test_what_cannot_be_read_is_counted_and_replaced(spoiled: list[str]) -> None:
    source = reader(spoiled, per_rank=11)
    batches = torch.stack(list(source.batches(0, 3)))
    assert source.unreadable == {
        spoiled[1]: "empty",
        spoiled[2]: "unreadable",
        spoiled[10]: "missing",
    }
    for batch in batches:
        names = Counter(whose(segment) for segment in batch)
        assert set(names) <= {1, 4, 5, 6, 7, 8, 9, 10}
        assert sum(names.values()) == 11
        assert len(names) == 8, "the readable ones are heard as ever"
    assert source.read(spoiled[1]) is None
    # What stands in for them is drawn too: a resumed run hears it again.
    assert torch.equal(heard(spoiled, 2, 3, per_rank=11)[0], batches[2])


def test_a_repaired_recording_moves_no_other(spoiled: list[str], recordings: list[str]) -> None:
    broken = heard(spoiled, 0, 1, per_rank=11)[0]
    for at in (1, 2):
        shutil.copy(recordings[at], spoiled[at])
    mended = heard(spoiled, 0, 1, per_rank=11)[0]
    changed = [
        whose(new) for old, new in zip(broken, mended, strict=True) if not torch.equal(old, new)
    ]
    assert {2, 3} <= set(changed)
    assert len(changed) <= 3, "the third stood in for the absent one"


def test_data_that_cannot_be_read_at_all_ends_the_run(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"gone-{number}.wav") for number in range(3)]
    source = reader(paths, per_rank=1)
    with pytest.raises(ValueError, match=r"20 recordings in a row.*gone-\d\.wav: missing"):
        list(source.batches(0, 1))
    assert set(source.unreadable.values()) == {"missing"}


def test_a_folder_in_the_place_of_a_recording_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    source = reader([str(tmp_path / "folder.wav")])
    assert source.read(str(tmp_path / "folder.wav")) is None
    assert source.unreadable[str(tmp_path / "folder.wav")].startswith("unreadable")


def test_a_segment_is_whole_blocks() -> None:
    model, _ = open_codec(str(CODEC))
    assert segment_samples(1.0, model) == 24_576
    assert segment_samples(2048 / 24000, model) == 2048
    assert segment_samples(2049 / 24000, model) == 4096
    assert segment_samples(0.001, model) == 2048


# Recordings


def stems(paths: list[str]) -> list[str]:
    return [Path(path).stem for path in paths]


def everything(found: Recordings) -> set[str]:
    assert len(set(found.train + found.evaluation)) == len(found.train) + len(found.evaluation)
    assert found.summary["train_recordings"] == len(found.train)
    assert found.summary["eval_recordings"] == len(found.evaluation)
    assert found.summary["event"] == "data"
    return set(found.train + found.evaluation)


def test_any_folder_of_audio_is_data(tmp_path: Path) -> None:
    audio = {"a.wav", "b.FLAC", "deep/a.mp3", "deep/er/c.Opus", "with space/d e.ogg"}
    for name in [*audio, "notes.txt", "deep/cover.jpg", "wav"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_recordings(str(tmp_path), 2, 0)
    assert everything(found) == {str(tmp_path / name) for name in audio}
    assert found.summary["dropped"] == {}
    with_slash = find_recordings(f"{tmp_path}/", 2, 0)
    assert everything(with_slash) == everything(found)


def test_a_folder_is_data_under_its_uri_too(tmp_path: Path) -> None:
    for name in ("a.wav", "deep/b.wav", "deep/c.wav"):
        write(tmp_path / name, ramp(3, SAMPLES))
    found = find_recordings(tmp_path.as_uri(), 1, 0)
    by_path = find_recordings(str(tmp_path), 1, 0)
    assert stems(found.train) == stems(by_path.train)
    assert stems(found.evaluation) == stems(by_path.evaluation)
    assert whose(next(reader(found.train).batches(0, 1))[0]) == 3


def test_an_ljspeech_folder_needs_no_texts(tmp_path: Path) -> None:
    for name in ("one", "two", "three", "unlisted"):
        write(tmp_path / "wavs" / f"{name}.wav", ramp(1, SAMPLES))
    (tmp_path / "metadata.csv").write_text(
        "one|a text\ntwo|\nthree|  | |heart\nabsent|a text\ngone|\none|again\nwide|a|b|c|d\n"
    )
    found = find_recordings(str(tmp_path), 1, 0)
    assert everything(found) == {
        str(tmp_path / "wavs" / f"{name}.wav") for name in ("one", "two", "three")
    }
    assert found.summary["dropped"] == {"missing": 2, "duplicate id": 1, "malformed row": 1}


def test_the_examples_recordings_are_data() -> None:
    found = find_recordings(str(DEMO / f"{NEW_VOICE}.jsonl"), 16, 0)
    assert everything(found) == {str(clip.path) for clip in clips_of(NEW_VOICE)}
    assert len(found.evaluation) == 16
    assert found.summary["dropped"] == {}


def test_a_manifest_is_data(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"audio": "near.wav", "text": "one"},
        {"audio": "/far/away.wav", "text": ""},
        {"audio": "s3://bucket/there.flac", "text": "three", "speaker": "heart"},
        {"audio": "near.wav", "text": "the same again"},
        {"text": "no audio"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = find_recordings(str(path), 0, 0)
    assert set(found.train) == {
        str(tmp_path / "near.wav"),
        "/far/away.wav",
        "s3://bucket/there.flac",
    }
    assert len(found.train) == 3, "a recording of two rows is one recording"
    assert found.summary["dropped"] == {"malformed row": 1}


def test_without_evaluation_all_are_to_train_on(tmp_path: Path) -> None:
    write(tmp_path / "only.wav", ramp(1, SAMPLES))
    found = find_recordings(str(tmp_path), 0, 0)
    assert (len(found.train), found.evaluation) == (1, [])


def test_data_without_recordings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no audio")
    with pytest.raises(ValueError, match="no audio files") as caught:
        find_recordings(str(tmp_path), 0, 0)
    assert str(tmp_path) in str(caught.value)
    assert all(suffix in str(caught.value) for suffix in AUDIO_SUFFIXES)
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        find_recordings(str(tmp_path / "nowhere"), 0, 0)


@pytest.mark.parametrize("held_out", [3, 4, 16])
def test_nothing_left_to_train_on_is_refused(tmp_path: Path, held_out: int) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.wav", ramp(1, SAMPLES))
    with pytest.raises(ValueError, match=f"3 usable recordings, and --eval-recordings {held_out}"):
        find_recordings(str(tmp_path), held_out, 0)


def test_the_split_is_of_the_seed_and_the_names(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for number in range(30):
        write(here / f"{number % 3}" / f"{number:02d}.wav", ramp(1, 4))
    shutil.copytree(here, there)
    first = find_recordings(str(here), 5, 0)
    assert find_recordings(str(here), 5, 0) == first
    assert len(everything(first)) == 30
    assert len(first.evaluation) == 5
    moved = find_recordings(str(there), 5, 0)
    assert stems(moved.evaluation) == stems(first.evaluation)
    assert stems(moved.train) == stems(first.train)
    assert find_recordings(str(here), 5, 1).evaluation != first.evaluation


def test_recordings_of_one_name_have_samples_of_two() -> None:
    paths = ["/x/heart/001.wav", "/x/heart/002.wav", "/x/rms/001.flac", "s3://b/deep/003.ogg"]
    names = sample_names(paths)
    assert names[1] == "002"
    assert names[3] == "003"
    assert names[0].startswith("001")
    assert names[2].startswith("001")
    assert len(set(names)) == 4
