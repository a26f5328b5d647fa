"""Prompts and a checkpoint -> audio, and a report of its quality. See `--help`."""

import sys

from sheen.config import load_config
from sheen.evaluate.config import EvaluateConfig
from sheen.evaluate.job import run
from sheen.evaluate.results import PAGE_FILE
from sheen.runs.exits import run_job
from sheen.scoring.speech_report import voice_rows

PROG = "jobs/evaluate.py"


def main(argv: list[str]) -> int:
    return run_job(PROG, lambda: evaluate(argv))


def evaluate(argv: list[str]) -> int:
    config = load_config(EvaluateConfig, argv, PROG)
    result = run(config)
    for reason, count in (result.skipped + result.rejected).items():
        print(f"  not spoken: {count} x {reason}")
    if result.report is None:
        raise ValueError("no prompt could be spoken; see the rows in --output")
    header, rows = voice_rows(result.report)
    for name, cells in zip(header, zip(*rows, strict=True), strict=True):
        print(f"{name:24}" + "  ".join(f"{cell:24}" for cell in cells).rstrip())
    print(f"page: {config.output}/{PAGE_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
