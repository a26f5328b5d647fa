"""Speaker embeddings of segments: which parts of a segment are embedded, and those of known voices.

Owns the parts and their lengths. The network is `sheen.scoring.speaker_id`'s. A part that is too
short or silent has no embedding.

Shapes: n samples, D dimensions of an embedding.
"""

import numpy as np
from numpy.typing import NDArray

from sheen.audio.samples import Samples
from sheen.scoring.packaged import RATE, UnscorableError
from sheen.scoring.speaker_id import SpeakerEncoder, read_speakers

EMBED_SECONDS = 3.0
"""Length of the embedded part, from the middle of a segment; more adds little."""
MIN_SECONDS = 1.5
"""A segment with less speech has no reliable embedding: it gets the speaker of its neighbor."""
END_SECONDS = 1.75
"""Length of either end that is embedded too, where the segment has both: one window of the network,
1.6 s, after up to 0.15 s of silence."""

Floats = NDArray[np.float64]
MIDDLE, START, END = COLUMNS = ("embedding", "embedding_start", "embedding_end")
"""The parts, by their columns in the output."""


def embed(encoder: SpeakerEncoder, samples: Samples, sample_rate: int) -> Floats | None:
    """The embedding `[D]` of the middle of a segment's speech `[n]`; None if it is too short or
    silent."""
    return _embed(encoder, {MIDDLE: _middle(samples, sample_rate)}, sample_rate)[MIDDLE]


def embed_parts(
    encoder: SpeakerEncoder, samples: Samples, sample_rate: int
) -> dict[str, Floats | None]:
    """The embeddings `[D]` of a segment's middle and of its ends, by COLUMNS, in one pass of the
    network; None for what is too short or silent."""
    parts = {MIDDLE: _middle(samples, sample_rate)}
    count = round(END_SECONDS * sample_rate)
    if len(samples) >= 2 * count:
        parts |= {START: samples[:count], END: samples[-count:]}
    return dict.fromkeys(COLUMNS) | _embed(encoder, parts, sample_rate)


def embed_examples(encoder: SpeakerEncoder, location: str) -> dict[str, Floats]:
    """By name, the embeddings `[m, D]` of a speaker's recordings, from an LJSpeech folder or a
    manifest of `{"audio": ..., "speaker": ...}`. ValueError names the file, and a speaker without
    enough speech."""
    examples: dict[str, Floats] = {}
    for name, clips in read_speakers(location, RATE, needs_text=False).items():
        points = [point for clip in clips if (point := embed(encoder, clip, RATE)) is not None]
        if not points:
            raise ValueError(
                f"{location}: speaker {name!r} has no recording with {MIN_SECONDS:g} s of speech"
            )
        examples[name] = np.stack(points)
    if not examples:
        raise ValueError(f"{location}: no row has a speaker; give one for each example")
    return examples


def _middle(samples: Samples, sample_rate: int) -> Samples:
    """Empty where the segment is too short."""
    if len(samples) < MIN_SECONDS * sample_rate:
        return samples[:0]
    taken = min(len(samples), round(EMBED_SECONDS * sample_rate))
    first = (len(samples) - taken) // 2
    return samples[first : first + taken]


def _embed(
    encoder: SpeakerEncoder, parts: dict[str, Samples], sample_rate: int
) -> dict[str, Floats | None]:
    windows = {}
    for name, part in parts.items():
        try:
            windows[name] = encoder.windows(part, sample_rate)
        except UnscorableError:
            continue
    points = encoder.embed_windows(list(windows.values()))
    return dict.fromkeys(parts) | dict(zip(windows, points, strict=True))
