"""The report of a prepare job, as JSON and as a page, and the content of the review page.

Owns the statistics, which cover every second of the input, the doubts about a row, their order, and
the choice of clips. Doubtful rows are not rejected. The review page is `sheen.report.review`'s.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sheen.audio.samples import Samples
from sheen.prepare.cutting import PAUSE, QUIETEST
from sheen.report.figures import histogram
from sheen.report.page import Block, Cell, Clip, Section, clip_row, render_page, table
from sheen.report.review import ReviewRow, render_review

EXAMPLES = 3
PLAYED_OF_A_REASON, PLAYED_WORST, PLAYED_SPEAKERS = 2, 8, 8
"""Clips on the report's page."""
UNSURE_LOGPROB = -0.7
NO_SPEECH = 0.3
FAR_RATE = 1.8
"""A text rate this many times above or below the median is doubtful."""

MEASURES = (
    ("level_db", "Loudest 10 ms", "dB of full scale"),
    ("loudness_lufs", "Loudness (--min-loudness-lufs)", "LUFS"),
    ("snr_db", "Speech over noise (--min-snr-db)", "dB"),
    ("bandwidth_hz", "Bandwidth (--min-bandwidth-hz)", "Hz"),
    ("clipped_per_second", "Clipped places (--max-clipped-per-second)", "per s"),
    ("dnsmos", "DNSMOS OVRL (--min-dnsmos)", ""),
    ("overlap", "Two voices at once (--max-overlap)", "of the speech"),
    ("avg_logprob", "Mean log probability of the transcripts", ""),
    ("cer", "CER of the text against the transcript (--max-cer)", "CER"),
)
"""Fields with a histogram on the page, and the flag that limits them."""

Row = dict[str, Any]
Read = Callable[[Sequence[Row]], list[Samples]]
"""Rows -> their samples at CLIP_RATE."""
CLIP_RATE = 24_000
"""Sample rate of the clips on the pages, Hz."""


def account(
    sources: Sequence[Mapping[str, Any]], skipped: Mapping[str, int], rows: Sequence[Row]
) -> Row:
    """The report as JSON. Every second of the input is in a kept row, in a rejected one, or between
    segments. `sources`: rows of CUT_SCHEMA."""
    kept = [row for row in rows if row["reason"] is None]
    rejected = [row for row in rows if row["reason"] is not None]
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
        "recordings_used": len({row["audio"] for row in kept}),
        "files_skipped": dict(skipped),
        "hours_in": hours_in,
        "hours_out": hours_out,
        "hours_rejected": hours_rejected,
        "hours_between": hours_in - hours_out - hours_rejected,
        "rows_out": len(kept),
        "rows_rejected": len(rejected),
        "rejects": dict(sorted(rejects.items(), key=lambda pair: -pair[1]["rows"])),
        "checked": dict(Counter(row["checked"] for row in rows if row["checked"])),
        "speakers": _by_speaker(kept),
        "languages": dict(Counter(row["language"] for row in kept)),
        "characters_per_second": sum(len(row["text"]) for row in kept) / speech if speech else None,
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
    rate = _rate(row)
    if median_rate and not 1 / FAR_RATE <= rate / median_rate <= FAR_RATE:
        found.append("an unusual speech rate")
    if row["unsure_words"]:
        found.append("unsure of " + ", ".join(row["unsure_words"]))
    return found


def _rate(row: Row) -> float:
    return len(row["text"] or "") / max(row["speech_seconds"] or row["seconds"] or 0.0, 0.01)


