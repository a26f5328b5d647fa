"""The statistics of a preparation: hours and rows in and out, and the rows to doubt.

Owns the report's content, which covers every second of the input, the doubts about a row and their
order. Doubtful rows are not rejected. The pages are `sheen.prepare.report.pages`'s.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sheen.prepare.cutting.cut import PAUSE, QUIETEST
from sheen.prepare.manifest import Row, whole_recording

EXAMPLES = 3
"""Examples of each reason."""
UNSURE_LOGPROB = -0.7
NO_SPEECH = 0.3
FAR_RATE = 1.8
"""A text rate this many times above or below the median is doubtful."""


def statistics_of(
    sources: Sequence[Mapping[str, Any]], skipped: Mapping[str, int], rows: Sequence[Row]
) -> Row:
    """The report as JSON. Every second of the input is in a kept row, in a rejected one, or between
    segments. `sources`: rows of CUT_SCHEMA."""
    kept = [row for row in rows if row["reason"] is None]
    rejected = sorted((row for row in rows if row["reason"] is not None), key=differing)
    rejects: dict[str, Row] = defaultdict(lambda: {"rows": 0, "hours": 0.0, "examples": []})
    for row in rejected:
        entry = rejects[row["reason"]]
        entry["rows"] += 1
        entry["hours"] += (row["seconds"] or 0.0) / 3600
        if len(entry["examples"]) < EXAMPLES:
            entry["examples"].append(f"{row['id']}: {row['detail']}")
    # Channels that were cut separately count separately.
    hours_in = sum((of["seconds"] or 0.0) * (of.get("channels") or 1) for of in sources) / 3600
    hours_out, hours_rejected = _hours(kept), _hours(rejected)
    ends = Counter(row[end] for row in kept for end in ("start_at", "end_at"))
    speech = sum(row["speech_seconds"] or row["seconds"] or 0.0 for row in kept)
    return {
        "recordings": len(sources),
        "recordings_used": len(set(map(whole_recording, kept))),
        "files_skipped": dict(skipped),
        "hours_in": hours_in,
        "hours_out": hours_out,
        "hours_rejected": hours_rejected,
        # The seconds of rows are rounded: without a pause, the difference may be below zero.
        "hours_between": max(0.0, hours_in - hours_out - hours_rejected),
        "rows_out": len(kept),
        "rows_rejected": len(rejected),
        "rejects": dict(sorted(rejects.items(), key=lambda pair: -pair[1]["rows"])),
        "checked": dict(Counter(row["checked"] for row in rows if row["checked"])),
        "speakers": _by_speaker(kept),
        "languages": dict(Counter(row["language"] for row in kept)),
        "characters_per_second": sum(len(row["text"]) for row in kept) / speech if speech else None,
        "words_per_second": sum(map(word_count, kept)) / speech if speech else None,
        "ends_in_pause": ends[PAUSE],
        "ends_in_speech": ends[QUIETEST],
        "ends_unchecked": sum(row["cuts_unchecked"] or 0 for row in kept),
        "incomplete": {source["audio"]: source["fault"] for source in sources if source["fault"]},
    }


def _by_speaker(kept: Sequence[Row]) -> dict[str, Row]:
    """Rows and hours of each speaker, most hours first."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in kept:
        if row["speaker"] is not None:
            groups[row["speaker"]].append(row)
    found = {name: {"rows": len(rows), "hours": _hours(rows)} for name, rows in groups.items()}
    return dict(sorted(found.items(), key=lambda pair: (-pair[1]["hours"], pair[0])))


def differing(row: Row) -> float:
    """Sort key: the text that differs most from its transcript first, rows without one last."""
    if row["heard"] is None or row["text_doubtful"] is None:
        return 0.0
    # The rate is null where one of the two has no words.
    return -1.0 if row["cer"] is None else -row["cer"]


def _hours(rows: Iterable[Mapping[str, Any]]) -> float:
    return sum(row["seconds"] or 0.0 for row in rows) / 3600


def doubts(row: Row, median_rate: float) -> list[str]:
    """Reasons to review a row; [] for none."""
    found = [row["reason"]] if row["reason"] else []
    if QUIETEST in (row["start_at"], row["end_at"]):
        found.append("cut within speech")
    if row["text_doubtful"]:
        found.append(f"the transcript is {row['heard']!r}")
    if (row["avg_logprob"] or 0.0) < UNSURE_LOGPROB:
        found.append("the ASR is unsure")
    if (row["no_speech_prob"] or 0.0) > NO_SPEECH:
        found.append("perhaps no speech")
    rate = text_rate(row)
    if median_rate and not 1 / FAR_RATE <= rate / median_rate <= FAR_RATE:
        found.append("an unusual speech rate")
    if row["unsure_words"]:
        found.append("unsure of " + ", ".join(row["unsure_words"]))
    return found


def text_rate(row: Row) -> float:
    return len(row["text"] or "") / speech_seconds(row)


def word_count(row: Row) -> int:
    return len((row["text"] or "").split())


def speech_seconds(row: Row) -> float:
    return max(row["speech_seconds"] or row["seconds"] or 0.0, 0.01)


def doubtful_first(rows: Sequence[Row]) -> list[tuple[Row, list[str]]]:
    """Rows with a transcript, and the doubts about each: kept rows first, then rejected ones. Of
    either, those with a text that differs from the transcript come first, by how much, and then
    the most doubtful. Reviewed rows come last."""
    shown = [row for row in rows if row["text"] is not None]
    rates = sorted(text_rate(row) for row in shown if row["reason"] is None)
    median = rates[len(rates) // 2] if rates else 0.0
    doubted = [(row, doubts(row, median)) for row in shown]

    def order(pair: tuple[Row, list[str]]) -> tuple[bool, bool, float, float]:
        row, found = pair
        unsure = -(row["avg_logprob"] or 0.0)
        text = differing(row) if row["text_doubtful"] else 0.0
        return (
            row["checked"] is not None,
            row["reason"] is not None,
            text,
            -(len(found) + unsure),
        )

    return sorted(doubted, key=order)
