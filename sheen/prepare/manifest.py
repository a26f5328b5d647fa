"""From what both stages found to the rows of the output: the manifest, and what is refused.

Owns the rows' ids and fields. Every segment becomes one row, and so does a recording of which
nothing can be used. Refuses nothing itself: the reasons are `sheen.prepare.refusals`'.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sheen.prepare.cutting import CutSettings, Segment
from sheen.prepare.output import MANIFEST, REJECTED, SEGMENT_SCHEMA, write_lines
from sheen.prepare.refusals import (
    Fault,
    Limits,
    language_fault,
    languages_of,
    segment_fault,
    transcript_fault,
)
from sheen.scoring.transcript import Transcript
from sheen.storage import uris

Row = dict[str, Any]
LANGUAGE_CHECKS = 3
"""Segments of a recording, the longest, whose language is guessed where one is asked for."""


@dataclass(frozen=True)
class Segments:
    """`table`: SEGMENT_SCHEMA of those to transcribe; `refused`: those that are not worth it."""

    table: pa.Table
    refused: list[Row]


def plan_segments(cuts: pa.Table, settings: CutSettings) -> Segments:
    """The segments of all sources, their keys numbered through."""
    good: list[Row] = []
    refused: list[Row] = []
    key = 0
    for source in cuts.to_pylist():
        found = [Segment(**segment) for segment in source["segments"] or ()]
        longest = sorted(found, key=lambda segment: -segment.speech)[:LANGUAGE_CHECKS]
        for segment in found:
            row = {"key": key, "id": segment_id(source["name"], segment), "audio": source["audio"]}
            fault = segment_fault(segment, settings)
            row |= vars(segment) | _because(fault) | {"check_language": segment in longest}
            (refused if fault else good).append(row)
            key += 1
    return Segments(pa.Table.from_pylist(good, schema=SEGMENT_SCHEMA), refused)


def segment_id(name: str, segment: Segment) -> str:
    """By the source and the place in it, in milliseconds: never by the number of a segment, so that
    a correction stays with its row."""
    return f"{name}-{round(segment.start * 1000):08d}-{round(segment.end * 1000):08d}"


def judge_rows(
    cuts: pa.Table,
    segments: Segments,
    transcripts: pa.Table,
    limits: Limits,
    language: str | None,
) -> list[Row]:
    """A row for every segment, in the order of the sources; `reason` is None where it is kept."""
    rows: dict[str, list[Row]] = {source["audio"]: [] for source in cuts.to_pylist()}
    for row in segments.refused:
        rows[row["audio"]].append(_row(row))
    heard = transcripts.to_pylist()
    languages = languages_of(
        (row["audio"], row["heard_language"], row["heard_probability"], row["speech"])
        for row in heard
        if row["heard_language"] is not None
    )
    for row in heard:
        if row["reason"] is None:
            of_recording = languages.get(row["audio"])
            fault = language_fault(row["language"], of_recording, language)
            row |= _because(fault or _fault(row, limits))
        rows[row["audio"]].append(_row(row))
    for source in cuts.to_pylist():
        if source["reason"]:
            whole = {"id": source["name"], "audio": source["audio"], "start": 0.0}
            whole |= {"end": source["seconds"], "reason": source["reason"]}
            rows[source["audio"]].append(_row(whole | {"detail": source["detail"]}))
    return [row for group in rows.values() for row in sorted(group, key=lambda row: row["start"])]


def write_manifest(output: str, rows: list[Row]) -> None:
    """Write MANIFEST and REJECTED."""
    kept = [row for row in rows if row["reason"] is None]
    shown = [{k: row[k] for k in row if k not in ("reason", "detail")} for row in kept]
    write_lines(uris.join(output, MANIFEST), shown)
    write_lines(uris.join(output, REJECTED), [row for row in rows if row["reason"] is not None])


def _because(fault: Fault | None) -> Row:
    reason, detail = fault or (None, None)
    return {"reason": reason, "detail": detail}


def _fault(row: Row, limits: Limits) -> Fault | None:
    names = ("text", "avg_logprob", "no_speech_prob", "language", "language_probability")
    if row["cut_word"] is not None:
        return "cut within a word", f"the ASR hears {row['cut_word']!r} on both sides of the cut"
    transcript = Transcript(**{name: row[name] for name in names})
    return transcript_fault(transcript, row["speech"], limits)


def _row(row: Row) -> Row:
    """As it stands in the manifest, the same fields for all."""
    text = row.get("text")
    return {
        "id": row["id"],
        "audio": row["audio"],
        "start": row["start"],
        "end": row["end"],
        "text": text,
        "speaker": None,
        "language": row.get("language"),
        "seconds": None if row["end"] is None else round(row["end"] - row["start"], 3),
        "speech_seconds": row.get("speech"),
        "level_db": row.get("level_db"),
        "start_at": row.get("start_at"),
        "end_at": row.get("end_at"),
        "avg_logprob": _rounded(row.get("avg_logprob")),
        "no_speech_prob": _rounded(row.get("no_speech_prob")),
        "compression_ratio": None if text is None else _rounded(Transcript(text).compression_ratio),
        "unsure_words": _unsure(row.get("words")),
        "checked": None,
        "reason": row.get("reason"),
        "detail": row.get("detail"),
    }


UNSURE = 0.4
"""A word of a lower probability is shown to who checks the row."""


def _unsure(words: list[Row] | None) -> list[str] | None:
    if words is None or any(word["probability"] is None for word in words):
        return None
    return [word["text"] for word in words if word["probability"] < UNSURE]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
