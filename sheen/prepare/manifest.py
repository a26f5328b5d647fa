"""The rows of the output, from the results of both stages: the manifest and the rejected rows.

Owns the rows' ids and fields, and their text: the input's, if it has one, else the transcript.
Every segment becomes one row, and so does a recording without a usable segment. The reasons for
rejection are in `sheen.prepare.rejections`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import pyarrow as pa

from sheen.data.recordings import recording_of
from sheen.data.schema import CHANNEL_KEY, PLACE_KEY
from sheen.prepare.alignment import texts_of_segments
from sheen.prepare.cutting.cut import CutSettings, Segment
from sheen.prepare.output import MANIFEST, QUALITY_TYPE, REJECTED, SEGMENT_SCHEMA, write_lines
from sheen.prepare.rejections.quality import Quality, QualityLimits, quality_fault
from sheen.prepare.rejections.reasons import (
    TEXT_DIFFERS,
    Fault,
    Limits,
    TextLimits,
    check_text,
    language_fault,
    languages_of,
    segment_fault,
    transcript_fault,
)
from sheen.scoring.asr.transcript import Transcript
from sheen.scoring.wer import language_normalizer, normalize_words
from sheen.storage import uris

Row = dict[str, Any]
LANGUAGE_CHECKS = 3
"""The longest segments of a recording, whose language is guessed if `--language` is given."""
UNSURE = 0.4
"""A word with a lower probability is listed in `unsure_words`."""
NOT_IN_TEXT = "not in the text"
LEAST_READ = 0.5
"""Least share of the rows of a folder's recordings that must be in its only text."""
SEGMENT_BITS = 20
"""Bits of a segment's key that count within its source: room for a million."""


@dataclass(frozen=True)
class Segments:
    """`table`: SEGMENT_SCHEMA of those to transcribe; `rejected`: the others, with reasons."""

    table: pa.Table
    rejected: list[Row]


@dataclass(frozen=True)
class Criteria:
    """The criteria for keeping a row. `language`: that of `--language`."""

    limits: Limits
    quality: QualityLimits
    texts: TextLimits
    language: str | None


def plan_segments(sources: Sequence[Row], settings: CutSettings) -> Segments:
    """The segments of all sources, which are rows of CUT_SCHEMA: files, or rows of a corpus.

    A segment's key is its source's and its number in it: a source that is read in a later run does
    not change those of others.
    """
    good: list[Row] = []
    rejected: list[Row] = []
    for source in sources:
        found = [Segment(**segment) for segment in source["segments"] or ()]
        faults = [segment_fault(segment, settings) for segment in found]
        usable = [segment for segment, fault in zip(found, faults, strict=True) if not fault]
        where = {name: source[name] for name in ("audio", "container", "place", "file")}
        longest: dict[int | None, list[Segment]] = defaultdict(list)  # by channel
        for segment in sorted(usable, key=lambda segment: -segment.speech):
            longest[segment.channel].append(segment)
        key = source["key"] << SEGMENT_BITS
        for segment, fault in zip(found, faults, strict=True):
            checks = segment in longest[segment.channel][:LANGUAGE_CHECKS]
            segment = _placed(segment, source)
            row = {"key": key, "id": segment_id(source["name"], segment), **where}
            row |= vars(segment) | _because(fault) | {"check_language": checks}
            row["channel"] = source["channel"] if segment.channel is None else segment.channel
            row["peak"] = source["peaks"][segment.channel or 0]
            (rejected if fault else good).append(row)
            key += 1
    return Segments(pa.Table.from_pylist(good, schema=SEGMENT_SCHEMA), rejected)


def _placed(segment: Segment, source: Row) -> Segment:
    """Its times from the recording's first sample on, where the source is a part of one."""
    begun = source["start"] or 0.0
    if not begun:
        return segment
    start, end = round(begun + segment.start, 3), round(begun + segment.end, 3)
    return replace(segment, start=start, end=end)


def segment_id(name: str, segment: Segment) -> str:
    """Made of the source's name and the place in it, in milliseconds. A segment's number would
    change with the settings, and corrections refer to ids."""
    if segment.channel is not None:
        name += f"-channel{segment.channel}"
    return f"{name}-{round(segment.start * 1000):08d}-{round(segment.end * 1000):08d}"


