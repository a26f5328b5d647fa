"""From what both stages found to the rows of the output: the manifest, and what is refused.

Owns the rows' ids and fields, and the text of each: that of the input, where it has one, else what
the ASR heard. Every segment becomes one row, and so does a recording of which nothing can be used.
Refuses nothing itself: the reasons are `sheen.prepare.refusals`', `texts`' and `quality`'s.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa

from sheen.data.parts import CHANNEL_KEY, recording_of
from sheen.data.schema import PLACE_KEY
from sheen.prepare.alignment import texts_of_segments
from sheen.prepare.cutting import CutSettings, Segment
from sheen.prepare.output import MANIFEST, REJECTED, SEGMENT_SCHEMA, write_lines
from sheen.prepare.quality import Quality, QualityLimits, quality_fault
from sheen.prepare.refusals import (
    Fault,
    Limits,
    language_fault,
    languages_of,
    segment_fault,
    transcript_fault,
)
from sheen.prepare.texts import REASON, TextLimits, check_text
from sheen.scoring.transcript import Transcript
from sheen.storage import uris

Row = dict[str, Any]
LANGUAGE_CHECKS = 3
"""Segments of a recording, the longest, whose language is guessed where one is asked for."""
UNSURE = 0.4
"""A word of a lower probability is shown to who checks the row."""
NOT_IN_TEXT = "not in the text"


@dataclass(frozen=True)
class Segments:
    """`table`: SEGMENT_SCHEMA of those to transcribe; `refused`: those that are not worth it."""

    table: pa.Table
    refused: list[Row]


@dataclass(frozen=True)
class Judgement:
    """What rows are judged by. `language`: the one that was asked for. `normalizer`: of both sides
    of a comparison, that of `scoring.wer.wer_normalizer`."""

    limits: Limits
    quality: QualityLimits
    texts: TextLimits
    language: str | None
    normalizer: Callable[[str], str]


def plan_segments(sources: Sequence[Row], settings: CutSettings) -> Segments:
    """The segments of all sources, rows of CUT_SCHEMA, their keys numbered through."""
    good: list[Row] = []
    refused: list[Row] = []
    key = 0
    for source in sources:
        found = [Segment(**segment) for segment in source["segments"] or ()]
        faults = [segment_fault(segment, settings) for segment in found]
        usable = [segment for segment, fault in zip(found, faults, strict=True) if not fault]
        longest: dict[int | None, list[Segment]] = defaultdict(list)  # by channel
        for segment in sorted(usable, key=lambda segment: -segment.speech):
            longest[segment.channel].append(segment)
        for segment, fault in zip(found, faults, strict=True):
            row = {"key": key, "id": segment_id(source["name"], segment), "audio": source["audio"]}
            checks = segment in longest[segment.channel][:LANGUAGE_CHECKS]
            row |= vars(segment) | _because(fault) | {"check_language": checks}
            (refused if fault else good).append(row)
            key += 1
    return Segments(pa.Table.from_pylist(good, schema=SEGMENT_SCHEMA), refused)


def segment_id(name: str, segment: Segment) -> str:
    """By the source and the place in it, in milliseconds: never by the number of a segment, so that
    a correction stays with its row."""
    if segment.channel is not None:
        name += f"-channel{segment.channel}"
    return f"{name}-{round(segment.start * 1000):08d}-{round(segment.end * 1000):08d}"


def give_texts(transcripts: list[Row], texts: Mapping[str, str]) -> None:
    """Fills `given` of the rows of recordings that have a text; `texts`: by recording. A row that
    speaks none of it gets ""."""
    for audio, group in groupby(transcripts, key=lambda row: row["audio"]):
        rows = list(group)
        if audio in texts:
            heard = [row["text"] or "" for row in rows]
            for row, text in zip(rows, texts_of_segments(heard, texts[audio]), strict=True):
                row["given"] = text or ""


def judge_rows(
    sources: Sequence[Row], segments: Segments, transcripts: list[Row], judgement: Judgement
) -> list[Row]:
    """A row for every segment, in the order of the input; `reason` is None where it is kept."""
    groups: dict[Recording, list[Row]] = {(source["audio"], ()): [] for source in sources}
    for row in segments.refused:
        groups.setdefault(_recording(row), []).append(_row(row))
    languages = languages_of(
        (recording_of(row), row["heard_language"], row["heard_probability"], row["seconds"])
        for row in transcripts
        if row["heard_language"] is not None
    )
    for row in transcripts:
        shown = _row(row)
        if row["reason"] is None:
            own = languages.get(recording_of(row))
            fault = language_fault(row["language"], own, judgement.language)
            shown |= _because(fault or _fault(row, shown, judgement))
        groups.setdefault(_recording(row), []).append(shown)
    for source in sources:
        if source["reason"]:
            whole = {"id": source["name"], "audio": source["audio"], "start": 0.0}
            whole |= {"end": source["seconds"], "reason": source["reason"]}
            groups[source["audio"], ()].append(_row(whole | {"detail": source["detail"]}))
    return [
        row
        for group in groups.values()
        for row in sorted(group, key=lambda row: row["start"] or 0.0)
    ]


def write_manifest(output: str, rows: list[Row]) -> None:
    """Write MANIFEST and REJECTED."""
    kept = [row for row in rows if row["reason"] is None]
    shown = [{k: row[k] for k in row if k not in ("reason", "detail")} for row in kept]
    write_lines(uris.join(output, MANIFEST), map(public, shown))
    refused = [row for row in rows if row["reason"] is not None]
    write_lines(uris.join(output, REJECTED), map(public, refused))


def public(row: Row) -> Row:
    """A row as manifests have it: where in a file its recording is, in the words of the JSONL
    reader, and nothing where it is the whole file and the mean of its channels. An instruction
    where there is one."""
    shown: Row = {}
    for name, value in row.items():
        if name == "channel":
            shown |= {} if value is None else {CHANNEL_KEY: value}
        elif name == "container":
            shown |= {} if value is None else {PLACE_KEY: {value: row["place"]}}
        elif name != "place" and (name != "instruction" or value is not None):
            shown[name] = value
    return shown


Recording = tuple[str, tuple[int, ...]]


def _recording(row: Row) -> Recording:
    """All channels together."""
    return row["audio"], tuple(row.get("place") or ())


def _because(fault: Fault | None) -> Row:
    reason, detail = fault or (None, None)
    return {"reason": reason, "detail": detail}


def _fault(row: Row, shown: Row, judgement: Judgement) -> Fault | None:
    """Also notes the CER of `shown`, and whether its text is doubtful."""
    if row["cut_word"] is not None:
        return "cut within a word", f"the ASR hears {row['cut_word']!r} on both sides of the cut"
    if row["quality"] is not None:
        fault = quality_fault(Quality(**row["quality"]), judgement.quality)
        if fault is not None:
            return fault
    if row["given"] is None:
        names = ("text", "avg_logprob", "no_speech_prob", "language", "language_probability")
        transcript = Transcript(**{name: row[name] for name in names})
        speech = row["seconds"] if row["speech"] is None else row["speech"]
        return transcript_fault(transcript, speech, judgement.limits)
    if not row["given"]:
        return NOT_IN_TEXT, f"what was heard, {row['text']!r}, is not in the recording's text"
    check = check_text(row["given"], row["text"] or "", judgement.texts, judgement.normalizer)
    shown["cer"] = _rounded(check.cer)
    shown["text_doubtful"] = check.verdict != "good"
    return (REASON, check.detail or "") if check.verdict == "refused" else None


def _row(row: Row) -> Row:
    """As it stands in the manifest, the same fields for all."""
    heard, given = row.get("text"), row.get("given")
    seconds = row.get("seconds")
    if seconds is None and row["end"] is not None:
        seconds = row["end"] - (row["start"] or 0.0)
    quality = row.get("quality") or dict.fromkeys(
        (
            "dnsmos", "snr_db", "bandwidth_hz", "upsampled", "clipped_per_second", "loudness_lufs",
            "overlap",
        )
    )  # fmt: skip
    return {
        "id": row["id"],
        "audio": row["audio"],
        "container": row.get("container"),
        "place": row.get("place"),
        "channel": row.get("channel"),
        "start": row["start"],
        "end": row["end"],
        "text": given or heard,
        "speaker": row.get("given_speaker"),
        "instruction": row.get("given_instruction"),
        "language": row.get("language"),
        "heard": heard if given is not None else None,
        "cer": None,
        "text_doubtful": None,
        "seconds": _rounded(seconds),
        "speech_seconds": row.get("speech"),
        "level_db": row.get("level_db"),
        "start_at": row.get("start_at"),
        "end_at": row.get("end_at"),
        "avg_logprob": _rounded(row.get("avg_logprob")),
        "no_speech_prob": _rounded(row.get("no_speech_prob")),
        "compression_ratio": _rounded(Transcript(heard).compression_ratio if heard else None),
        "unsure_words": _unsure(row.get("words")),
        **{name: _rounded(value) for name, value in quality.items()},
        "checked": None,
        "reason": row.get("reason"),
        "detail": row.get("detail"),
    }


def _unsure(words: list[Row] | None) -> list[str] | None:
    if words is None or any(word["probability"] is None for word in words):
        return None
    return [word["text"] for word in words if word["probability"] < UNSURE]


def _rounded(value: float | None) -> float | None:
    return value if value is None or isinstance(value, bool) else round(value, 4)
