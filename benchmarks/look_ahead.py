"""What a shorter look-ahead costs: the error of the first chunk, beside what it saves.

Recordings are encoded, and their first chunk decoded with 0, 1, 2 and all frames of look-ahead. The
error is beside the exact decode of the same codes with the same noise, over the chunk and over its
last 10 ms, where the missing frames are heard; and as the step where the next chunk, which is
exact, sets in, beside the largest step between two samples that the exact decode has nearby.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sheen.audio.io import decode_audio
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec, load_codec
from sheen.engine.streaming import StreamingDecoder

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits"
EDGE_S = 0.01


def decibels(error: NDArray[np.float64], signal: NDArray[np.float64]) -> float:
    """Energy of the error below that of the signal."""
    return float(10 * np.log10(np.sum(signal) / max(float(np.sum(error)), 1e-20)))


def measure(codec: Codec, clips: list[NDArray[np.float32]], first: int) -> None:
    layout = TokenLayout(1, codec.codebook_size, codec.strides)
    edge = round(EDGE_S * codec.sample_rate)
    whole = codec.window(0, 1, None).stop - 1
    milliseconds = 1e3 * codec.frame_samples / codec.sample_rate
    print(
        "| look-ahead, frames | sooner, ms | signal to error, dB | in the last 10 ms, dB | "
        "largest error, % of peak | step at the seam |"
    )
    print("|---|---|---|---|---|---|")
    encoded = []
    for clip in clips:
        (codes,) = codec.encode([torch.from_numpy(clip)])
        frames = layout.interleave(codes)[first:]
        levels = [level[None] for level in layout.deinterleave(frames)]
        encoded.append((frames, codec.decode(levels, [0])[0].numpy()))
    for look_ahead in range(whole + 1):
        sums = np.zeros(4)
        largest, seams = [], []
        for frames, exact in encoded:
            decoder = StreamingDecoder(codec, layout, 0, look_ahead=look_ahead)
            chunk = decoder.decode(layout.to_ids(frames[: 1 + look_ahead]))
            assert len(chunk) == codec.frame_samples
            expected = exact[: len(chunk)]
            error = (chunk - expected).astype(np.float64) ** 2
            signal = expected.astype(np.float64) ** 2
            sums += [error.sum(), signal.sum(), error[-edge:].sum(), signal[-edge:].sum()]
            largest.append(np.abs(chunk - expected).max() / np.abs(exact).max())
            near = np.abs(np.diff(exact[len(chunk) - edge : len(chunk) + edge])).max()
            seams.append(np.abs(exact[len(chunk)] - chunk[-1]) / near)
        print(
            f"| {look_ahead} | {milliseconds * (whole - look_ahead):.0f} | "
            f"{decibels(sums[:1], sums[1:2]):.1f} | {decibels(sums[2:3], sums[3:]):.1f} | "
            f"{100 * np.mean(largest):.2f} | {np.mean(seams):.2f} |"
        )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", default=str(DIGITS / "codec"), help="folder or hub id")
    parser.add_argument("--wavs", default=str(DIGITS / "heldout" / "wavs"), help="folder")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--first", type=int, default=4, help="frames left out: silence is exact")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    codec = load_codec(options.codec)
    paths = sorted(Path(options.wavs).glob("*.flac"))
    paths = paths[:: max(1, len(paths) // options.clips)][: options.clips]
    clips = [decode_audio(path.read_bytes(), codec.sample_rate) for path in paths]
    print(f"{len(clips)} recordings, from frame {options.first} on, first chunk of one frame")
    measure(codec, clips, options.first)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
