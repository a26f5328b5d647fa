"""The whole prepare job on Ray: its speed, its memory over time, its workers' busy share.

    python benchmarks/preparing_job.py --asr TINY_EN --hours 10
    python benchmarks/preparing_job.py --asr TINY_EN --hours 3 --files 1 180

Joins the recordings of the English demo, with pauses, to one file of so many hours, or to so many
files of as many hours together, and prepares them on a Ray that the job starts. Once a second it
looks at every process of the job: CPU seconds count for what the process calls itself then, which
is Ray's name for the task or actor. Memory is what each process has alone, plus the most that any
shares, which is Ray's object store. Run it with nothing else on the machine.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from preparing import make_recording

ROOT = Path(__file__).resolve().parents[1]
EACH_S = 1.0
TENTHS = 10
CUT, RANGE, READ = "cut_sources", "measure_range", "read_segments"
ASR, COMMIT = "TranscribeWorker", "commit_rows"
KINDS = {
    CUT: "cutting",
    RANGE: "cutting",
    READ: "reading, measuring and embedding",
    ASR: "transcribing",
    COMMIT: "committing",
}
DRIVER, OTHER = "driver", "Ray, and starting workers"
BAR_SPEED, BAR_CPU = 4.0, 0.05
"""Times realtime on two idle cores with tiny.en; CPU seconds per second of audio of all but the
ASR."""


@dataclass
class Sample:
    at: float
    megabytes: float
    cpu: dict[str, float]
    """Seconds since the sample before, by kind."""
    workers: int
    """Actors that transcribe."""


@dataclass
class Watch:
    """Samples of a process and all of its descendants, until it ends."""

    samples: list[Sample] = field(default_factory=list)
    _seen: dict[tuple[int, float], float] = field(default_factory=dict)

    def take(self, driver: psutil.Process, at: float) -> None:
        alone = shared = 0
        cpu: dict[str, float] = defaultdict(float)
        workers = 0
        for process in [driver, *driver.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied), process.oneshot():
                memory, times = process.memory_info(), process.cpu_times()
                title = " ".join(process.cmdline())
                kind = DRIVER if process == driver else self._kind(title)
                key = process.pid, process.create_time()
                spent = times.user + times.system
                cpu[kind] += spent - self._seen.get(key, 0.0)
                self._seen[key] = spent
                alone += memory.rss - memory.shared
                shared = max(shared, memory.shared)
                workers += ASR in title
        self.samples.append(Sample(at, (alone + shared) / 2**20, dict(cpu), workers))

    @staticmethod
    def _kind(title: str) -> str:
        return next((shown for name, shown in KINDS.items() if name in title), OTHER)

    def spent(self) -> dict[str, float]:
        total: dict[str, float] = defaultdict(float)
        for sample in self.samples:
            for kind, seconds in sample.cpu.items():
                total[kind] += seconds
        return dict(total)

    def during(self, kind: str) -> list[Sample]:
        """From the first sample in which such a process computed to the last."""
        busy = [place for place, each in enumerate(self.samples) if each.cpu.get(kind, 0.0) > 0.05]
        return self.samples[busy[0] : busy[-1] + 1] if busy else []

    def share(self, kind: str, processes: int) -> tuple[float, float]:
        """Seconds that a stage took, and the share of them that its processes computed."""
        samples = self.during(kind)
        if len(samples) < 2:
            return 0.0, 0.0
        took = samples[-1].at - samples[0].at
        return took, sum(each.cpu.get(kind, 0.0) for each in samples[1:]) / took / processes


def measure(inputs: Path, output: Path, asr: str, more: list[str]) -> tuple[Watch, float]:
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), "--input", str(inputs)]
    command += ["--output", str(output), "--asr", asr, "--language", "en", *more]
    watch, started = Watch(), time.monotonic()
    ended = threading.Event()
    own = os.environ | {"RAY_ADDRESS": "local"}  # never a cluster that others run on this machine
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=own) as job:
        driver = psutil.Process(job.pid)

        def sample() -> None:
            while not ended.wait(EACH_S):
                with suppress(psutil.NoSuchProcess):
                    watch.take(driver, time.monotonic() - started)

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            status = job.wait()
        finally:
            ended.set()
            thread.join()
    if status:
        raise SystemExit(f"the job ended with status {status}")
    return watch, time.monotonic() - started


def report(title: str, watch: Watch, seconds: float, took: float) -> None:
    spent = watch.spent()
    workers = max(sample.workers for sample in watch.samples)
    print(f"{title}: {seconds:.0f} s of audio in {took:.0f} s, {seconds / took:.1f} x realtime "
          f"(at least {BAR_SPEED:g})")  # fmt: skip
    cores = psutil.cpu_count() or 1
    for kind, processes in ((KINDS[CUT], cores), (KINDS[ASR], workers)):
        lasted, share = watch.share(kind, processes)
        print(f"  {kind}: {lasted:.0f} s, {share:.0%} of {processes} processes computing")
    for kind, each in sorted(spent.items(), key=lambda pair: -pair[1]):
        print(f"  {kind}: {each:.1f} CPU s, {each / seconds:.4f} per second of audio")
    rest = sum(spent.values()) - spent.get(KINDS[ASR], 0.0)
    print(f"  all but the ASR: {rest / seconds:.4f} CPU s per second of audio "
          f"(at most {BAR_CPU:g})")  # fmt: skip
    found = [sample.megabytes for sample in watch.samples]
    means = [
        sum(part) / len(part)
        for tenth in range(TENTHS)
        if (part := found[len(found) * tenth // TENTHS : len(found) * (tenth + 1) // TENTHS])
    ]
    print("  memory of all processes by tenths of the time, MB: "
          + " ".join(f"{mean:.0f}" for mean in means) + f"; at most {max(found):.0f}",
          flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--asr", required=True, help="as of `sheen prepare`, such as tiny.en")
    parser.add_argument("--hours", type=float, default=1.0, help="of each input, together")
    parser.add_argument("--files", type=int, nargs="+", default=[1], help="of each input")
    parser.add_argument("--format", choices=["flac", "mp3", "ogg"], default="mp3")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="flags of the job")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for count in args.files:
            inputs = Path(name) / f"in-{count}"
            inputs.mkdir()
            seconds = sum(
                make_recording(inputs / f"{place:04d}.{args.format}", args.hours / count, place)
                for place in range(count)
            )
            watch, took = measure(inputs, Path(name) / f"out-{count}", args.asr, args.more)
            report(f"{count} files of {args.format}", watch, seconds, took)
            shutil.rmtree(inputs)


if __name__ == "__main__":
    main()
