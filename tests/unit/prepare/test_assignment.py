"""Two speakers in one row: found where both speak long enough, and one voice is never taken for
two."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from helpers.example import VOICES, clips_of, read_clip
from sheen.prepare.output import TRANSCRIPT_SCHEMA
from sheen.prepare.speakers import assignment
from sheen.prepare.speakers.assignment import TWO_SPEAKERS, assign_speakers
from sheen.prepare.speakers.embedding import COLUMNS, embed_parts
from sheen.scoring.packaged import RATE
from sheen.scoring.speaker_id import SpeakerEncoder

Row = dict[str, Any]
Parts = Mapping[str, NDArray[np.floating[Any]] | None]
ROW = {"audio": "one", "place": None, "channel": None, "seconds": 4.0}
ROW |= dict.fromkeys(("speaker", "reason", "detail", "checked"))


def point(voice: int, number: int) -> NDArray[np.float64]:
    """Two of one voice have a cosine of 0.9, two of others one of 0.5, about."""
    parts = [
        share * np.random.default_rng(seed).standard_normal(64) / 8
        for share, seed in ((0.7, 0), (0.63, (1, voice)), (0.33, (2, voice, number)))
    ]
    return np.asarray(np.sum(parts, axis=0) / np.linalg.norm(np.sum(parts, axis=0)))


def spoken(voices: tuple[int, ...], number: int) -> Parts:
    """The parts of a row in which these speak in turns, for as long each."""
    start, end = point(voices[0], 3 * number), point(voices[-1], 3 * number + 1)
    middle = np.sum([point(voice, 3 * number + 2) for voice in voices], axis=0)
    return dict(zip(COLUMNS, (middle / np.linalg.norm(middle), start, end), strict=True))


def assigned(
    given: Mapping[str, Parts], more: Row | None = None, number: int | None = None, **examples: Any
) -> dict[str, Row]:
    """The rows, by id. `more`: fields of the rows whose id begins with `two`."""
    rows = [
        {**ROW, "id": name, "start": 5.0 * place, **(more or {} if name.startswith("two") else {})}
        for place, name in enumerate(given)
    ]
    names = ["id", *COLUMNS]
    schema = pa.schema([TRANSCRIPT_SCHEMA.field(name) for name in names])
    stored = [{"id": name, **parts} for name, parts in given.items()]
    assign_speakers(rows, pa.Table.from_pylist(stored, schema=schema), number, examples)
    return {row["id"]: row for row in rows}


def dialogue(alone: int, together: int) -> dict[str, Parts]:
    """Rows of voices 0 and 1, more of 0, and rows in which 1 answers 0."""
    given = {
        f"one-{voice}-{place}": spoken((voice,), 100 * voice + place)
        for voice in (0, 1)
        for place in range(alone - voice)
    }
    return given | {f"two-{place}": spoken((0, 1), 300 + place) for place in range(together)}


@pytest.mark.parametrize("together", [1, 4, 12])
def test_a_row_with_two_speakers_is_rejected_and_is_no_example_of_either(together: int) -> None:
    """However many there are: their middles, which are alike, are not taken for a third speaker."""
    found = assigned(dialogue(6, together))
    for name, row in found.items():
        if name.startswith("two"):
            assert (row["reason"], row["detail"]) == (TWO_SPEAKERS, "speaker-1, then speaker-2")
            assert row["speaker"] is None
        else:
            assert row["reason"] is None
            assert row["speaker"] == f"speaker-{int(name[4]) + 1}"


def test_a_speaker_who_answers_in_the_middle_is_found() -> None:
    given = dialogue(6, 0)
    between = spoken((0,), 300)
    given["two"] = {**between, COLUMNS[0]: spoken((1,), 301)[COLUMNS[0]]}
    assert assigned(given)["two"]["detail"] in (
        "speaker-1, then speaker-2", "speaker-2, then speaker-1",
    )  # fmt: skip


def test_a_voice_that_is_not_asked_for_is_found_too() -> None:
    assert assigned(dialogue(6, 2), number=1)["two-0"]["detail"] == "speaker-1, then another voice"


@pytest.mark.parametrize("more", [{"channel": 0}, {"checked": "good"}])
def test_a_channel_and_a_row_that_was_checked_are_not_judged(more: Row) -> None:
    row = assigned(dialogue(6, 1), more)["two-0"]
    assert row["reason"] is None
    assert row["speaker"] is not None


def test_one_voice_is_never_two_speakers() -> None:
    # Only one is found: the other one's rows all have both.
    alone = {name: parts for name, parts in dialogue(6, 1).items() if "-1-" not in name}
    assert all(row["reason"] is None for row in assigned(alone).values())
    # A person with two microphones, whose names the examples give.
    ann = np.stack([point(0, 900), point(1, 901)])
    given = dialogue(6, 1)
    named = assigned(given, bob=np.stack([point(2, 1)]), ann=ann[:1])
    assert named["two-0"]["detail"] == "ann, then speaker-2"
    both = assignment.speaker_changes(
        np.stack([[given["two-0"][name] for name in COLUMNS]]).astype(np.float32), [ann]
    )
    assert both == [None]
    # Without the ends, as of a short row, or the middle.
    for name in COLUMNS:
        short = {**given, "two-0": {**given["two-0"], name: None}}
        assert assigned(short)["two-0"]["reason"] is None


@pytest.fixture(scope="module")
def recorded() -> dict[str, Parts]:
    """Rows of four voices, of two clips each, and rows in which another voice goes on."""
    encoder = SpeakerEncoder()
    clips = {
        voice: [read_clip(clip, RATE) for clip in clips_of(voice) if clip.seconds >= 2.2][:8]
        for voice in VOICES
    }
    given = {
        f"{voice}-{place}": embed_parts(encoder, np.concatenate(of[place : place + 2]), RATE)
        for voice, of in clips.items()
        for place in range(0, len(of) - 1, 2)
    }
    for place, voice in enumerate(VOICES):
        for other in (VOICES[place - 1], VOICES[place - 2]):
            both = np.concatenate([clips[voice][place - 2], clips[other][place + 1]])
            given[f"two {voice} {other}"] = embed_parts(encoder, both, RATE)
    return given


@pytest.mark.slow
@pytest.mark.parametrize("margin", [0.01, assignment.MARGIN, 0.08])
def test_recorded_voices_are_told_apart_with_room(
    recorded: dict[str, Parts], margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a third more than the margin every change is found, with next to none no other row."""
    monkeypatch.setattr(assignment, "MARGIN", margin)
    monkeypatch.setattr(assignment, "NEAR", assignment.NEAR if margin >= assignment.MARGIN else 0.0)
    found = assigned(recorded)
    two = {name for name, row in found.items() if row["reason"] == TWO_SPEAKERS}
    changed = {name for name in found if name.startswith("two")}
    assert two == changed
    speaker_of = {name[:-2]: row["speaker"] for name, row in found.items() if name not in changed}
    assert len(set(speaker_of.values())) == len(VOICES)
    for name in two if margin > 0.01 else ():  # a middle of both may be nearest to a third voice
        _, first, then = name.split()
        assert found[name]["detail"] == f"{speaker_of[first]}, then {speaker_of[then]}"
