"""Held-out loss and text gain over the tokens that a voice was trained on: a PNG.

Owns the joining of runs that continued each other. The numbers are those of their `metrics.jsonl`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sheen.report.figures import FONT_SIZE, style

GAIN = "eval_text_gain_level_"


def evaluations(
    runs: Sequence[Path], tokens_per_step: int
) -> Iterator[tuple[float, dict[str, Any]]]:
    """Millions of tokens, counted through all runs, and the line of each evaluation."""
    before = 0
    for run in runs:
        lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
        steps = [line for line in lines if line["event"] == "step"]
        for line in steps:
            if "eval_loss" in line:
                yield (before + line["step"]) * tokens_per_step / 1e6, line
        before += steps[-1]["step"] if steps else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; a run without metrics ends it with a message, status 2."""
    parser = argparse.ArgumentParser(description="Draw what training runs have measured.")
    parser.add_argument("runs", type=Path, nargs="+", help="--output of jobs/train.py, in order")
    parser.add_argument("--tokens-per-step", type=int, default=8192, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    args = parser.parse_args(argv)
    try:
        points = list(evaluations(args.runs, args.tokens_per_step))
    except OSError as error:
        parser.error(f"no run's --output: {error}")
    if not points:
        parser.error(f"no evaluation in {', '.join(map(str, args.runs))}: expected --eval-every")
    tokens, lines = zip(*points, strict=True)
    figure = Figure(figsize=(7.5, 2.8), layout="constrained")
    loss, gain = figure.subplots(1, 2)
    style(loss, "million tokens", "held-out loss, nats per token", grid="y")
    loss.plot(tokens, [line["eval_loss"] for line in lines])
    style(gain, "million tokens", "text gain, nats per token", grid="y")
    for name in sorted(key for key in lines[-1] if key.startswith(GAIN)):
        values = [line[name] for line in lines]
        gain.plot(tokens, values, label=f"level {name.removeprefix(GAIN)}")
    gain.legend(frameon=False, fontsize=FONT_SIZE)
    figure.savefig(args.output, dpi=120)
    print(f"{args.output}: {len(points)} evaluations, {tokens[-1]:.1f} million tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
