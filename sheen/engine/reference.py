"""References: a recording of a voice and its transcript, as the voice of a request.

Owns the preparation of a recording (mono at the codec's rate, without silence at its ends, cut to
whole frames), the checks of recording and text, whose messages say what to give instead, and the
prompt with both before a text. Whether a model was trained with references is in its checkpoint.
Permission to use a recording is not checked here.
"""

import io

import numpy as np
import torch
from numpy.typing import NDArray

from sheen.audio.io import AudioError, resampled
from sheen.audio.samples import NO_SAMPLES, Samples, clipped_per_second
from sheen.audio.stream import AudioFile
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec
from sheen.codec.windows import WindowCodec
from sheen.engine.types import Reference, RequestError
from sheen.text.prompt import PromptTemplate, normalize, one_turn_text

SHORTEST_S, LONGEST_S = 1.0, 30.0
"""Bounds on the length of a recording; vLLM-Omni's values."""
BEST = "3 to 10 s of one voice that begin and end in a pause"
SILENT = 0.01
"""A recording whose largest sample is below this is silent; full scale is 1."""
QUIET = 0.01
"""Samples below this share of the largest one are silence at the ends, of which KEPT_S are kept."""
KEPT_S = 0.2
CLIPPED_PER_SECOND = 10.0
"""More clipping would distort the voice."""
SLOWEST, FASTEST = 1.5, 40.0
"""Bounds on characters per second, for any script."""


def read_recording(data: bytes, codec: WindowCodec) -> Samples:
    """The speech in a file's bytes `[n]`, at the codec's rate, in whole frames.

    Decodes at most LONGEST_S. Raises RequestError.
    """
    samples, rate = _decoded(data)
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
            f"{LONGEST_S:g} s: give {BEST}",
        )
    # Whole frames: the model continues after the last one, which must not be padded with silence.
    block = codec.frame_samples * codec.block_frames
    return samples[: len(samples) // block * block]


def _decoded(data: bytes) -> tuple[Samples, int]:
    parts, count = [NO_SAMPLES], 0
    try:
        with AudioFile(io.BytesIO(data)) as file:
            for samples in file.blocks():
                parts.append(samples)
                count += len(samples)
                if count > LONGEST_S * file.rate:
                    raise RequestError(
                        "ref_audio",
                        f"the recording is longer than {LONGEST_S:g} s: give {BEST}, and the "
                        "transcript of that part",
                    )
            if file.faults:
                raise AudioError("unreadable", f"decoding failed at {min(file.faults):.2f} s")
            return np.concatenate(parts), file.rate
    except AudioError as error:
        raise RequestError(
            "ref_audio",
            f"the recording cannot be read ({error}): give a WAV, FLAC, MP3 or Ogg file",
        ) from error


def encode_recording(codec: Codec, layout: TokenLayout, samples: Samples) -> NDArray[np.int16]:
    """Codes `[frames, tokens_per_frame]` of a recording from `read_recording`."""
    return layout.interleave(codec.encode([torch.from_numpy(samples)])[0])


def check_text(text: str, seconds: float) -> None:
    """Raise RequestError for a text, in the model's input form, whose length does not fit the
    length of its recording."""
    characters = len(normalize(text))
    if not characters:
        raise RequestError("ref_text", "the text is empty: give the words of the recording")
    if not SLOWEST <= characters / seconds <= FASTEST:
        raise RequestError(
            "ref_text",
            f"{characters} characters in {seconds:.1f} s of speech: this text is not the "
            "transcript of the recording. Give all of its words and no others",
        )


def reference_prompt(
    template: PromptTemplate,
    layout: TokenLayout,
    reference: Reference,
    text: str,
    instruction: str | None = None,
) -> tuple[list[int], int]:
    """Token ids of a prompt up to the text's own audio, and how many of the first ones requests
    with this reference can share.

    With `one-turn`, where the text precedes the codes, only requests with the same text can share
    them, and then all. The prompt has no speaker name, and no default description of one.
    """
    codes = layout.to_ids(reference.frames).tolist()
    if reference.form == "one-turn":
        words = one_turn_text(reference.text, text)
        ids = [*template.ids(words, "", instruction), *codes]
        return ids, len(ids)
    turn = [*template.ids(reference.text, ""), *codes, layout.end_id, *template.tail]
    return [*turn, *template.ids(text, "", instruction)], len(turn)
