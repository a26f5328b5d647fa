"""Part "train": tokens per second of the product's own step at the shape of Qwen3-0.6B.

bfloat16 over float32 weights, packed rows of one length, AdamW and clipping included. Compiled
first, and each way by itself: one that does not fit the memory leaves the others measured. Tokens
are those of clips, pads do not count. The floor is the arithmetic of the loss at the rate of large
matrix products. One step in which torch refuses to wait for the device. One save: how long steps
wait for the copy to the host, and how long they take while a thread writes the file, as the train
job's does.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from workload import draw_clips, pack_row

from acceptance.bench import Bench
from acceptance.learner_checks import compiling
from acceptance.models import published_lm
from sheen.lm.batching import Batch
from sheen.lm.model import SpeechLM
from sheen.lm.packing import plan_rows
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.learner import Learner, take_step
from sheen.train.learning.metrics import MetricsWindow, peak_flops, training_flops

GOAL = 110_000.0
"""Tokens per second."""
GRAPHS = 3


@dataclass(frozen=True)
class Way:
    text: str
    row: int
    """Tokens."""
    warm_up: int
    steps: int
    compiles: bool
    seconds: float
    """Needed, about."""
    saves: bool = False


FULL = [
    Way("compiled, rows of 8,192", 8192, 6, 10, True, 45, saves=True),
    Way("eager, rows of 8,192", 8192, 2, 6, False, 10),
    Way("compiled, rows of 32,768", 32_768, 4, 8, True, 30),
    Way("compiled, rows of 16,384", 16_384, 4, 8, True, 30),
]
SMALL = [
    Way("compiled, rows of 256", 256, 1, 1, True, 0, saves=True),
    Way("eager, rows of 256", 256, 1, 1, False, 0),
]


def check(bench: Bench) -> None:
    best = 0.0
    for way in bench.pick(FULL, SMALL):
        if bench.left < way.seconds:
            bench.skip(way.text, "no time was left")
            continue
        try:
            best = max(best, _measure(bench, way))
        except torch.OutOfMemoryError as error:
            bench.row(
                way.text,
                0,
                "tokens/s",
                expected="fits the memory",
                passed=False,
                error=str(error).splitlines()[0],
            )
        bench.release()
    bench.row(
        "trained on at best",
        best,
        "tokens/s",
        expected=f">= {GOAL:,.0f} on an H200",
        passed=bench.judged(best >= GOAL, on="H200"),
    )


def _measure(bench: Bench, way: Way) -> float:
    model = published_lm(bench.device, torch.float32, bench.small)
    group = Collectives(bench.device)
    rows = _rows(model, way.row, bench.small)
    bench.release()
    with compiling(bench) as graphs:
        learner = Learner(
            model,
            group,
            strategy="ddp",
            precision="bfloat16",
            compile_layers=way.compiles,
            learning_rate=1e-5,
        )
        window = MetricsWindow(group)
        counted = [0, 0]

        def step() -> None:
            batch, tokens = next(rows)
            counted[0] += tokens
            counted[1] += len(batch.targets)
            take_step(
                learner,
                group,
                window,
                [batch],
                weights=[1.0] * model.layout.levels,
                guide_weight=0.0,
                rate=1e-5,
                seed=0,
            )

        started = time.monotonic()
        for _ in range(way.warm_up):
            step()
        bench.synchronize()
        warm_up, before = time.monotonic() - started, graphs()
        counted[:] = [0, 0]
        seconds = way.steps * bench.seconds(step, way.steps)
        made = graphs()
        tokens, targets = counted
        peak = bench.peak_memory()
        per_token, per_target = training_flops(model)
        flops = per_token * tokens + per_target * targets
        data_sheet = peak_flops(bench.device)
        bench.row(
            way.text,
            tokens / seconds,
            "tokens/s",
            floor=tokens / (flops / bench.ceilings.bfloat16),
            bound="FLOPs at the rate of a matrix product",
            expected=f"1 to {GRAPHS} graphs, none after the warm-up" if way.compiles else "",
            passed=bench.judged(1 <= made <= GRAPHS and made == before) if way.compiles else None,
            seconds_per_step=seconds / way.steps,
            share_of_data_sheet=flops / seconds / data_sheet if data_sheet else None,
            warm_up_s=warm_up,
            graphs=made,
            peak_bytes=peak,
        )
        if way.saves:  # with the graphs that are there: outside they would be compiled again
            _check_waits(bench, step)
            _save(bench, learner, step, seconds / way.steps)
    return tokens / seconds


def _rows(model: SpeechLM, size: int, small: bool) -> Iterator[tuple[Batch, int]]:
    """Rows of one length without end, and how many tokens of clips each has."""
    longest = 1.0 if small else 12.0
    clips = draw_clips(32 if small else 2048, longest / 12, longest, model.layout)
    lengths = np.array([len(clip) for clip in clips], dtype=np.int64)
    for row in plan_rows(lengths, lambda _: np.arange(len(clips)), size, seed=0):
        yield pack_row([clips[i] for i in row], model.layout, size), int(lengths[row].sum())


def _check_waits(bench: Bench, step: Callable[[], None]) -> None:
    error = ""
    if bench.on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as found:
        error = str(found).splitlines()[0]
    finally:
        if bench.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    bench.row(
        "a step waits for the device",
        bool(error),
        "of 1",
        expected="0",
        passed=bench.judged(not error),
        error=error,
    )


def _save(bench: Bench, learner: Learner, step: Callable[[], None], alone: float) -> None:
    bench.synchronize()
    started = time.monotonic()
    weights, optimizer = learner.state()
    copied = time.monotonic() - started
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        path = Path(folder) / "state.pt"
        written = pool.submit(torch.save, {"weights": weights, "optimizer": optimizer}, path)
        steps = [bench.seconds(step)]
        while not written.done():
            steps.append(bench.seconds(step))
        written.result()
        seconds = time.monotonic() - started - copied
        size = path.stat().st_size
    bench.row(
        "a step while a save is written",
        sum(steps) / len(steps),
        "s",
        floor=alone,
        bound="a step alone",
        steps=len(steps),
    )
    bench.row(
        "a save: copied to the host, while steps wait",
        copied,
        "s",
        floor=size / bench.ceilings.to_host,
        bound="bytes to pinned memory",
        bytes=size,
        written_s=seconds,
    )
