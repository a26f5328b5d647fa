"""Part "streams": how many listeners one device serves, with audio, from an engine of served shape.

Requests of six seconds arrive at random, at the rate at which so many listeners at once ask for
audio; slots are a quarter more. Held are streams of which none runs dry and 95% hear something in
time. With more and more listeners, until some are not held, with a look-ahead of one frame; then at
the most that were held, exact. The KV cache has room for such a request at every slot: how many
requests fit the device of a server's longest, and of a sentence, is told beside it.
"""

import math
import threading
import time
from dataclasses import dataclass

import numpy as np
import torch
from listener import Listener

from acceptance.bench import Bench, percentile
from acceptance.floors import pass_bytes
from acceptance.models import published_codec, serving_lm
from sheen.audio.samples import Samples
from sheen.codec.snac import Codec
from sheen.engine.engine import Engine
from sheen.engine.memory import plan_reserve
from sheen.engine.types import Finished, Request, Sampling
from sheen.lm.cache.kv_cache import SHARE, CacheShape, arena_bytes, free_memory, pages_of
from sheen.lm.model import SpeechLM

TEXT = 40
"""Tokens of a prompt, before `<audio_start>`."""
AUDIBLE_S = {1: 0.100, None: 0.150}
"""95% are to hear something after so long; by the look-ahead in frames (None: exact)."""
SLACK = 1.25
LONGEST, TYPICAL = 3696, 1735
"""Tokens of a server's requests: the longest by default, 30 s of audio and its text; and a sentence
of 6 s, which may take 20 s."""
ARRIVALS_S = 12.0
"""While requests arrive: twice as many as there are listeners."""
RESERVE_S = 10.0
"""For an engine to warm up, and a run to drain."""


class Heard:
    """A sink whose listener plays what comes at once."""

    def __init__(self, rate: int) -> None:
        self.listener = Listener(rate)
        self.asked = time.monotonic()
        self.ending: Finished | None = None
        self.done = threading.Event()

    def __call__(self, item: Samples | Finished) -> None:
        if isinstance(item, Finished):
            self.ending = item
            self.done.set()
        else:
            self.listener.came(time.monotonic(), item)

    @property
    def waited(self) -> float:
        """Seconds to the first audible sample; infinite when there was none."""
        audible = self.listener.audible
        return math.inf if audible is None else audible - self.asked


@dataclass(frozen=True)
class Load:
    listeners: int
    frames: int
    arrivals_s: float
    look_ahead: int | None


