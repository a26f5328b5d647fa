"""The corpus and the codec of the encoding benchmarks, made once and kept in a folder.

The corpus is an LJSpeech folder of FLAC clips, 44.1 kHz mono 16-bit, lengths uniform from 1 to 15
seconds: sentences of the English demo said one after another and cut, the same for the same
minutes. The codec has the published 24 kHz shape and random weights, which cost what trained ones
cost. Measures nothing.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from published import PUBLISHED, make_snac

from sheen.audio.io import decode_audio, encode_audio
from sheen.codec.info import CONFIG_FILE, WEIGHTS_FILE

DEMO = Path(__file__).resolve().parent.parent / "examples" / "english" / "demo"
VOICE = "af_bella"
METADATA_FILE = "metadata.csv"
RATE = 44_100
SHORTEST_S, LONGEST_S = 1.0, 15.0
SEED = 0


@dataclass(frozen=True)
class Clip:
    name: str
    text: str
    path: Path


def read_clips(corpus: Path) -> list[Clip]:
    """The clips of a corpus that `make_corpus` made, in its order."""
    rows = (corpus / METADATA_FILE).read_text("utf-8").splitlines()
    parts = [row.split("|") for row in rows]
    return [Clip(name, text, corpus / "wavs" / f"{name}.flac") for name, text in parts]


def make_corpus(folder: Path, minutes: float) -> Path:
    """The corpus of so many minutes in `folder`; made if it is not there whole."""
    corpus = folder / f"corpus-{minutes:g}-minutes"
    if (corpus / METADATA_FILE).is_file():  # written last
        return corpus
    (corpus / "wavs").mkdir(parents=True, exist_ok=True)
    recordings = _recordings()
    generator = np.random.default_rng(SEED)
    order = _shuffled(len(recordings), generator)
    rows: list[str] = []
    left = round(60 * minutes * RATE)
    while left > 0:
        count = round(RATE * generator.uniform(SHORTEST_S, LONGEST_S))
        samples, text = _say(count, recordings, order)
        name = f"clip-{len(rows):05d}"
        (corpus / "wavs" / f"{name}.flac").write_bytes(encode_audio(samples, RATE, "FLAC"))
        rows.append(f"{name}|{text}\n")
        left -= count
    (corpus / METADATA_FILE).write_text("".join(rows), "utf-8")
    return corpus


def _recordings() -> list[tuple[NDArray[np.float32], str]]:
    """Samples at RATE and words of the demo's recordings."""
    rows = map(json.loads, (DEMO / f"{VOICE}.jsonl").read_text("utf-8").splitlines())
    return [(decode_audio((DEMO / row["audio"]).read_bytes(), RATE), row["text"]) for row in rows]


def _shuffled(count: int, generator: np.random.Generator) -> Iterator[int]:
    """All of `count` in random order, and again in another, without end."""
    while True:
        yield from generator.permutation(count).tolist()


def _say(
    count: int, recordings: list[tuple[NDArray[np.float32], str]], order: Iterator[int]
) -> tuple[NDArray[np.float32], str]:
    """`count` samples of recordings one after another, the last cut, and their words."""
    pieces: list[NDArray[np.float32]] = []
    words: list[str] = []
    while count > 0:
        samples, text = recordings[next(order)]
        spoken = text.split()
        # Of a cut recording about as many words as are heard, for filters of the speech rate.
        words += spoken[: math.ceil(len(spoken) * min(1.0, count / len(samples)))]
        pieces.append(samples[:count])
        count -= len(pieces[-1])
    return np.concatenate(pieces), " ".join(words)


def make_codec(folder: Path) -> Path:
    """The published shape with random weights in `folder`; made if it is not there whole."""
    codec = folder / "codec-24khz"
    if (codec / CONFIG_FILE).is_file():  # written last
        return codec
    codec.mkdir(parents=True, exist_ok=True)
    torch.save(make_snac().state_dict(), codec / WEIGHTS_FILE)
    (codec / CONFIG_FILE).write_text(json.dumps(PUBLISHED, indent=2) + "\n", "utf-8")
    return codec


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where both are kept; default: a temporary one")
    parser.add_argument("--minutes", type=float, default=20.0, help="(default: %(default)s)")
    options = parser.parse_args(argv)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="sheen-encoding-"))
    print(make_corpus(folder, options.minutes))
    print(make_codec(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
