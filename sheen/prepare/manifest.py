"""From what both stages found to the files of the output: the manifest, what is refused, a report.

Owns the rows' ids, their fields, and the account of every second of the input. Refuses nothing
itself: the reasons are `sheen.prepare.refusals`'.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sheen.prepare.config import PrepareConfig
from sheen.prepare.cutting import PAUSE, QUIETEST, CutSettings, Segment
from sheen.prepare.output import MANIFEST, REJECTED, REPORT, SEGMENT_SCHEMA, write_lines
from sheen.prepare.refusals import Fault, segment_fault, transcript_fault
from sheen.prepare.sources import Sources
from sheen.scoring.transcript import Transcript
from sheen.storage import files, uris

EXAMPLES = 3
Row = dict[str, Any]


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
        for found in source["segments"] or ():
            segment = Segment(**found)
            row = {"key": key, "id": segment_id(source["name"], segment), "audio": source["audio"]}
            fault = segment_fault(segment, settings)
            row |= found | _because(fault)
            (refused if fault else good).append(row)
            key += 1
    return Segments(pa.Table.from_pylist(good, schema=SEGMENT_SCHEMA), refused)


def segment_id(name: str, segment: Segment) -> str:
    """By the source and the place in it, in milliseconds: never by the number of a segment, so that
    a correction stays with its row."""
    return f"{name}-{round(segment.start * 1000):08d}-{round(segment.end * 1000):08d}"


def write_manifest(
    output: str,
    config: PrepareConfig,
    sources: Sources,
    cuts: pa.Table,
    segments: Segments,
    transcripts: pa.Table,
) -> Row:
    """Write MANIFEST, REJECTED and REPORT; returns the report."""
    kept: list[Row] = []
    refused = [_row(row) for row in segments.refused]
    unusable = [source for source in cuts.to_pylist() if source["reason"]]
    for source in unusable:
        whole = {"id": source["name"], "audio": source["audio"], "start": 0.0}
        whole |= {"end": source["seconds"], "reason": source["reason"], "detail": source["detail"]}
        refused.append(_row(whole))
    for row in transcripts.to_pylist():
        if row["reason"] is None:
            row |= _because(_fault(row, config))
        (refused if row["reason"] else kept).append(_row(row))
    write_lines(uris.join(output, MANIFEST), kept)
    write_lines(uris.join(output, REJECTED), refused)
    found = report(config, sources, cuts, kept, refused, transcripts)
    content = json.dumps(found, indent=2, ensure_ascii=False)
    files.write_bytes(uris.join(output, REPORT), content.encode() + b"\n")
    return found


def _because(fault: Fault | None) -> Row:
    reason, detail = fault or (None, None)
    return {"reason": reason, "detail": detail}


def _fault(row: Row, config: PrepareConfig) -> Fault | None:
    names = ("text", "avg_logprob", "no_speech_prob", "language", "language_probability")
    transcript = Transcript(**{name: row[name] for name in names})
    return transcript_fault(transcript, row["speech"], config.limits)


def _row(row: Row) -> Row:
    """As it stands in the manifest, the same fields for all; what is refused has two more."""
    text = row.get("text")
    shown = {
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
    }
    if row.get("reason"):
        shown |= {"reason": row["reason"], "detail": row["detail"]}
    return shown


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def report(
    config: PrepareConfig,
    sources: Sources,
    cuts: pa.Table,
    kept: list[Row],
    refused: list[Row],
    transcripts: pa.Table,
) -> Row:
    """Every second of the input: in a row, refused with a reason, or between segments."""
    recordings = cuts.to_pylist()
    rejects: dict[str, Row] = defaultdict(lambda: {"rows": 0, "hours": 0.0, "examples": []})
    for row in refused:
        entry = rejects[row["reason"]]
        entry["rows"] += 1
        entry["hours"] += (row["seconds"] or 0.0) / 3600
        if len(entry["examples"]) < EXAMPLES:
            entry["examples"].append(f"{row['id']}: {row['detail']}")
    hours_in = _hours(recordings)
    hours_out = _hours(kept)
    hours_refused = _hours(refused)
    ends = Counter(row[end] for row in kept for end in ("start_at", "end_at"))
    return {
        "config": config.model_dump(mode="json"),
        "asr": next(iter(transcripts["asr"].to_pylist()), None) if len(transcripts) else None,
        "recordings": len(recordings),
        "recordings_used": len({row["audio"] for row in kept}),
        "files_skipped": dict(sources.skipped),
        "hours_in": hours_in,
        "hours_out": hours_out,
        "hours_rejected": hours_refused,
        "hours_between": hours_in - hours_out - hours_refused,
        "rows_out": len(kept),
        "rows_rejected": len(refused),
        "rejects": dict(sorted(rejects.items(), key=lambda pair: -pair[1]["rows"])),
        "ends_in_pause": ends[PAUSE],
        "ends_in_speech": ends[QUIETEST],
        "incomplete": {
            source["audio"]: source["fault"] for source in recordings if source["fault"]
        },
    }


def _hours(rows: Iterable[Row]) -> float:
    return sum(row["seconds"] or 0.0 for row in rows) / 3600
