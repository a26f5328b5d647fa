"""Whether the encode job's memory grows with the corpus: its peak at 8 times the clips beside 1.

Run by `make bench`. Each size runs on a Ray head of its own whose object store is capped, with the
corpus as a JSONL manifest: once, and with every clip listed eight times under other ids. Sampled
while the job runs: the head's processes, the workers, the driver (PSS, so that shared pages count
once) and the object store's pages in /dev/shm, see `encoding_processes.py`. The baseline is the
job itself at one time the clips; the bar is on the ratio of the two peaks.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from encoding import ROOT, job_words, plain_environment, read_report
from encoding_corpus import make_codec, make_corpus, read_clips
from encoding_processes import Watch

from sheen.runs import loopback

BAR = 0.15
"""Most growth of the peak."""
READY_TIMEOUT_S = 180
PARTS = 8
"""Of the peak's processes, so many names are printed, largest first."""


def write_manifest(corpus: Path, times: int, path: Path) -> int:
    """The whole corpus `times` times, one after another; returns the number of rows."""
    clips = read_clips(corpus)
    rows = [
        {"audio": str(clip.path), "text": clip.text, "id": f"{clip.name}-{turn}"}
        for turn in range(times)
        for clip in clips
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return len(rows)


@contextmanager
def ray_head(folder: Path, store_bytes: int) -> Iterator[tuple[int, dict[str, str]]]:
    """A head of this benchmark alone: the id of its first process, and how jobs reach it.

    `ray stop` would stop every Ray of this machine, so it is ended by its own processes' ids.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = plain_environment() | {
        **loopback.settings(folder),
        # Workers run the `python` of the head's PATH.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    words = ["ray", "start", "--head", "--block", f"--port={port}"]
    words += ["--include-dashboard=false", f"--object-store-memory={store_bytes}"]
    words += [f"--temp-dir={folder}"]
    log = folder / "head.log"
    with log.open("wb") as file:
        head = subprocess.Popen(
            words,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the benchmark, which stops it in order
        )
    watch = Watch([head.pid], 1.0)  # only to know its processes
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while "Ray runtime started" not in log.read_text("utf-8", "replace"):
            if head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the head did not start:\n{log.read_text('utf-8', 'replace')}")
            time.sleep(0.2)
        yield head.pid, environment
    finally:
        started = watch.ours()
        head.send_signal(signal.SIGTERM)  # `ray start --block` then stops its node
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()
        for process in started & watch.ours():
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it has just ended by itself


def run_size(manifest: Path, rows: int, codec: str, options: argparse.Namespace) -> Watch:
    """One job on a head of its own, watched from its start to its end."""
    # Short, because Ray's sockets lie in it: their paths have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="sheen-", ignore_cleanup_errors=True) as work:
        folder = Path(work)
        output, log = folder / "dataset", folder / "job.log"
        with ray_head(folder, round(options.store * 1e6)) as (head, environment):
            with log.open("wb") as file:
                driver = subprocess.Popen(
                    job_words(manifest, output, codec),
                    cwd=ROOT,
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            with Watch([head, driver.pid], options.period) as watch:
                try:
                    status = driver.wait()
                finally:
                    driver.kill()  # Ctrl-C here must not leave it behind
        if status:
            end = log.read_text("utf-8", "replace")[-4000:]
            raise RuntimeError(f"the job ended with exit status {status}:\n{end}")
        report = read_report(output, rows)
        print(
            f"{rows} clips: {report['audio_seconds_per_second']} audio s/s, {watch.samples} samples"
            f", at most {watch.longest_gap:.2f} s apart; largest of the peak, MB: "
            + ", ".join(
                f"{name} {size / 1e6:.0f}" for name, size in watch.peak.parts.most_common(PARTS)
            ),
            flush=True,
        )
    return watch


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="of audio, once; (default: 20)")
    parser.add_argument("--times", type=int, default=8, help="how often the clips are listed")
    parser.add_argument("--codec", help="folder; default: the published shape, random weights")
    parser.add_argument(
        "--store", type=float, default=200.0, help="cap of the object store, MB; (default: 200)"
    )
    parser.add_argument("--period", type=float, default=0.2, help="between samples, seconds")
    parser.add_argument(
        "--folder", type=Path, help="where corpus and codec are kept; default: a temporary one"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="sheen-", ignore_cleanup_errors=True) as work:
        kept = (options.folder or Path(work)).resolve()
        corpus = make_corpus(kept, options.minutes)
        codec = str(Path(options.codec or make_codec(kept)).resolve())
        watches: dict[int, Watch] = {}
        for times in (1, options.times):
            manifest = Path(work) / f"{times}.jsonl"
            rows = write_manifest(corpus, times, manifest)
            watches[times] = run_size(manifest, rows, codec, options)
    print("\n| corpus | processes, MB | object store, MB | both at once, MB | beside 1x |")
    print("|---|---|---|---|---|")
    base = watches[1].peak.total
    for times, watch in watches.items():
        peaks = [watch.peak_processes, watch.peak_store, watch.peak.total]
        cells = [f"{times}x", *(f"{peak / 1e6:.0f}" for peak in peaks)]
        print(f"| {' | '.join(cells)} | {watch.peak.total / base:.2f} |")
    growth = watches[options.times].peak.total / base - 1
    print(
        f"\nPeaks with the store capped at {options.store:g} MB. The peak of processes and store "
        f"grows by {growth:.1%} (bar: {BAR:.0%})."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
