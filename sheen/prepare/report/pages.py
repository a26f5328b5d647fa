"""The pages of a prepare job: the report, and the content of the review page.

Owns what they show, and the choice of clips. The statistics, and which rows to doubt, are
`sheen.prepare.report.statistics`'s; the review page is `sheen.report.review`'s.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sheen.audio.samples import Samples
from sheen.data.corpus import FAULTY
from sheen.prepare.rejections.reasons import TEXT_DIFFERS
from sheen.prepare.report.statistics import (
    differing,
    doubtful_first,
    speech_seconds,
    text_rate,
    word_count,
)
from sheen.report.figures import histogram
from sheen.report.page import Block, Cell, Clip, Section, clip_row, render_page, table
from sheen.report.review import ReviewRow, render_review

PLAYED_OF_A_REASON, PLAYED_WORST, PLAYED_SPEAKERS = 2, 8, 8
"""Clips on the report's page."""
WORST_TEXTS = 50
"""Rows on the page whose texts differ from their transcripts."""

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
OPTIONAL = {
    "dnsmos": "DNSMOS: not measured (--dnsmos).",
    "overlap": "Overlapping speech: not measured (--overlap).",
}
"""What the page says of measures that a flag switches on."""

Row = dict[str, Any]
Read = Callable[[Sequence[Row]], list[Samples]]
"""Rows -> their samples at CLIP_RATE."""
CLIP_RATE = 24_000
"""Sample rate of the clips on the pages, Hz."""


def render_report(report: Row, rows: Sequence[Row], read: Read, title: str) -> str:
    """The page as HTML."""
    kept = [row for row in rows if row["reason"] is None]
    sections = [
        Section("Hours", _hours_blocks(report)),
        Section("Segments", _segment_blocks(report, rows, kept)),
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
    if report["words_per_second"] is not None:
        rates = "{words_per_second:.1f} words, {characters_per_second:.1f} characters"
        facts.append(["text per second of speech", rates.format(**report)])
    blocks: list[Block] = [table([], facts)]
    for location, fault in report["incomplete"].items():
        blocks.append(f"{location}: {fault}.")
    if stale := report.get("corrections_not_applied"):
        blocks.append(f"{len(stale)} kept corrections do not apply, the first: {stale[0]}.")
    return blocks


def _share(hours: float, whole: float) -> str:
    return _time(hours) + (f" ({hours / whole:.1%})" if whole else "")


def _rejected_blocks(report: Row, rows: Sequence[Row], read: Read) -> list[Block]:
    rows = sorted(rows, key=differing)
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
        *_differing_texts(rows),
    ]


def _differing_texts(rows: Sequence[Row]) -> list[Block]:
    """The rejected texts, of rows in that order, with their transcripts."""
    found = [row for row in rows if row["reason"] == TEXT_DIFFERS]
    if not found:
        return []
    cells: list[list[Cell]] = [
        [row["id"], row["cer"], row["text"], row["heard"]] for row in found[:WORST_TEXTS]
    ]
    more = len(found) - len(cells)
    return [
        table(["segment", "CER", "text", "transcript"], cells),
        *([f"{more:,} more are in rejected.jsonl."] if more else []),
    ]


def _is_short(row: Row) -> bool:
    """Whether it is a segment, not a whole recording."""
    return row["start_at"] is not None or row["text"] is not None


def _segment_blocks(report: Row, rows: Sequence[Row], kept: Sequence[Row]) -> list[Block]:
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
        histogram(
            "Text per second of speech", [text_rate(row) for row in kept], "characters per s"
        ),
        histogram(
            "Words per second of speech",
            [word_count(row) / speech_seconds(row) for row in kept],
            "words per s",
        ),
    ]
    for name, title, unit in MEASURES:
        # That of the texts has its limit by default: without what is above, it would not show what
        # another one would cost.
        of = rows if name == "cer" else kept
        values = [row[name] for row in of if row[name] is not None]
        if values:
            blocks.append(histogram(title, values, unit))
        elif name in OPTIONAL:
            blocks.append(OPTIONAL[name])
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
    # Others are not corrected here but in the input, and may have the id of a row.
    rows = [row for row in rows if row["reason"] not in FAULTY]
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
