"""The encode job's report as an HTML page: whether the corpus is sound, then the evidence.

Owns how the report of `sheen.encode.statistics` is shown, and the thresholds beyond which the page
points something out. Reads no rows and writes no file.
"""

from collections.abc import Mapping
from typing import Any

from sheen.report.figures import bars, counted_histogram
from sheen.report.page import Block, Cell, Section, render_page, table

SPEAKERS_SHOWN = 50

# Beyond these the page says that something deserves a look.
MAX_REJECTED = 0.01  # of the recordings
MAX_RATE_SPREAD = 2.0  # times the median: texts of other recordings look like this
MIN_CODES_USED = 0.5  # of a codebook, once each code could have stood CODES_FOR_USE times
CODES_FOR_USE = 20
MAX_IDLE = 0.1  # of the workers' time


def render(report: Mapping[str, Any], title: str) -> str:
    """The page as HTML; `report` as `Statistics.report` returns it."""
    sections = [
        Section("At a glance", _glance(report)),
        Section("Rejected", _rejected(report)),
        Section("Recordings", _recordings(report)),
        Section("Use of the codes", _codes(report)),
        Section("Where the time went", _times(report["this_run"])),
        Section("Speakers", _speakers(report)),
    ]
    return render_page(title, sections, _lead(report))


def findings(report: Mapping[str, Any]) -> list[str]:
    """What deserves a look, a sentence each; [] when nothing does."""
    found = []
    rejected = report["rows_in"] - report["rows_out"]
    if not report["rows_out"]:
        found.append("Nothing was encoded.")
    if report["rejects"] and rejected > MAX_REJECTED * report["rows_in"]:
        reason, entry = max(report["rejects"].items(), key=lambda item: item[1]["rows"])
        found.append(
            f"{rejected / report['rows_in']:.1%} of the recordings were rejected, most of them as "
            f"{reason!r} ({entry['rows']:,})."
        )
    rate = report["speech_rate"]
    if rate["count"] and (
        rate["p95"] > MAX_RATE_SPREAD * rate["p50"] or rate["p5"] * MAX_RATE_SPREAD < rate["p50"]
    ):
        found.append(
            f"Speech rates spread widely: 5% are below {rate['p5']:.1f}, 5% above "
            f"{rate['p95']:.1f} characters per second. Texts may belong to other recordings."
        )
    for number, level in enumerate(report["codes"]):
        enough = level["codes"] >= CODES_FOR_USE * level["size"]
        if enough and level["used"] < MIN_CODES_USED * level["size"]:
            found.append(
                f"Level {number} uses {level['used']:,} of {level['size']:,} codes: this codec may "
                "not suit these recordings. Score it on some of them."
            )
    idle = report["this_run"]["idle_share"]
    if idle is not None and idle > MAX_IDLE:
        found.append(
            f"Encoding workers waited for {idle:.0%} of their time while rows were queued."
        )
    return found


def _lead(report: Mapping[str, Any]) -> str:
    found = len(findings(report))
    verdict = "Nothing stands out."
    if found:
        verdict = f"{found} {'thing deserves' if found == 1 else 'things deserve'} a look."
    shifted = report["utterances"] > report["rows_out"]
    more = f" as {report['utterances']:,} utterances, shifts included" if shifted else ""
    rejected = report["rows_in"] - report["rows_out"]
    return (
        f"{verdict} {report['rows_out']:,} of {report['rows_in']:,} recordings are encoded{more}: "
        f"{_time(report['hours_in'])} of speech in, {_time(report['hours'])} out. "
        f"{f'{rejected:,}' if rejected else 'None'} rejected."
    )


def _glance(report: Mapping[str, Any]) -> list[Block]:
    run = report["this_run"]
    rejected = report["rows_in"] - report["rows_out"]
    share = f" ({rejected / report['rows_in']:.2%})" if rejected else ""
    decoded = f", {_time(report['hours_rejected'])} of it decoded" if rejected else ""
    lengths, rates = report["duration"], report["speech_rate"]
    facts: list[list[Cell]] = [
        ["encoded", f"{report['rows_out']:,} recordings, {_time(report['hours'])}"],
        ["rejected", f"{rejected:,} recordings{share}{decoded}"],
        ["speakers", f"{report['speaker_count']:,}"],
    ]
    if lengths["count"]:
        middle = f"{lengths['p5']:.1f} to {lengths['p95']:.1f} s"
        facts.append(["length, 90% of recordings", f"{middle}, at most {lengths['max']:,.1f} s"])
    if rates["count"]:
        middle = f"{rates['p5']:.1f} to {rates['p95']:.1f}"
        facts.append(["speech rate, 90%", f"{middle} characters per second"])
    facts.append(["speed of this run", f"{run['audio_hours_per_hour']:,.1f} audio hours per hour"])
    return [*findings(report), table([], facts)]


