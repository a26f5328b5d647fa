"""One listener of a running server: when they hear something, beside `generate`'s whole sentence.

    sheen serve
    python benchmarks/first_audio.py --url http://127.0.0.1:8000

Each sentence is asked of the server, and then generated and decoded whole in this process by
transformers' generate, from the same checkpoint with its own sampling: that is how long a program
without streaming lets its user wait. The server is idle meanwhile.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from serve import TEXTS, lines_of
from serve_client import Endpoint, UsageError, ask, base_of, first_id, open_session
from serving import DEFAULT_MODEL
from serving_sides import generate_alone

from sheen.engine.voice import Voice, load_voice
from sheen.lm.model import SpeechLM
from sheen.lm.model_files import load_model

LONGEST_S = 30.0
WARM_UP = 3
"""The first sentences are also asked before, uncounted."""


def whole_seconds(voice: Voice, plain: SpeechLM, text: str, seed: int) -> float:
    """How long `generate` and the codec take for all of a sentence."""
    started = time.perf_counter()
    speaker = voice.info.voices[0] if voice.info.voices else None
    prompt = voice.model_input(text)
    tokens = generate_alone(plain, voice.request(prompt, speaker, voice.sampling(seed), LONGEST_S))
    layout = plain.layout
    whole = len(tokens) // layout.tokens_per_frame * layout.tokens_per_frame
    frames = layout.from_ids(np.array(tokens[:whole], np.int64))
    voice.codec.decode([level[None] for level in layout.deinterleave(frames)], [seed])
    return time.perf_counter() - started


async def measure(options: argparse.Namespace) -> None:
    """Print both medians and their ratio. Raises UsageError."""
    voice = load_voice(options.model)
    plain, _ = load_model(Path(options.model), voice.info.token_layout)
    plain.lm.eval().requires_grad_(False)
    heard, first, whole = [], [], []
    async with open_session("", 60.0) as session:
        model = await first_id(session, f"{options.url}/v1/models", "data", "--model")
        name = await first_id(session, f"{options.url}/v1/audio/voices", "voices", "--voice")
        endpoint = Endpoint(options.url, model, name, "pcm", "audio")
        texts = lines_of(TEXTS)[: options.sentences]
        for number, text in enumerate([*texts[:WARM_UP], *texts]):
            outcome = await ask(session, endpoint, text)
            if not outcome.ok or outcome.first_byte is None or outcome.listener.audible is None:
                refused = "refused" if outcome.refused else ""
                raise UsageError(f"{text!r}: {outcome.error or refused or 'no audible sample'}")
            seconds = await asyncio.to_thread(whole_seconds, voice, plain, text, number)
            if number < WARM_UP:
                continue
            first.append(outcome.first_byte - outcome.asked)
            heard.append(outcome.listener.audible - outcome.asked)
            whole.append(seconds)
    print("| median of | s | compared with generate |")
    print("|---|---|---|")
    print(f"| generate: the whole sentence | {np.median(whole):.2f} | 1.00 |")
    for row, times in (("first byte of audio", first), ("first audible sample", heard)):
        ratios = np.array(times) / np.array(whole)
        print(f"| server: {row} | {np.median(times):.2f} | {np.median(ratios):.2f} |")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--url", type=base_of, default="http://127.0.0.1:8000", help="(default: %(default)s)"
    )
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="the server's checkpoint")
    parser.add_argument("--sentences", type=int, default=100)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        asyncio.run(measure(options))
    except UsageError as error:
        print(f"benchmarks/first_audio.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