def give_texts(
    transcripts: list[Row], texts: Mapping[int, str], shared: Mapping[int, str] | None = None
) -> set[int]:
    """Fill `given` of segments whose source has a text; `texts`: by the source's key. A segment
    that matches no part of it gets "".

    `shared`: the same, of texts that may be of something else, such as notes: such a text is used
    only if LEAST_READ of the segments with words are in it. Returns the sources that use one.
    """
    used: set[int] = set()
    candidates: dict[str, list[tuple[Row, str]]] = defaultdict(list)  # by shared text
    for source, group in groupby(transcripts, key=source_key):
        rows = list(group)
        text = texts.get(source, (shared or {}).get(source))
        if text is None:
            continue
        heard = [row["text"] or "" for row in rows]
        parts = [part or "" for part in texts_of_segments(heard, text)]
        if source in texts:
            for row, part in zip(rows, parts, strict=True):
                row["given"] = part
        else:
            candidates[text] += zip(rows, parts, strict=True)
    for pairs in candidates.values():
        spoken = [part for row, part in pairs if normalize_words(row["text"] or "")]
        if spoken and sum(map(bool, spoken)) >= LEAST_READ * len(spoken):
            for row, part in pairs:
                row["given"] = part
                used.add(source_key(row))
    return used


def seconds_of(row: Row) -> float | None:
    """As it was read, or else by its bounds."""
    seconds: float | None = row.get("seconds")
    if seconds is None and row["end"] is not None:
        seconds = row["end"] - (row["start"] or 0.0)
    return seconds


def source_key(segment: Row) -> int:
    """The key of the source that a segment is of."""
    key: int = segment["key"] >> SEGMENT_BITS
    return key


def output_rows(
    sources: Sequence[Row], segments: Segments, transcripts: list[Row], criteria: Criteria
) -> list[Row]:
    """One row per segment, in the order of the input; `reason` is None for kept rows."""
    groups: dict[Recording, list[Row]] = {(source["audio"], ()): [] for source in sources}
    for row in segments.rejected:
        groups.setdefault(whole_recording(row), []).append(_row(row))
    languages = languages_of(
        (recording_of(row), row["heard_language"], row["heard_probability"], row["seconds"])
        for row in transcripts
        if row["heard_language"] is not None
    )
    for row in transcripts:
        shown = _row(row)
        if row["reason"] is None:
            own = languages.get(recording_of(row))
            fault = language_fault(row["language"], own, criteria.language)
            shown |= _because(fault or _fault(row, shown, criteria))
        groups.setdefault(whole_recording(row), []).append(shown)
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
    write_lines(uris.join(output, MANIFEST), map(jsonl_row, shown))
    rejected = [row for row in rows if row["reason"] is not None]
    write_lines(uris.join(output, REJECTED), map(jsonl_row, rejected))


def jsonl_row(row: Row) -> Row:
    """A row with the keys of the JSONL reader: the place of a recording inside a file, its channel
    and an instruction have keys only if they are set."""
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


def whole_recording(row: Row) -> Recording:
    """All channels together. A recording may be in a file with others."""
    return row["audio"], tuple(row.get("place") or ())


def _because(fault: Fault | None) -> Row:
    reason, detail = fault or (None, None)
    return {"reason": reason, "detail": detail}


def _fault(row: Row, shown: Row, criteria: Criteria) -> Fault | None:
    """Why a row is rejected, or None. Also sets `cer` and `text_doubtful` of `shown`."""
    if row["cut_word"] is not None:
        return "cut within a word", f"by the ASR's word times, the cut is in {row['cut_word']!r}"
    if row["quality"] is not None:
        fault = quality_fault(Quality(**row["quality"]), criteria.quality)
        if fault is not None:
            return fault
    if row["given"] is None:
        names = ("text", "avg_logprob", "no_speech_prob", "language", "language_probability")
        transcript = Transcript(**{name: row[name] for name in names})
        speech = row["seconds"] if row["speech"] is None else row["speech"]
        return transcript_fault(transcript, speech, criteria.limits)
    if not row["given"]:
        return NOT_IN_TEXT, f"the transcript, {row['text']!r}, is not in the recording's text"
    normalizer = language_normalizer(row["language"] or criteria.language)
    check = check_text(row["given"], row["text"] or "", criteria.texts, normalizer)
    shown["cer"] = _rounded(check.cer)
    shown["text_doubtful"] = check.verdict != "good"
    return (TEXT_DIFFERS, check.detail or "") if check.verdict == "rejected" else None


def _row(row: Row) -> Row:
    """The fields of the manifest, the same for all rows."""
    heard, given = row.get("text"), row.get("given")
    quality = row.get("quality") or dict.fromkeys(field.name for field in QUALITY_TYPE)
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
        "seconds": _rounded(seconds_of(row)),
        "speech_seconds": row.get("speech"),
        "level_db": row.get("level_db"),
        "start_at": row.get("start_at"),
        "end_at": row.get("end_at"),
        "cuts_unchecked": row.get("cuts_unchecked"),
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