def doubtful_first(rows: Sequence[Row]) -> list[tuple[Row, list[str]]]:
    """Rows with a transcript, and the doubts about each: kept rows first, most doubtful first, then
    rejected ones. Reviewed rows come last."""
    heard = [row for row in rows if row["text"] is not None]
    rates = sorted(_rate(row) for row in heard if row["reason"] is None)
    median = rates[len(rates) // 2] if rates else 0.0
    told = [(row, doubts(row, median)) for row in heard]

    def order(pair: tuple[Row, list[str]]) -> tuple[bool, bool, float]:
        row, found = pair
        unsure = -(row["avg_logprob"] or 0.0)
        return row["checked"] is not None, row["reason"] is not None, -(len(found) + unsure)

    return sorted(told, key=order)


def render_report(report: Row, rows: Sequence[Row], read: Read, title: str) -> str:
    """The page as HTML."""
    kept = [row for row in rows if row["reason"] is None]
    sections = [
        Section("Hours", _hours_blocks(report)),
        Section("Segments", _segment_blocks(report, kept)),
        Section("Most doubtful", _players(_most_doubtful(rows), read)),
    ]
    if report["speakers"]:
        sections.insert(2, Section("Speakers", _speaker_blocks(report, kept, read)))
    if report["rejects"]:
        sections.insert(1, Section("Rejected", _rejected_blocks(report, rows, read)))
    lead = (
        f"{report['rows_out']:,} segments, {_time(report['hours_out'])} of "
        f"{_time(report['hours_in'])}. {report['rows_rejected']:,} rejected. The page to check and "
        "correct rows is review.html."
    )
    return render_page(title, sections, lead)


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"


def _hours_blocks(report: Row) -> list[Block]:
    facts: list[list[Cell]] = [
        ["recordings", f"{report['recordings']:,}, {_time(report['hours_in'])}"],
        ["in segments", _share(report["hours_out"], report["hours_in"])],
        ["rejected", _share(report["hours_rejected"], report["hours_in"])],
        ["pauses between segments", _share(report["hours_between"], report["hours_in"])],
        ["ASR", report["asr"] or "none"],
    ]
    blocks: list[Block] = [table([], facts)]
    for location, fault in report["incomplete"].items():
        blocks.append(f"{location}: {fault}.")
    return blocks


def _share(hours: float, whole: float) -> str:
    return _time(hours) + (f" ({hours / whole:.1%})" if whole else "")


def _rejected_blocks(report: Row, rows: Sequence[Row], read: Read) -> list[Block]:
    counts: list[list[Cell]] = [
        [reason, entry["rows"], _time(entry["hours"])]
        for reason, entry in report["rejects"].items()
    ]
    played = [
        (row, [row["reason"], row["detail"]])
        for reason in report["rejects"]
        for row in [row for row in rows if row["reason"] == reason and _is_short(row)][
            :PLAYED_OF_A_REASON
        ]
    ]
    examples: list[list[Cell]] = [
        [reason, example]
        for reason, entry in report["rejects"].items()
        for example in entry["examples"][:1]
    ]
    return [
        table(["reason", "segments or recordings", "time"], counts),
        table(["reason", "for example"], examples),
        *_players(played, read),
    ]


def _is_short(row: Row) -> bool:
    """Whether it is a segment, not a whole recording."""
    return row["start_at"] is not None or row["text"] is not None


def _segment_blocks(report: Row, kept: Sequence[Row]) -> list[Block]:
    if not kept:
        return ["No segment can be used."]
    ends, unchecked = report["ends_in_speech"], report["ends_unchecked"]
    checked = ""
    if unchecked:
        checked = f", {unchecked:,} of them without a check: the ASR model gives no word times"
    blocks: list[Block] = [
        f"{ends:,} of {2 * len(kept):,} ends of segments are within speech that had no pause"
        f"{checked}; all others are in pauses.",
        histogram("Length of the segments", [row["seconds"] for row in kept], "s"),
        histogram("Text per second of speech", [_rate(row) for row in kept], "characters per s"),
    ]
    for name, title, unit in MEASURES:
        values = [row[name] for row in kept if row[name] is not None]
        if values:
            blocks.append(histogram(title, values, unit))
    if upsampled := sum(bool(row["upsampled"]) for row in kept):
        blocks.append(
            f"{upsampled:,} of {len(kept):,} segments have nothing in the upper fifth of the "
            "frequency range of their sample rate: they were recorded at a lower one."
        )
    return blocks


def _speaker_blocks(report: Row, kept: Sequence[Row], read: Read) -> list[Block]:
    speakers = list(report["speakers"].items())
    cells: list[list[Cell]] = [
        [name, entry["rows"], _time(entry["hours"])] for name, entry in speakers
    ]
    played = []
    for name, _ in speakers[:PLAYED_SPEAKERS]:
        own = [row for row in kept if row["speaker"] == name]
        # Spread over the list, so that two people taken for one may be noticed.
        chosen = [own[place * len(own) // 2] for place in range(min(2, len(own)))]
        played += [(row, [name]) for row in chosen]
    return [table(["speaker", "segments", "time"], cells), *_players(played, read)]


def _most_doubtful(rows: Sequence[Row]) -> list[tuple[Row, list[str]]]:
    kept = [(row, found) for row, found in doubtful_first(rows) if row["reason"] is None]
    return kept[:PLAYED_WORST]


def _players(chosen: Sequence[tuple[Row, list[str]]], read: Read) -> list[Block]:
    clips = read([row for row, _ in chosen])
    return [
        clip_row([Clip(row["id"], samples, CLIP_RATE, "; ".join(found))], row["text"] or "")
        for (row, found), samples in zip(chosen, clips, strict=True)
    ]


def render_corrections(rows: Sequence[Row], read: Read, title: str, most: int) -> str:
    """The review page with at most `most` rows, the most doubtful ones."""
    chosen = doubtful_first(rows)[:most]
    clips = read([row for row, _ in chosen])
    shown = [
        ReviewRow(
            id=row["id"],
            text=row["text"],
            note="; ".join(found),
            rejected=row["reason"] is not None,
            audio=samples,
            sample_rate=CLIP_RATE,
        )
        for (row, found), samples in zip(chosen, clips, strict=True)
    ]
    left = sum(row["text"] is not None for row in rows) - len(shown)
    return render_review(title, shown, left)
