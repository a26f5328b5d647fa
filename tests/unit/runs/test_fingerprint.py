"""What a run's record takes for the same run: content, never names."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sheen.runs.fingerprint import (
    RECORDINGS,
    SAMPLED,
    check_fingerprint,
    folder_digest,
    sample_digests,
)

FIELDS: dict[str, Any] = {"seed": 0, "voices": ["a", "b"], "judge": None, "normal": {"by": "x"}}


def test_the_first_is_recorded_and_the_same_resumes(tmp_path: Path) -> None:
    where = str(tmp_path / "out" / "run.json")
    assert check_fingerprint(where, FIELDS) == ""
    before = Path(where).read_bytes()
    assert check_fingerprint(where, FIELDS) == ""
    assert Path(where).read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"judge": "p", "voices": ["a"]}, "voices was ['a', 'b'], now ['a']; judge was None"),
        ({"new": 2}, "new was None, now 2"),
        ({"normal": {"by": "y"}}, "normal was {'by': 'x'}, now {'by': 'y'}"),
        ({"normal": None}, "normal was {'by': 'x'}, now None"),
    ],
)
def test_all_that_differs_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    where = str(tmp_path / "run.json")
    check_fingerprint(where, FIELDS)
    before = Path(where).read_bytes()
    assert message in check_fingerprint(where, FIELDS | changes, {"data"})
    assert Path(where).read_bytes() == before


def test_what_an_older_record_does_not_say_is_not_compared(tmp_path: Path) -> None:
    where = str(tmp_path / "run.json")
    check_fingerprint(where, FIELDS)
    assert check_fingerprint(where, FIELDS | {"data": "hash"}, {"data"}) == ""


@pytest.fixture
def clips(tmp_path: Path) -> list[str | None]:
    """More than are sampled, each with a content of its own."""
    for place in range(20):
        (tmp_path / str(place)).write_bytes(bytes([place]) * 99)
    return [str(tmp_path / str(place)) for place in range(20)]


def test_recordings_are_compared_where_both_are_known(
    clips: list[str | None], tmp_path: Path
) -> None:
    """Some of them missing, moved, or repaired are the same corpus; most of them others are not."""
    where = str(tmp_path / "run.json")
    assert len(sample_digests(clips)) == SAMPLED
    check_fingerprint(where, {RECORDINGS: sample_digests([None, *clips[1:]])})
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for clip in clips:
        shutil.copy(str(clip), moved)
    again = [str(moved / Path(str(clip)).name) for clip in clips]
    assert check_fingerprint(where, {RECORDINGS: sample_digests(again)}) == ""
    for place in range(8):  # 0, 2, 5 and 7 are compared, of which nobody knew 0
        (moved / str(place)).write_bytes(b"another")
    assert check_fingerprint(where, {RECORDINGS: sample_digests(again)}) == ""
    for place in range(8, 11):
        (moved / str(place)).write_bytes(b"another")
    assert check_fingerprint(where, {RECORDINGS: sample_digests(again)}) == (
        "4 of 7 recordings that were compared have another content"
    )


@pytest.mark.parametrize("count", [0, 1, 3, SAMPLED, 1000])
def test_few_recordings_are_all_sampled(count: int) -> None:
    places = [int(place) for place in sample_digests([None] * count)]
    assert len(places) == min(count, SAMPLED)
    assert all(0 <= place < count for place in places)


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    """Not even a pipe that nobody writes to, whose reader would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pointer").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    places = [str(tmp_path / name) for name in ("absent", "pipe", ".", "pointer")]
    assert set(sample_digests(places).values()) == {None}


def test_a_folder_is_its_files_wherever_it_lies(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "model", tmp_path / "b" / "other"
    first.mkdir(parents=True)
    (first / "config.json").write_text("{}")
    (first / "x.safetensors").write_bytes(b"w")
    (first / "codec").mkdir()
    shutil.copytree(first, second)
    (second / "notes.txt").write_text("not of the model")
    kinds = (".json", ".safetensors")
    assert folder_digest(str(first), kinds) == folder_digest(str(second), kinds)
    (second / "x.safetensors").write_bytes(b"v")
    assert folder_digest(str(first), kinds) != folder_digest(str(second), kinds)
