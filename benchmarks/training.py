"""How much faster Sheen trains than transformers' Trainer, and what each reason for it is worth.

Run by `make bench`. Qwen3-0.6B's width and vocabulary with random weights, float32, on the CPU;
clips are drawn uniformly from `--longest`/12 to `--longest` seconds, with four tokens of text per
second. Every variant trains the same weights on the same clips in a process of its own, one after
another; the figures are ratios of target tokens per second (labels that are scored). Peak memory is
the process's; "above state" is without 16 bytes per weight (itself, gradient, moments) and what the
process held before. Prints a Markdown table, writes runs/bench/training.json.
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "runs" / "bench" / "training.json"

VARIANTS = {
    "baseline": "transformers' Trainer: whole vocabulary, padded batches of 4, random order",
    "head": "padded batches of 4, random order, loss over legal rows",
    "head, lengths": "padded batches of 4 of like lengths, loss over legal rows",
    "packed, all rows": "packed rows, loss over the whole vocabulary (targets only)",
    "packed": "Sheen: packed rows, loss over legal rows",
}
FACTORS = {
    "head alone": ("head", "baseline"),
    "then batches of like lengths": ("head, lengths", "head"),
    "then packing": ("packed", "head, lengths"),
    "packing alone, whole vocabulary": ("packed, all rows", "baseline"),
    "all of it": ("packed", "baseline"),
}
BARS = {28: 2.0, 4: 4.0}
"""Least ratio of Sheen to the baseline, by layers."""
MEMORY_BAR = 0.4
"""Most memory of Sheen's, as a share of the baseline's."""

MALLOC = {"MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_MMAP_THRESHOLD_": "33554432"}
"""As the Makefile and `sheen.runs.cluster.WORKER_ENV`."""


def needed_bytes(layers: int, longest: float) -> float:
    """Roughly the baseline's peak with four of the longest clips, at the width of Qwen3-0.6B."""
    positions = 4 * 86 * longest
    weights = 168.2e6 + 15.73e6 * layers
    # Weights and moments; what the backward pass needs (measured: 136 kB per position and layer);
    # the logits' log-softmax and two gradients.
    return 1e9 + 12 * weights + positions * (layers * 136e3 + 3 * 4 * 164_226)


def memory_bytes(field: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(dict(line.split(":") for line in lines)[field].split()[0]) * 1024


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


def longest_that_fits(layers: int) -> float:
    """12 seconds, or half of it as often as this machine's memory asks."""
    longest = 12.0
    while longest > 1.0 and needed_bytes(layers, longest) > 0.9 * memory_bytes("MemTotal"):
        longest /= 2
    return longest


def run_variant(variant: str, arguments: list[str], threads: int) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / "variants.py"), variant, *arguments]
    done = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | MALLOC | {"OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        raise RuntimeError(f"variant {variant!r} ended with exit status {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(layers: int, longest: float, options: argparse.Namespace) -> dict[str, Any]:
    arguments = ["--layers", str(layers), "--steps", str(options.steps)]
    arguments += ["--longest", str(longest), "--threads", str(options.threads)]
    arguments += ["--small"] * options.small
    checked = run_variant("check", arguments, options.threads)
    print(f"{layers} layers: {json.dumps(checked['losses'])}", file=sys.stderr, flush=True)
    runs = {}
    for variant in VARIANTS:
        runs[variant] = run_variant(variant, arguments, options.threads)
        runs[variant]["rate"] = runs[variant]["targets"] / runs[variant]["seconds"]
        print(f"  {variant}: {runs[variant]['seconds']:.1f} s", file=sys.stderr, flush=True)
    assert len({figures["targets"] for figures in runs.values()}) == 1, "not the same clips"
    ratios = {name: runs[a]["rate"] / runs[b]["rate"] for name, (a, b) in FACTORS.items()}
    memory = runs["packed"]["peak_above_state"] / runs["baseline"]["peak_above_state"]
    return {
        "layers": layers,
        "longest_seconds": longest,
        "versions": runs["packed"]["versions"],
        "losses": checked["losses"],
        "expected_positions_per_target": checked["expected_positions_per_target"],
        "variants": runs,
        "ratios": ratios,
        "memory": memory,
    }


def table(result: dict[str, Any]) -> str:
    runs, base = result["variants"], result["variants"]["baseline"]
    lines = [
        f"### {result['layers']} layers, {base['weights'] / 1e6:.0f} M weights, {base['targets']} "
        f"targets in clips of at most {result['longest_seconds']:g} s",
        "",
        "| variant | targets/s | ratio | steps | s/step | positions per target | peak, GB | "
        "above state, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant, text in VARIANTS.items():
        row = runs[variant]
        lines.append(
            f"| {text} | {row['rate']:.1f} | {row['rate'] / base['rate']:.2f} | {row['steps']} | "
            f"{row['seconds'] / row['steps']:.2f} | {row['positions'] / row['targets']:.2f} | "
            f"{row['peak_bytes'] / 1e9:.2f} | {row['peak_above_state'] / 1e9:.2f} |"
        )
    lines += ["", "| what | times as fast |", "|---|---|"]
    lines += [f"| {name} | {ratio:.2f} |" for name, ratio in result["ratios"].items()]
    bar = BARS.get(result["layers"])
    wanted = f" (bar: {bar})" if bar else ""
    lines += [
        "",
        "Over many clips, batches of 4 in random order have "
        f"{result['expected_positions_per_target']:.2f} positions per target; few clips grouped by "
        "length keep more padding than many.",
        "",
        f"Sheen is {result['ratios']['all of it']:.2f} times as fast{wanted}; above weights, "
        f"gradients and moments it needs {result['memory']:.0%} of the memory (bar: "
        f"{MEMORY_BAR:.0%}).",
        "",
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[28, 4], help="of the base")
    parser.add_argument("--steps", type=int, default=3, help="timed batches of 4 clips")
    parser.add_argument(
        "--longest", type=float, help="longest clip, seconds; default: 12, or less as memory asks"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--small", action="store_true", help="a toy width: does it all run?")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file")
    options = parser.parse_args(argv)
    longest = {n: options.longest or longest_that_fits(n) for n in options.layers}
    if not options.small:
        needed = max(needed_bytes(n, seconds) for n, seconds in longest.items())
        if needed > (available := memory_bytes("MemAvailable")):
            print(
                f"benchmarks/training.py: error: the baseline may need {needed / 1e9:.1f} GB, "
                f"{available / 1e9:.1f} GB are free; a smaller --longest needs less",
                file=sys.stderr,
            )
            return 2
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/training.py", *argv]),
        "machine": {
            "cores": os.cpu_count(),
            "memory_bytes": memory_bytes("MemTotal"),
            "processor": processor(),
        },
        "options": {name: getattr(options, name) for name in ("steps", "threads", "small")},
        "results": [],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for layers in options.layers:
        result = measure(layers, longest[layers], options)
        report["results"].append(result)
        print(table(result), flush=True)
        options.output.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
