"""Where one decode step's time goes: a profile of the engine's pass, the top costs named.

Every operator is put under the part of the step that called it: matrix products of the body, of
the head, attention, the cache, sampling, the rest.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from workload import Shape, make_base

from sheen.engine.generation import TokenGenerator
from sheen.engine.sampler import Sampling, SlotSampler
from sheen.engine.voice import load_voice
from sheen.lm import kv_cache
from sheen.lm.cpu_kernels import PackedLinear
from sheen.lm.kv_cache import SlotCache
from sheen.lm.model import SpeechLM

STEPS = 40


def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **others: Any) -> Any:
        with record_function(name):
            return function(*arguments, **others)

    return call


def name_parts(model: SpeechLM) -> None:
    """Mark the parts of a step, in this process."""
    SlotSampler.choose = named(SlotSampler.choose, "part: sampling")  # type: ignore[method-assign]
    SlotCache.write = named(SlotCache.write, "part: cache")  # type: ignore[method-assign]
    for name in ("_slot_by_slot", "_all_slots"):
        function = getattr(kv_cache, name)
        setattr(kv_cache, name, named(function, "part: attention"))
    for module in model.lm.base_model.modules():
        if isinstance(module, torch.nn.Linear | PackedLinear):
            module.forward = named(module.forward, "part: products of the body")  # type: ignore[method-assign]
        elif "Norm" in type(module).__name__:
            module.forward = named(module.forward, "part: norms")  # type: ignore[method-assign]
    model.lm.base_model.forward = named(model.lm.base_model.forward, "whole body")  # type: ignore[method-assign]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="checkpoint folder; default: Qwen3-0.6B's shape, random")
    parser.add_argument("--layers", type=int, default=28, help="of that shape")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--past", type=int, default=200, help="tokens before the profiled steps")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.model:
        model = load_voice(options.model).model
    else:
        shape = Shape(options.layers)
        lm = make_base(shape).eval().requires_grad_(False).bfloat16()
        model = SpeechLM(lm, shape.layout)
    prompt = [*range(100, 139), model.layout.start_id]
    total = options.past + 2 * STEPS
    decoder = TokenGenerator(model, options.streams, len(prompt) + total + 10)
    for slot in range(options.streams):
        decoder.start(slot, prompt, Sampling(seed=slot), total + 10, total + 10)
    for _ in range(options.past):
        decoder.step()
    started = time.perf_counter()
    for _ in range(STEPS):
        decoder.step()
    plain = (time.perf_counter() - started) / STEPS
    name_parts(model)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            decoder.step()
    events = {event.key: event for event in profiler.key_averages()}
    parts: dict[str, float] = defaultdict(float)
    for key, event in events.items():
        if key.startswith("part: "):
            parts[key.removeprefix("part: ")] = event.cpu_time_total
    body = events["whole body"].cpu_time_total
    inside = sum(time_ for name, time_ in parts.items() if name != "sampling")
    operators = sum(event.self_cpu_time_total for event in events.values())
    parts["rest of the body"] = body - inside
    parts["head, and putting the pass together"] = operators - body - parts["sampling"]
    print(f"{options.streams} streams, {options.past} tokens each: {1e3 * plain:.2f} ms per step")
    print("| part | share of the operators' time |\n|---|---|")
    for name, time_ in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"| {name} | {100 * time_ / operators:.1f}% |")
    print("\n| operator, itself | share |\n|---|---|")
    own = sorted(events.values(), key=lambda event: -event.self_cpu_time_total)
    for event in [event for event in own if event.key.startswith("aten::")][:8]:
        print(f"| {event.key} | {100 * event.self_cpu_time_total / operators:.1f}% |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
