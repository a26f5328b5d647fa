"""Whether Sheen is right on a GPU, and how fast: ten parts in at most 560 seconds, a table, a JSON.

`PYTHONPATH=. python benchmarks/gpu_acceptance.py` on a machine with torch, transformers and snac;
Sheen need not be installed, and nothing else of what it depends on. Correctness comes first,
against what a CPU gave (`acceptance/references.npz`), then the figures, each beside its floor. A
part that fails or hangs leaves the others measured. Rows are printed as they come,
`acceptance.json` is written anew with each, `acceptance.md` at the end. `--device cpu --small`
tries every line out.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acceptance.runner import Outcome, Part, Runner

SECONDS = 560.0
"""Of a run, all in all: it ends by then whatever happens."""
PATIENCE = 100.0
"""Toy sizes are tried out on slow and busy machines."""

PARTS = [
    Part("device", "acceptance.device:check", 15, "what the device is, and its ceilings"),
    Part("codec", "acceptance.codec_checks:check", 25, "codes and audio as on a CPU"),
    Part("slots", "acceptance.lm_checks:check", 30, "tokens as on a CPU; graphs; bfloat16"),
    Part("learner", "acceptance.learner_checks:check", 50, "packed attention; a training step"),
    Part("engine", "acceptance.engine_checks:check", 20, "endings, refusals, stalls"),
    Part("passes", "acceptance.passes:check_passes", 35, "a decode pass, and its kernels"),
    Part("prefill", "acceptance.passes:check_prefill", 20, "prompts and windows of new shapes"),
    Part("streams", "acceptance.streams:check", 105, "listeners held"),
    Part("encode", "acceptance.encoding:check", 80, "hours of audio in an hour"),
    Part("train", "acceptance.training:check", 120, "tokens per second; a save"),
]
"""Their deadlines and a start of the process add up to SECONDS: as long as none of them has to be
stopped, each has the whole of its own."""


def line(part: str, row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    verdict = {True: "yes", False: "**no**", None: ""}[row["passed"]]
    floor = "" if row["floor"] is None else f"{number(row['floor'])} ({row['bound']})"
    share = "" if row["share"] is None else f"{row['share']:.0%}"
    cells = part, row["what"], f"{number(row['value'])} {row['unit']}", floor, share
    return f"| {' | '.join([*cells, row['expected'], verdict])} |"


def number(value: float | None) -> str:
    if value is None:
        return "–"
    if value and abs(value) < 1e-2:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


HEADER = (
    "| part | figure | measured | floor | of the floor | expected | as expected |\n"
    "|---|---|---|---|---|---|---|"
)


class Report:
    """Prints rows, and keeps the JSON as complete as the run is."""

    def __init__(self, folder: Path, head: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._json, self._table = folder / "acceptance.json", folder / "acceptance.md"
        self._head = head
        self._outcomes: list[Outcome] = []
        self._started = time.monotonic()

    def __call__(self, outcome: Outcome, row: dict[str, Any] | None) -> None:
        if not any(outcome is known for known in self._outcomes):
            self._outcomes.append(outcome)
        if row is not None:
            print(line(outcome.part, row), flush=True)
        elif outcome.ended != "finished":
            ending = f"{outcome.ended} after {outcome.seconds:.0f} s"
            print(f"| {outcome.part} | {ending} | | | | | **no** |")
            print(outcome.error, file=sys.stderr, flush=True)
        whole = {
            **self._head,
            "seconds": time.monotonic() - self._started,
            "parts": [vars(part) | {"passed": part.passed} for part in self._outcomes],
        }
        self._json.write_text(json.dumps(whole, indent=1, default=str) + "\n", "utf-8")

    def table(self) -> None:
        """For the documentation."""
        lines = [HEADER]
        for outcome in self._outcomes:
            lines += [line(outcome.part, row) for row in outcome.rows]
            if outcome.ended != "finished":
                reason = outcome.error.partition("\n")[0]
                lines.append(f"| {outcome.part} | {outcome.ended}: {reason} | | | | | **no** |")
        self._table.write_text("\n".join(lines) + "\n", "utf-8")


def write_references() -> None:
    """Anew, on the CPU."""
    import torch
    from acceptance import codec_checks, learner_checks, lm_checks, models, references

    cpu = torch.device("cpu")
    references.write(
        {
            "codec": models.digest(models.reference_snac()),
            "lm": models.digest(models.reference_lm(cpu)),
        },
        codec_checks.answers(models.reference_codec(cpu))
        | lm_checks.answers(models.reference_lm(cpu))
        | learner_checks.answers(cpu),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [part.name for part in PARTS]
    parser.add_argument("--output", type=Path, default=Path("acceptance"), help="a folder")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="toy sizes: does every line run?")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the run, at most")
    parser.add_argument("--write-references", action="store_true", help="anew, and nothing else")
    options = parser.parse_args(argv)
    if options.write_references:
        write_references()
        return 0
    patience = PATIENCE if options.small else 1.0
    head = {
        "command": " ".join(["python", "benchmarks/gpu_acceptance.py", *(argv or sys.argv[1:])]),
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "small": options.small,
    }
    report = Report(options.output, head)
    runner = Runner(options.device, options.small, options.seconds * patience, patience)
    parts = [part for part in PARTS if part.name in options.parts]
    print(HEADER, flush=True)
    outcomes = list(runner.run(parts, report))
    report.table()
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