def check(bench: Bench) -> None:
    model = serving_lm(bench.device, bench.small)
    codec = published_codec(bench.device, bench.small)
    per_second = codec.sample_rate / codec.frame_samples
    seconds = bench.pick(6.0, 0.4)
    frames = round(seconds * per_second)
    arrivals = bench.pick(ARRIVALS_S, 0.4)
    _room(bench, model)
    held = 0
    waiting = bench.pick([64, 128, 250], [2])
    while waiting and bench.left > arrivals + seconds + RESERVE_S:
        listeners = waiting.pop(0)
        if _serve(bench, model, codec, Load(listeners, frames, arrivals, 1)):
            held = listeners
        elif held or listeners == 1:
            break
        else:
            waiting = [listeners // 2]
    goal = bench.pick(250, 2)
    bench.row(
        "listeners held, look-ahead of a frame",
        held,
        "listeners/device",
        floor=_most_listeners(bench, model, frames, per_second),
        bound="bytes of weights, keys and values of a pass for each token",
        expected=f">= {goal} on an H200",
        passed=bench.judged(held >= goal, on="H200"),
    )
    if bench.left > arrivals + seconds + RESERVE_S:
        _serve(bench, model, codec, Load(max(1, held), frames, arrivals, None))
    else:
        bench.skip(f"{held} listeners, exact", "no time was left")


def _most_listeners(bench: Bench, model: SpeechLM, frames: int, per_second: float) -> float:
    """So many that a pass for all of them takes the time of a token's audio, at the device's
    bandwidth; half-way through requests of `frames`."""
    levels, frame = model.layout.levels, model.layout.tokens_per_frame
    few, more = (
        pass_bytes(model, running, TEXT + frames * frame / 2) for running in (levels, levels + 1)
    )
    in_time = bench.ceilings.copy / (per_second * frame)
    return max(0.0, levels + (in_time - few) / (more - few))


def _room(bench: Bench, model: SpeechLM) -> None:
    """How many requests the device has memory for."""
    page = CacheShape.of(model.lm).page_bytes
    free = free_memory(bench.device) or 0
    for tokens in bench.pick([LONGEST, TYPICAL], [256]):
        each = pages_of(tokens) * page
        bench.row(
            f"requests of {tokens:,} tokens that fit",
            int(SHARE * free) // each,
            "requests",
            bytes_each=each,
        )


def _request(model: SpeechLM, frames: int, seed: int) -> Request:
    words = [(7 * seed + word) % model.layout.first_id for word in range(TEXT)]
    return Request([*words, model.layout.start_id], frames, Sampling(seed=seed), frames)


def _serve(bench: Bench, model: SpeechLM, codec: Codec, load: Load) -> bool:
    """Run a load and report it; whether all were heard in time."""
    held = _run(bench, model, codec, load)
    bench.release()  # of the engine's slots
    return held


def _run(bench: Bench, model: SpeechLM, codec: Codec, load: Load) -> bool:
    slots = math.ceil(SLACK * load.listeners)
    free = free_memory(bench.device) or 0
    engine = Engine(
        model,
        codec,
        slots=slots,
        max_seq_len=_request(model, load.frames, 0).seq_len(model.layout),
        max_queue=10 * slots,
        look_ahead=load.look_ahead,
        warm_up=True,
    )
    length = load.frames * codec.frame_samples / codec.sample_rate
    try:
        # What is set up at the first windows and prompts is not the listeners'.
        _arrive(engine, model, codec, min(4, slots), min(5, load.frames), 0.0)
        count = max(2, round(load.listeners * load.arrivals_s / length))
        started = time.monotonic()
        sinks = _arrive(engine, model, codec, count, load.frames, load.arrivals_s)
        seconds = time.monotonic() - started
        fill = engine.metrics()["batch_fill"]
        _beside(bench, model, codec, engine, free)
    finally:
        engine.close()
    audible = [sink.waited for sink in sinks]
    dry = sum(sink.listener.underruns > 0 for sink in sinks)
    most = AUDIBLE_S[load.look_ahead]
    late = percentile(audible, 0.95)
    held = dry == 0 and late <= most
    name = "exact" if load.look_ahead is None else "look-ahead of a frame"
    bench.row(
        f"{load.listeners} listeners, {name}: first audible sample, p95",
        1e3 * late,
        "ms",
        expected=f"<= {1e3 * most:.0f}, and none runs dry",
        passed=bench.judged(held) if load.look_ahead is None else None,
        p50_ms=round(1e3 * median) if math.isfinite(median := percentile(audible, 0.5)) else None,
        ran_dry=dry,
        requests=count,
        audio_seconds_per_second=sum(sink.listener.seconds for sink in sinks) / seconds,
        batch_fill=fill,
        held=held,
    )
    return held


def _beside(bench: Bench, model: SpeechLM, codec: Codec, engine: Engine, free: int) -> None:
    """What the engine took beside its cache, of memory that was free before it was there."""
    reserve = plan_reserve(model, codec, engine.slots, engine.max_seq_len)
    taken = 0
    if bench.on_gpu:
        # What torch keeps without a use, was used by a step or a window once.
        left, _ = torch.cuda.mem_get_info(bench.device)
        cache = arena_bytes(CacheShape.of(model.lm), int(engine.metrics()["pages"]))
        taken = free - left - cache
    bench.row(
        f"memory beside the KV cache, {engine.slots} slots",
        taken / 1e9,
        "GB",
        expected=f"<= {reserve.total / 1e9:.2f}, as is kept free for it",
        passed=bench.judged(taken <= reserve.total),
        estimate={name: value / 1e9 for name, value in vars(reserve).items()},
    )


def _arrive(
    engine: Engine, model: SpeechLM, codec: Codec, count: int, frames: int, within: float
) -> list[Heard]:
    """So many requests at random times, heard to their ends."""
    generator = np.random.default_rng(0)
    started = time.monotonic()
    sinks: list[Heard] = []
    for seed, due in enumerate(np.sort(generator.uniform(0, within, count))):
        time.sleep(max(0.0, started + float(due) - time.monotonic()))
        sinks.append(Heard(codec.sample_rate))
        engine.submit(_request(model, frames, seed), sinks[-1])
    for sink in sinks:
        sink.done.wait()
        assert sink.ending is not None
        if sink.ending.reason != "length":
            raise RuntimeError(f"a request ended otherwise: {sink.ending}")
    return sinks