def _rejected(report: Mapping[str, Any]) -> list[Block]:
    rejects = report["rejects"]
    if not rejects:
        return ["No recording was rejected."]
    counts: list[list[Cell]] = [
        [reason, entry["rows"], f"{entry['rows'] / report['rows_in']:.2%}"]
        for reason, entry in rejects.items()
    ]
    examples: list[list[Cell]] = [
        [reason, name, example]
        for reason, entry in rejects.items()
        # There are more ids than examples; both are in the order of the input.
        for name, example in zip(entry["ids"], entry["examples"], strict=False)
    ]
    return [
        table(["reason", "recordings", "of all"], counts, "By reason"),
        table(["reason", "id", "where and why"], examples, "The first of each reason"),
        "A rejected recording that could not be decoded has no length: it is in no hours. All "
        "rejected rows are in the folder rows/status=rejected.",
    ]


def _recordings(report: Mapping[str, Any]) -> list[Block]:
    shown = {
        "Duration of the recordings": (report["duration"], "s"),
        "Speech rate": (report["speech_rate"], "characters of text per second"),
    }
    blocks: list[Block] = []
    rows: list[list[Cell]] = []
    for name, (spread, unit) in shown.items():
        if not spread["count"]:
            continue
        drawn = spread["histogram"]
        above = f" ({drawn['above']:,} beyond are not shown)" if drawn["above"] else ""
        blocks.append(counted_histogram(name, drawn["edges"], drawn["counts"], unit + above))
        points = [f"{spread[point]:,.2f}" for point in ("min", "p5", "p50", "mean", "p95", "max")]
        rows.append([f"{name}, {unit}", *points])
    if not blocks:
        return ["Nothing was encoded."]
    header = ["", "least", "5% below", "median", "mean", "5% above", "most"]
    return [*blocks, table(header, rows)]


def _codes(report: Mapping[str, Any]) -> list[Block]:
    if not report["codes"]:
        return ["Nothing was encoded."]
    header = ["level", "codes", "different ones", "codebook", "used", "perplexity", "bits per code"]
    rows: list[list[Cell]] = [
        [
            str(number),
            level["codes"],
            level["used"],
            level["size"],
            f"{level['used'] / level['size']:.1%}",
            level["perplexity"],
            level["entropy_bits"],
        ]
        for number, level in enumerate(report["codes"])
    ]
    return [
        table(header, rows),
        "Perplexity is how many codes the level would have if all were used alike; bits per code "
        "are its logarithm. With few codes in all, neither can reach the codebook's size.",
    ]


def _times(run: Mapping[str, Any]) -> list[Block]:
    facts: list[list[Cell]] = [
        ["recordings done in this run", f"{run['rows']:,}"],
        ["audio encoded", _time(run["audio_seconds"] / 3600)],
        ["wall time", _time(run["seconds"] / 3600)],
        ["audio hours per hour", f"{run['audio_hours_per_hour']:,.1f}"],
        ["encoding workers", f"{run['workers']:,}"],
    ]
    if run["steady"] is not None:
        facts.insert(4, ["the same, while all workers had rows", f"{run['steady']:,.1f}"])
    if run["idle_share"] is not None:
        facts.append(
            ["they waited while rows were queued, of their time", f"{run['idle_share']:.1%}"]
        )
    if not run["rows"]:
        return [
            "This run had nothing left to do: all rows are of runs before it.",
            table([], facts),
        ]
    return [
        bars("Busy time by stage", run["stages"], "seconds of all workers together"),
        table([], facts),
        "Stages overlap and run in several workers at once: their seconds add up to more than the "
        "wall time.",
    ]


def _speakers(report: Mapping[str, Any]) -> list[Block]:
    speakers = list(report["speakers"].items())
    if not speakers:
        return ["Nothing was encoded."]
    rows: list[list[Cell]] = [
        [name or "(none named)", entry["recordings"], entry["hours"]]
        for name, entry in speakers[:SPEAKERS_SHOWN]
    ]
    blocks: list[Block] = [table(["speaker", "recordings", "hours"], rows)]
    if more := report["speaker_count"] - len(rows):
        blocks.append(f"And {more:,} speakers with less; report.json names up to 1,000.")
    return blocks


def _time(hours: float) -> str:
    """A length of time in the unit that suits it."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"
