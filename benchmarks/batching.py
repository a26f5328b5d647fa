"""Eight concurrent requests against one: what batching in the engine is worth.

Run by `make bench`. Both sides run in this process, one after the other, on the same checkpoint,
text, sampling and codec, audio decoded on both sides; the figure is the ratio of the time until
the last of eight requests submitted together has all its audio to the time that one takes alone.
Without batching the ratio is 8.
"""

import argparse
import queue
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sheen.core.engine import Engine, Finished, Request, Samples
from sheen.core.sampling import Sampling
from sheen.core.voice import load_voice

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MODEL = ROOT / "examples" / "digits" / "voice"


def seconds_for(engine: Engine, requests: Sequence[Request]) -> float:
    """Submit all at once; seconds until the last has finished."""
    ends: queue.SimpleQueue[float] = queue.SimpleQueue()

    def sink(item: Samples | Finished) -> None:
        if isinstance(item, Finished):
            ends.put(time.monotonic())

    started = time.monotonic()
    for request in requests:
        engine.submit(request, sink)
    return max(ends.get() for _ in requests) - started


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="checkpoint folder")
    parser.add_argument("--seconds", type=float, default=2.0, help="audio per request, seconds")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    try:
        voice = load_voice(options.model)
    except ValueError as error:
        print(f"benchmarks/batching.py: error: {error}", file=sys.stderr)
        return 2
    speaker = voice.info.voices[0] if voice.info.voices else None
    requests = []
    for seed in range(8):
        request = voice.request("four two seven", speaker, Sampling(seed=seed), options.seconds)
        # Every request equally long, whatever the model would like.
        requests.append(replace(request, min_frames=request.max_frames))
    engine = Engine(voice.model, voice.codec, max_batch=8)
    seconds_for(engine, requests)  # warm-up
    ratios = []
    for number in range(options.rounds):
        one = seconds_for(engine, requests[:1])
        eight = seconds_for(engine, requests)
        ratios.append(eight / one)
        print(f"round {number + 1}: one {one:.2f} s, eight {eight:.2f} s, ratio {eight / one:.2f}")
    engine.close()
    print(f"eight at once take {statistics.median(ratios):.2f} times as long as one (median)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
