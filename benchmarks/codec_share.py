"""The codec's share of the engine's time, with windows decoded stream by stream and in batches.

Run by `make bench`. All streams generate the same number of frames; then the same tokens are
decoded, stream by stream and in batches: in the windows of a stream that is decoded as its tokens
come, and in those of one that had to wait. Nothing overlaps here, so that the parts can be told
apart.
"""

import argparse
import sys
import time

import torch
from serving import DEFAULT_MODEL

from sheen.engine.generation import TokenGenerator
from sheen.engine.sampler import Sampling
from sheen.engine.streaming import StreamingDecoder, decode_ready
from sheen.engine.voice import Voice, load_voice

FRAMES = 30


def generate(voice: Voice, streams: int) -> tuple[float, list[list[int]]]:
    """Seconds, and the tokens of each stream."""
    layout = voice.model.layout
    count = FRAMES * layout.tokens_per_frame
    prompt = [*range(40), layout.start_id]
    decoder = TokenGenerator(voice.model, streams, len(prompt) + count + 10)
    for slot in range(streams):
        decoder.start(slot, prompt, Sampling(seed=slot), count + 1, count + 1)
    tokens: list[list[int]] = [[] for _ in range(streams)]
    started = time.perf_counter()
    for _ in range(count):
        step = decoder.step()
        assert step is not None
        for slot, token in zip(step.slots, step.read(), strict=True):
            tokens[slot].append(token)
    return time.perf_counter() - started, tokens


def decode(voice: Voice, tokens: list[list[int]], batch: int, waited: bool) -> float:
    """Seconds for the audio of all streams, so many windows at a time."""
    handful = len(tokens[0]) if waited else voice.model.layout.tokens_per_frame
    started = time.perf_counter()
    for first in range(0, len(tokens), batch):
        group = tokens[first : first + batch]
        decoders = [
            StreamingDecoder(voice.codec, voice.model.layout, seed) for seed in range(len(group))
        ]
        for place in range(0, len(tokens[0]), handful):
            for decoder, ids in zip(decoders, group, strict=True):
                decoder.push(ids[place : place + handful])
            decode_ready(decoders)
        for decoder in decoders:
            decoder.finish()
        while any(len(samples) for samples in decode_ready(decoders)):
            pass
    return time.perf_counter() - started


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="checkpoint folder")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    voice = load_voice(options.model)
    generate(voice, options.streams)  # warm-up
    seconds, tokens = generate(voice, options.streams)
    decode(voice, tokens[:1], 1, waited=False)  # warm-up
    print(f"{options.streams} streams of {FRAMES} frames: tokens {seconds:.2f} s")
    print(
        "| windows decoded at once | as tokens come, s | of all time | having waited, s | of all |"
    )
    print("|---|---|---|---|---|")
    for batch in sorted({1, 2, 4, options.streams}):
        cells = [str(batch)]
        for waited in (False, True):
            codec = decode(voice, tokens, batch, waited)
            cells += [f"{codec:.2f}", f"{100 * codec / (codec + seconds):.0f}%"]
        print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
