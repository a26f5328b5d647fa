"""Parts "passes" and "prefill": what a pass over slots costs, and the first of a shape.

A decode pass at 450 positions a request, beside the time in which the memory gives what it must
read; then one pass under the profiler: how many kernels, the ten dearest, and which kernel computes
attention. What a server does before it is ready: every shape once. Then a prompt and a window of
the codec, the first and the second time of their lengths.
"""

import os
from collections import Counter
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile

from acceptance.bench import Bench
from acceptance.floors import body_weights, convolution_bytes, pass_bytes
from acceptance.models import codec_layout, published_codec, random_codes, serving_lm
from sheen.engine.audio.streaming import BATCH_COUNTS, DEFAULT_RAMP, WindowShapes
from sheen.engine.generation import TokenGenerator
from sheen.engine.types import Sampling
from sheen.lm.model import SpeechLM

PROMPT = 41
POSITIONS = 450
"""Of a request in the middle of a sentence."""
PASSES = 30
ATTENTION = ("flash", "fmha", "cudnn", "sdpa", "attention", "mem_eff", "pytorch_flash")
NEW_SHAPE = 2.0
"""The first time of a shape may take this many times as long as the second."""


def check_passes(bench: Bench) -> None:
    model = serving_lm(bench.device, bench.small)
    positions = bench.pick(POSITIONS, 60)
    for slots, running in bench.pick(
        [(1, 1), (64, 64), (256, 256), (256, 1)], [(1, 1), (4, 4), (4, 1)]
    ):
        _check_pass(bench, model, slots, running, positions)
        bench.release()  # of the slots
    # At the end: a profiler is the likeliest to fail of all that is used here.
    for slots in bench.pick([1, 256], [1, 4]):
        _profile(bench, model, slots, positions)
        bench.release()


def _check_pass(bench: Bench, model: SpeechLM, slots: int, running: int, positions: int) -> None:
    generator = _running(model, slots, running, positions)
    _read(generator)
    seconds = bench.seconds(generator.step, bench.pick(PASSES, 2))
    floor = pass_bytes(model, running, positions) / bench.ceilings.copy
    bench.row(
        f"decode pass, {running} of {slots} slots run",
        1e3 * seconds,
        "ms",
        floor=1e3 * floor,
        bound="bytes of weights, keys and values",
        tokens_per_second=running / seconds,
    )


def check_prefill(bench: Bench) -> None:
    model = serving_lm(bench.device, bench.small)
    slots = 8
    length = bench.pick(150, 30)
    generator = TokenGenerator(model, slots, length + 16)
    codec = published_codec(bench.device, bench.small)
    shapes = WindowShapes.of(codec, DEFAULT_RAMP, None, bench.pick(BATCH_COUNTS[-1], 1))
    bench.row(
        "every shape of steps, prompts and windows, once",
        bench.seconds(lambda: generator.prepare(every_shape=True))
        + bench.seconds(lambda: shapes.compute_all(codec)),
        "s",
        windows=len(shapes.lengths) * len(shapes.counts),
    )
    # Kernels load at their first use, whatever the shape.
    _prefill(bench, generator, 1, length - 20)
    for prompts in (1, slots):
        first, second = (_prefill(bench, generator, prompts, length + prompts) for _ in range(2))
        flops = 2.0 * body_weights(model) * prompts * (length + prompts)
        floor = max(
            flops / bench.ceilings.bfloat16,
            body_weights(model) * model.lm.dtype.itemsize / bench.ceilings.copy,
        )
        bench.row(
            f"prefill of {prompts} x {length + prompts} tokens",
            1e3 * second,
            "ms",
            floor=1e3 * floor,
            bound="FLOPs or bytes of weights",
            expected=f"the first within {NEW_SHAPE:g} times",
            passed=bench.judged(first <= NEW_SHAPE * second),
            first_ms=1e3 * first,
        )
    layout = codec_layout(codec)
    for batch, frames in bench.pick([(1, 4), (1, 10), (16, 18)], [(1, 4), (2, 6)]):
        codes = [layout.deinterleave(random_codes(layout, frames, row)) for row in range(batch)]
        levels = [np.stack(level) for level in zip(*codes, strict=True)]
        seeds = range(batch)
        first, second = (
            bench.seconds(lambda: codec.decode(levels, seeds))  # noqa: B023
            for _ in range(2)
        )
        least = convolution_bytes(codec, lambda: codec.decode(levels, seeds))  # noqa: B023
        audio = batch * frames * codec.frame_samples / codec.sample_rate
        bench.row(
            f"codec window of {batch} x {frames} frames",
            1e3 * second,
            "ms",
            floor=1e3 * least / bench.ceilings.copy,
            bound="bytes of the convolutions' inputs and outputs",
            expected=f"the first within {NEW_SHAPE:g} times",
            passed=bench.judged(first <= NEW_SHAPE * second),
            first_ms=1e3 * first,
            audio_seconds_per_second=audio / second,
        )


def _running(model: SpeechLM, slots: int, running: int, positions: int) -> TokenGenerator:
    """Requests that stand at `positions` without having got there: what the cache holds between
    costs the same to read."""
    generator = TokenGenerator(model, slots, positions + 2 * PASSES + 80)
    generator.prepare()
    prompt = [1] * (PROMPT - 1) + [model.layout.start_id]
    for slot in range(running):
        generator.start(slot, prompt, Sampling(seed=slot), positions + 2 * PASSES, 10**9)
    while not all(request.step for request in generator._requests.values()):
        generator.step()
    for request in generator._requests.values():
        request.step = positions - PROMPT
    generator.step()
    return generator


def _read(generator: TokenGenerator) -> None:
    step = generator.step()
    assert step is not None
    if step.failed:
        raise next(iter(step.failed.values()))
    step.read()


def _prefill(bench: Bench, generator: TokenGenerator, prompts: int, length: int) -> float:
    layout = generator.layout
    for slot in range(prompts):
        prompt = [1] * (length - 1) + [layout.start_id]
        generator.start(slot, prompt, Sampling(seed=slot), 4, 4)

    def until_all_began() -> None:
        while not all(request.step for request in generator._requests.values()):
            _read(generator)

    seconds = bench.seconds(until_all_began)
    for slot in range(prompts):
        generator.stop(slot)
    return seconds


def _profile(bench: Bench, model: SpeechLM, slots: int, positions: int) -> None:
    generator = _running(model, slots, slots, positions)
    # As torch does for graphs of its own compiler: they crash a profiler that starts a second time.
    os.environ |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    with profile(activities=activities) as profiler:
        _read(generator)
        bench.synchronize()
    wanted = "CUDA" if bench.on_gpu else "CPU"
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    events: Any = profiler.events()
    for event in events:
        if event.device_type.name == wanted:
            kernel = event.name[:80]
            calls[kernel] += 1
            elapsed = event.time_range.elapsed_us()
            spent[kernel] += round(elapsed if bench.on_gpu else event.self_cpu_time_total)
    attention = sorted(name for name in calls if any(part in name.lower() for part in ATTENTION))
    bench.row(
        f"kernels of a pass of {slots} slots",
        sum(calls.values()),
        "kernels",
        expected="attention's is named, and none is cuDNN's",
        passed=bench.judged(bool(attention) and not any("cudnn" in name for name in attention)),
        attention=attention,
        microseconds=sum(spent.values()),
        dearest=[[name, micros, calls[name]] for name, micros in spent.most_common(10)],
    )
