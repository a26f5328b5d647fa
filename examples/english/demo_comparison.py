"""Two evaluations of the same prompts, before training and after: a table, and clips to compare.

Owns reading what jobs/evaluate.py left in two folders, and which of its clips are looked at more
closely. Measures nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads

from sheen.scoring.speaker_id import ALL

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


def comparison(
    before: dict[str, Any], after: dict[str, Any]
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows: a voice each, first those that the base had never heard.

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
