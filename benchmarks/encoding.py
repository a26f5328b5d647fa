"""How much faster the encode job is than one process running SNAC as published, and how near to
bare processes that only run the codec.

Run by `make bench`. Clips of 1 to 15 s at 44.1 kHz, the codec's published 24 kHz shape with random
weights, on the CPU. The sides run one after another on the same clips: the baseline (one process,
one clip at a time, `SNAC.encode` as published), bare processes (Sheen's codec alone, one process a
core, waveforms ready in memory), and the job, as users run it, on a Ray of its own. The job's
steady rate is of the time in which all its workers had blocks, its whole rate counts the start of
its workers too: both are what its report.json says. Prints one Markdown table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import ray
import torch
from encoding_corpus import make_codec, make_corpus, read_clips

from sheen.data import dataset

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "benchmarks" / "encoding_baseline.py"
SIDES = {
    "baseline": "baseline: one process, one clip at a time, SNAC as published",
    "bare": "bare: {processes} processes, the codec alone",
    "job": "the job, steady",
    "job, whole": "the job, with its workers' start",
}
FACTOR_BAR = 2.5
"""Least ratio of the job's steady rate to the baseline's."""
SHARE_BAR = 0.85
"""Least share of the bare processes' rate."""
AGREEING_CLIPS = 20


def plain_environment() -> dict[str, str]:
    """Of a user who set nothing: without the thread counts, malloc settings and Ray of others."""
    ours = ("OMP_NUM_THREADS", "MALLOC_", "RAY_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


def measure(corpus: Path, codec: str, *mode: str) -> dict[str, Any]:
    """Figures of one run of encoding_baseline.py."""
    words = [sys.executable, str(BASELINE), "--corpus", str(corpus), "--codec", codec, *mode]
    done = subprocess.run(
        words, check=False, stdout=subprocess.PIPE, text=True, env=plain_environment()
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with exit status {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def job_words(source: Path, output: Path, codec: str) -> list[str]:
    """The command of the job; on CPUs, as whatever it is compared with."""
    words = [sys.executable, str(ROOT / "jobs" / "encode.py"), "--input", str(source)]
    return [*words, "--output", str(output), "--codec", codec, "--no-gpu"]


def read_report(output: Path, clips: int) -> dict[str, Any]:
    """The job's report. RuntimeError when it did not encode every clip."""
    report: dict[str, Any] = json.loads((output / dataset.REPORT_FILE).read_text("utf-8"))
    if report["rows_out"] != clips:
        raise RuntimeError(
            f"the job encoded {report['rows_out']} of {clips} clips: {report['rejects']}"
        )
    return report


def run_job(corpus: Path, codec: str, folder: Path) -> dict[str, Any]:
    """The report of the job, whose dataset is left in `folder`/dataset."""
    output, log = folder / "dataset", folder / "job.log"
    environment = plain_environment() | {
        "RAY_ADDRESS": "local",  # never a cluster that others run on this machine
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with log.open("wb") as file:
        done = subprocess.run(
            job_words(corpus, output, codec),
            check=False,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        end = log.read_text("utf-8", "replace")[-4000:]
        raise RuntimeError(f"the job ended with exit status {done.returncode}:\n{end}")
    return read_report(output, len(read_clips(corpus)))


def codes_of(location: Path) -> dict[str, list[list[int]]]:
    table = pads.dataset(location, format="parquet").to_table(columns=["id", "snac_codes"])
    return dict(zip(table["id"].to_pylist(), table["snac_codes"].to_pylist(), strict=True))


def differing(ours: dict[str, list[list[int]]], theirs: dict[str, list[list[int]]]) -> str:
    """How many codes of the same clips differ; codes that only one side has do."""
    codes = unequal = 0
    for name, levels in ours.items():
        for level, other in zip(levels, theirs[name], strict=True):
            codes += max(len(level), len(other))
            unequal += abs(len(level) - len(other))
            unequal += sum(a != b for a, b in zip(level, other, strict=False))
    return f"{unequal:,} of {codes:,} codes ({unequal / codes:.2%})"


def compare(corpus: Path, codec: str, sides: list[str], folder: Path) -> None:
    processes = len(os.sched_getaffinity(0))
    baseline_codes = folder / "baseline.parquet"
    rates: dict[str, float] = {}
    if "baseline" in sides:
        figures = measure(corpus, codec, "--output", str(baseline_codes))
        rates["baseline"] = figures["audio_seconds"] / figures["seconds"]
        print(f"baseline: {json.dumps(figures)}", file=sys.stderr, flush=True)
    if "bare" in sides:
        figures = measure(corpus, codec, "--bare", str(processes))
        rates["bare"] = figures["audio_seconds"] / figures["seconds"]
        print(f"bare: {json.dumps(figures)}", file=sys.stderr, flush=True)
    if "job" in sides:
        report = run_job(corpus, codec, folder)
        run = report["this_run"]
        print(f"job: {json.dumps(run)}", file=sys.stderr, flush=True)
        if run["steady"] is None:
            raise RuntimeError("too few blocks for a steady rate; give more --minutes")
        rates |= {"job": run["steady"], "job, whole": report["audio_seconds_per_second"]}
    print("| | audio s/s | beside the baseline | beside bare |")
    print("|---|---|---|---|")
    for side, rate in rates.items():
        cells = [SIDES[side].format(processes=processes), f"{rate:.2f}"]
        cells += [f"{rate / rates['baseline']:.2f}" if "baseline" in rates else "-"]
        cells += [f"{rate / rates['bare']:.0%}" if "bare" in rates else "-"]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nBars of the steady rate: {FACTOR_BAR} times the baseline, {SHARE_BAR:.0%} of bare.")
    if {"baseline", "job"} <= set(sides):
        ours = codes_of(folder / "dataset" / dataset.ENCODED)
        print(
            "The baseline's and the job's codes, each resampled in its own way: "
            f"{differing(ours, codes_of(baseline_codes))} differ."
        )
    same = measure(corpus, codec, "--agree", str(AGREEING_CLIPS))
    print(
        f"Sheen's codec and SNAC.encode on the same waveforms, {same['clips']} clips: "
        f"{same['differing']:,} of {same['codes']:,} codes differ."
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of audio; (default: 10)")
    parser.add_argument("--codec", help="folder; default: the published shape, random weights")
    sides = [side for side in SIDES if "," not in side]
    parser.add_argument("--sides", nargs="+", default=sides, choices=sides)
    parser.add_argument(
        "--folder", type=Path, help="where corpus and codec are kept; default: a temporary one"
    )
    options = parser.parse_args(argv)
    # Short, because Ray's sockets lie in it: their paths have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="sheen-", ignore_cleanup_errors=True) as work:
        kept = options.folder or Path(work)
        corpus = make_corpus(kept.resolve(), options.minutes)
        codec = options.codec or str(make_codec(kept.resolve()))
        print(
            f"{date.today()}, torch {torch.__version__}, ray {ray.__version__}, "
            f"{len(os.sched_getaffinity(0))} cores ({processor()}), {len(read_clips(corpus))} clips"
            f", {options.minutes:g} minutes\n",
            flush=True,
        )
        compare(corpus, str(Path(codec).resolve()), options.sides, Path(work))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
