"""What training runs have measured, of a voice or of a codec, over hours or tokens: a PNG.

A voice's held-out loss and text gain, a codec's held-out mel distance and use of codes, and WERs
that were measured elsewhere. Owns the joining of runs that continued each other, and the time that
a step took. The numbers are those of their `metrics.jsonl`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sheen.report.figures import FONT_SIZE, style

MEASURES = {
    "eval_loss": (
        "held-out loss, nats per token",
        "eval_text_gain_level_",
        "text gain, nats per token",
    ),
    "eval_mel_distance_db": (
        "held-out mel distance, dB",
        "eval_perplexity_level_",
        "perplexity of the codes",
    ),
}
"""By what an evaluation is known: its axis, and what is drawn for each level of codes."""


@dataclass
class Runs:
    """Runs as one. `steps` are counted through all of them.

    `hours[i]` are those of training, without evaluation and saving, until `logged[i]` steps.
    """

    total: int
    logged: list[int]
    hours: list[float]
    steps: list[int]
    evaluations: list[dict[str, Any]]

    def hours_at(self, step: int) -> float:
        return float(np.interp(step, self.logged, self.hours))


def read_runs(folders: Sequence[Path]) -> Runs:
    """Outputs of the train or train-codec job, in their order. ValueError names what a run
    lacks."""
    runs = Runs(0, [0], [0.0], [], [])
    for folder in folders:
        before = runs.total
        lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
        pace = None  # seconds of a step
        for line in (line for line in lines if line["event"] == "step"):
            runs.total = before + line["step"]
            if any(measure in line for measure in MEASURES):
                runs.steps.append(runs.total)
                runs.evaluations.append(line)
            if "seconds_left" not in line:
                continue
            # The steps left at the pace since the last such line: none are left at the last step.
            if line["step"] < line["steps"]:
                pace = line["seconds_left"] / (line["steps"] - line["step"])
            if pace is None:
                raise ValueError(f"{folder}: its only line does not tell the time of a step")
            runs.hours.append(runs.hours[-1] + (runs.total - runs.logged[-1]) * pace / 3600)
            runs.logged.append(runs.total)
    return runs


def step_and_rate(text: str) -> tuple[int, float]:
    """The type of --wer."""
    step, _, rate = text.partition("=")
    try:
        return int(step), float(rate)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected STEP=PERCENT") from None


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description="Draw what training runs have measured.")
    flags.add_argument(
        "runs", type=Path, nargs="+", help="--output of jobs/train.py or train_codec.py, in order"
    )
    flags.add_argument(
        "--over",
        choices=("hours", "tokens"),
        default="hours",
        help="of training (default: %(default)s)",
    )
    flags.add_argument("--tokens-per-step", type=int, default=8192, help="(default: %(default)s)")
    flags.add_argument(
        "--wer",
        type=step_and_rate,
        nargs="+",
        default=[],
        metavar="STEP=PERCENT",
        help="a WER measured after so many steps, counted through all runs",
    )
    flags.add_argument("--output", type=Path, required=True, help="PNG to write")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; a run without metrics ends it with a message, status 2."""
    flags = parser()
    args = flags.parse_args(argv)
    try:
        runs = read_runs(args.runs)
    except OSError as error:
        flags.error(f"no run's --output: {error}")
    except ValueError as error:
        flags.error(str(error))
    measures = {name for line in runs.evaluations for name in MEASURES if name in line}
    if len(measures) != 1:
        found = "evaluations of voices and of codecs" if measures else "no evaluation"
        flags.error(f"{', '.join(map(str, args.runs))}: {found}, expected those of one of the two")
    (measure,) = measures
    if late := [step for step, _ in args.wer if step > runs.total]:
        flags.error(f"--wer {late[0]}: the runs have {runs.total} steps")

    def place(step: int) -> float:
        return step * args.tokens_per_step / 1e6 if args.over == "tokens" else runs.hours_at(step)

    places = [place(step) for step in runs.steps]
    axis = {"tokens": "million tokens", "hours": "hours of training"}[args.over]
    title, prefix, levels_title = MEASURES[measure]
    panels = 3 if args.wer else 2
    figure = Figure(figsize=(3.75 * panels, 2.8), layout="constrained")
    first, second, *third = figure.subplots(1, panels)
    style(first, axis, title, grid="y")
    first.plot(places, [line[measure] for line in runs.evaluations])
    style(second, axis, levels_title, grid="y")
    for name in sorted(key for key in runs.evaluations[-1] if key.startswith(prefix)):
        values = [line[name] for line in runs.evaluations]
        second.plot(places, values, label=f"level {name.removeprefix(prefix)}")
    second.legend(frameon=False, fontsize=FONT_SIZE)
    for axes in third:
        style(axes, axis, "WER, %", grid="y")
        points = sorted(args.wer)
        axes.plot([place(step) for step, _ in points], [rate for _, rate in points], marker="o")
        axes.set_ylim(bottom=0)
    figure.savefig(args.output, dpi=120)
    print(
        f"{args.output}: {len(places)} evaluations, {runs.total} steps in "
        f"{runs.hours[-1]:.2f} hours of training"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
