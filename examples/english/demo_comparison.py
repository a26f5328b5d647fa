"""Two evaluations of the same prompts, before training and after: a table, and clips to compare.

Owns reading what jobs/evaluate.py left in two folders, and which of its clips are looked at more
closely. Of what was said before and after it computes one thing anew: by how much each voice's WER
changed, sentence by sentence.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads

from sheen.scoring.speaker_id import ALL
from sheen.scoring.wer import ErrorDifference, wer_normalizer, word_error_difference

COMPARED = {
    "WER": "wer",
    "ended with EOS": "ended_with_eos",
    "speaker accuracy": "speaker_accuracy",
    "speaker similarity": "speaker_similarity",
    "DNSMOS OVRL": "dnsmos_ovrl",
}
"""What the table compares: its name there, and in an evaluation's results."""


@dataclass(frozen=True)
class SpokenClip:
    """A prompt as a checkpoint spoke it; `audio` is a file's content, `transcript` what the ASR
    heard."""

    id: str
    text: str
    voice: str
    audio: bytes
    transcript: str | None


def read_results(folder: Path) -> dict[str, Any]:
    """What an evaluation found, by voice, and its configuration."""
    content: dict[str, Any] = json.loads((folder / "evaluation.json").read_text("utf-8"))
    return content


def wer_changes(before: Path, after: Path) -> dict[str, ErrorDifference]:
    """How much higher each voice's WER is in the second evaluation's folder than in the first's.

    Paired by sentence: the interval is of the change, and narrower than those of the two rates
    suggest. Empty without an ASR. Raises ValueError when the transcripts are not of the same
    prompts.
    """
    config = read_results(before)["config"]
    normalize = wer_normalizer(config["asr"], config["asr_language"])
    first, second = (_transcripts(folder) for folder in (before, after))
    if others := first.keys() ^ second.keys():
        _, voice, text = min(others)
        raise ValueError(
            f"evaluations that cannot be compared: one of {before} and {after} has no transcript "
            f"of {text!r} by {voice}"
        )
    voices: dict[str, list[list[str]]] = {}
    for prompt, heard in first.items():
        _, voice, text = prompt
        voices.setdefault(voice, []).append([normalize(t) for t in (text, heard, second[prompt])])
    return {
        voice: word_error_difference(*zip(*rows, strict=True), seed=config["seed"])
        for voice, rows in voices.items()
    }


def _transcripts(folder: Path) -> dict[tuple[int, str, str], str]:
    """What the ASR heard, by a prompt's place in the list, voice and text."""
    columns = ["key", "speaker", "text", "transcript"]
    rows = pads.dataset(folder / "rows", format="parquet").to_table(columns=columns).to_pylist()
    return {
        (row["key"], row["speaker"], row["text"]): row["transcript"]
        for row in rows
        if row["transcript"] is not None
    }


def comparison(
    before: dict[str, Any], after: dict[str, Any], changes: Mapping[str, ErrorDifference]
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows: a voice each, first those that the base had never heard. `changes`: of
    `wer_changes`.

    A measure that neither has of any voice is left out. Raises ValueError when the two did not
    judge the same voices on as many clips each: their difference would then be one of prompts, too.
    """
    counts = [
        {voice: result["clips"] for voice, result in results["voices"].items()}
        for results in (before, after)
    ]
    if counts[0] != counts[1]:
        raise ValueError(f"evaluations that cannot be compared: {counts[0]} and {counts[1]} clips")
    new = before["config"]["untrained_voices"]
    voices = sorted(counts[0].keys() - {ALL}, key=lambda voice: (voice not in new, voice))
    measures = [
        (f"{name}, {when}", [cell(results["voices"][voice].get(field)) for voice in voices])
        for name, field in COMPARED.items()
        if any(
            results["voices"][voice].get(field) for results in (before, after) for voice in voices
        )
        for when, results in (("before", before), ("after", after))
    ]
    if changes:
        points = [change_cell(changes.get(voice)) for voice in voices]
        place = 1 + [name for name, _ in measures].index("WER, after")
        measures.insert(place, ("WER, change", points))
    names = [f"{voice} (new)" if voice in new else voice for voice in voices]
    columns = [("voice", names), *measures]
    return [name for name, _ in columns], list(zip(*(cells for _, cells in columns), strict=True))


def cell(result: dict[str, Any] | None) -> str:
    """A rate or a mean; where words were counted, with its interval."""
    if result is None:
        return ""
    if "units" in result:
        return f"{result['rate']:.1%} [{100 * result['low']:.1f}, {100 * result['high']:.1f}]"
    return f"{result['value']:.2f}" if "value" in result else f"{result['rate']:.0%}"


def change_cell(change: ErrorDifference | None) -> str:
    """Percentage points with their interval."""
    if change is None:
        return ""
    points = (100 * value for value in (change.difference, change.low, change.high))
    return "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*points)


def as_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table for a console: a line for each of its columns, as voices are few."""
    lines = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def choose_clips(folder: Path) -> list[SpokenClip]:
    """Two clips of each voice of an evaluation: from the middle of its list, and from near its end.

    A prompt that could not be spoken has none.
    """
    columns = ["key", "id", "text", "speaker", "transcript", "audio"]
    table = pads.dataset(folder / "rows", format="parquet").to_table(columns=columns)
    voices: dict[str, list[SpokenClip]] = {}
    for row in table.sort_by("key").to_pylist():
        if row["audio"] is None:
            continue
        audio = row["audio"]["bytes"]
        clip = SpokenClip(row["id"], row["text"], row["speaker"], audio, row["transcript"])
        voices.setdefault(clip.voice, []).append(clip)
    return [
        clips[place]
        for clips in voices.values()
        for place in sorted({len(clips) // 2, len(clips) * 7 // 8})
    ]
