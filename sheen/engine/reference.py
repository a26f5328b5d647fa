"""A reference: a recording of a voice, and its words, as what a request is spoken in.

Owns what becomes of a recording before it is encoded (mono at the codec's rate, without silence at
its ends, cut to whole frames), what recording and text may not be, and the prompt: how both stand
before a text. Every refusal says what to give instead. What a model was taught of references is in
its checkpoint; whose recording may be used is not asked here.
"""

import io

import numpy as np
import torch
from numpy.typing import NDArray

from sheen.audio.clipping import clipped_per_second
from sheen.audio.io import AudioError, resampled
from sheen.audio.samples import NO_SAMPLES, Samples
from sheen.audio.stream import AudioFile
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec, WindowCodec
from sheen.engine.types import Reference, RequestError
from sheen.text.prompt import PromptTemplate, normalize, one_turn_text

SHORTEST_S, LONGEST_S = 1.0, 30.0
"""Of a recording, as vLLM-Omni has it."""
BEST = "3 to 10 s of one voice, that begin and end in a pause"
SILENT = 0.01
"""Largest sample of what is no speech, of full scale."""
QUIET = 0.01
"""Below this share of the largest sample there is silence at the ends, of which KEPT_S stay."""
KEPT_S = 0.2
CLIPPED_PER_SECOND = 10.0
"""A recording with more clipped places distorts the voice that is taken from it."""
SLOWEST, FASTEST = 1.5, 40.0
"""Characters a second: nobody speaks as slowly or as fast, in syllables or in letters."""


def read_recording(data: bytes, codec: WindowCodec, longest_s: float = LONGEST_S) -> Samples:
    """The speech of a whole file's bytes `[n]`, at the codec's rate, in whole frames.

    No more of it is decoded than `longest_s`. Raises RequestError.
    """
    samples, rate = _decoded(data, longest_s)
    peak = float(np.abs(samples).max(initial=0.0))
    if peak < SILENT:
        raise RequestError(
            "ref_audio",
            f"the recording is silent (its largest sample is {peak:.4f} of full scale): give "
            f"{BEST}",
        )
    clipped = clipped_per_second(samples, rate)
    if clipped > CLIPPED_PER_SECOND:
        raise RequestError(
            "ref_audio",
            f"the recording is clipped ({clipped:.0f} places a second): record it at a lower level",
        )
    loud = np.flatnonzero(np.abs(samples) >= QUIET * peak)
    kept = round(KEPT_S * rate)
    samples = resampled(
        samples[max(0, loud[0] - kept) : loud[-1] + 1 + kept], rate, codec.sample_rate
    )
    seconds = len(samples) / codec.sample_rate
    if seconds < SHORTEST_S:
        raise RequestError(
            "ref_audio",
            f"the recording has {seconds:.2f} s of speech, expected {SHORTEST_S:g} to "
            f"{longest_s:g} s: give {BEST}",
        )
    # Whole frames: the model goes on after the last one, which must not be half silence.
    block = codec.frame_samples * codec.block_frames
    return samples[: len(samples) // block * block]


def _decoded(data: bytes, longest_s: float) -> tuple[Samples, int]:
    parts, count = [NO_SAMPLES], 0
    try:
        with AudioFile(io.BytesIO(data)) as file:
            for samples in file.blocks():
                parts.append(samples)
                count += len(samples)
                if count > longest_s * file.rate:
                    raise RequestError(
                        "ref_audio",
                        f"the recording is longer than {longest_s:g} s: give {BEST}, and the words "
                        "of that part",
                    )
            if file.faults:
                raise AudioError("unreadable", f"decoding failed at {min(file.faults):.2f} s")
            return np.concatenate(parts), file.rate
    except AudioError as error:
        raise RequestError(
            "ref_audio", f"no readable recording ({error}): give a WAV, FLAC, MP3 or Ogg file"
        ) from error


def encode_recording(codec: Codec, layout: TokenLayout, samples: Samples) -> NDArray[np.int16]:
    """Codes `[frames, tokens_per_frame]` of what `read_recording` gives."""
    return layout.interleave(codec.encode([torch.from_numpy(samples)])[0])


def check_text(text: str, seconds: float) -> None:
    """Raise RequestError for a text, in its spoken form, that is not what is said in a recording
    of so many seconds. Only its length is compared."""
    characters = len(normalize(text))
    if not characters:
        raise RequestError("ref_text", "the text is empty: give the words of the recording")
    if not SLOWEST <= characters / seconds <= FASTEST:
        raise RequestError(
            "ref_text",
            f"{characters} characters in {seconds:.1f} s of speech: this text is not what is said "
            "in the recording. Give its words, all of them and no others",
        )


def reference_prompt(
    template: PromptTemplate,
    layout: TokenLayout,
    reference: Reference,
    text: str,
    instruction: str | None = None,
) -> tuple[list[int], int]:
    """Token ids of a prompt that ends where the text's own audio begins, and how many of the first
    ones requests with this reference may have in common.

    Of one turn these are all: the text stands before the codes, so that the same text alone has
    the same keys and values. A name stands in neither: the voice is nobody's that the model knows.
    """
    codes = layout.to_ids(reference.frames).tolist()
    if reference.form == "one-turn":
        words = one_turn_text(reference.text, text)
        ids = [*template.ids(words, None, instruction), *codes]
        return ids, len(ids)
    turn = [*template.ids(reference.text), *codes, layout.end_id, *template.tail]
    return [*turn, *template.ids(text, None, instruction)], len(turn)
