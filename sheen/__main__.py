"""Speak one text from a checkpoint, without Ray: `python -m sheen "four two" --model DIR`."""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers.utils.logging import disable_progress_bar

from sheen.audio.io import Samples, to_pcm16
from sheen.config import fail
from sheen.engine.engine import Engine
from sheen.engine.joining import wordless
from sheen.engine.sampler import Sampling
from sheen.engine.types import Finished, FinishReason, Request
from sheen.engine.voice import Voice, load_voice, stream
from sheen.text.segmentation import has_word

PROG = "python -m sheen"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(PROG, description=__doc__)
    parser.add_argument("text")
    parser.add_argument("--model", required=True, help="checkpoint folder, path or URI")
    parser.add_argument("--voice", help="one of the model's voices")
    parser.add_argument("-o", "--output", default="out.wav", help="WAV file (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=Sampling.temperature, help="(default: %(default)s)"
    )
    parser.add_argument("--top-k", type=int, default=Sampling.top_k, help="(default: off)")
    parser.add_argument(
        "--top-p", type=float, default=Sampling.top_p, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=30.0, help="longest audio (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    options = parser.parse_args(argv)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        _check_output(Path(options.output))
        _check_device(options.device)
        voice = load_voice(options.model, options.device)
        sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
        request = None
        if has_word(options.text) or not options.text.strip():
            text = voice.spoken(options.text)
            request = voice.request(text, options.voice, sampling, options.max_seconds)
    except ValueError as error:
        return fail(PROG, error)
    started = time.monotonic()
    if request is None:
        samples, reason = wordless(voice.codec.sample_rate), "the text, which has no word"
    else:
        samples, reason = _speak(voice, request)
    soundfile.write(options.output, to_pcm16(samples), voice.codec.sample_rate, "PCM_16")
    print(
        f"{options.output}: {len(samples) / voice.codec.sample_rate:.2f} s of audio in "
        f"{time.monotonic() - started:.2f} s, ended by {reason}"
    )
    return 0


def _speak(voice: Voice, request: Request) -> tuple[Samples, FinishReason]:
    max_seq_len = request.seq_len(voice.model.layout)
    engine = Engine(voice.model, voice.codec, slots=1, max_seq_len=max_seq_len)
    chunks: list[Samples] = [np.zeros(0, np.float32)]
    reason: FinishReason = "stop"
    for item in stream(engine, request):
        if isinstance(item, Finished):
            reason = item.reason
        else:
            chunks.append(item)
    engine.close()
    return np.concatenate(chunks), reason


def _check_output(path: Path) -> None:
    """Before any work: a file that cannot be written should not cost a synthesis."""
    if path.suffix.lower() != ".wav":
        raise ValueError(f"--output {path}: expected a name that ends in .wav")
    if not path.parent.is_dir():
        raise ValueError(f"--output {path}: no folder {path.parent}")


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    sys.exit(main())
