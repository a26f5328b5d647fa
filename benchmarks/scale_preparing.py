"""Preparing by arithmetic: hours of recordings per GPU hour, and the cores that feed the GPU.

Owns the formulas of `sheen prepare` as its code works: all recordings are cut first, on cores; then
a worker for each GPU transcribes one segment at a time, and computes its spectrogram on a core
while the GPU waits. Tasks on the other cores read the segments meanwhile, measure their sound and
embed their speakers.
"""

import math
from dataclasses import dataclass

from scale_machines import (
    ASR_CALL_S,
    CLIP_S,
    CUT_S,
    DECODER_CALLS,
    EMBED_S,
    ENCODER_CALLS,
    FEATURES_S,
    GENERATE,
    READ_S,
    RTX_3070_TI,
    SEGMENT_ROWS,
    TASKS,
    TASKS_PER_SECOND,
    TOKEN_CALLS,
    TRANSCRIBE,
    Device,
    Machine,
)
from scale_shapes import BFLOAT16, INT8, Whisper

TEXT_PER_SECOND, MARKS = 4.0, 3
"""Tokens of a second of speech (as in scale_jobs.py), and of each segment: its times and its
end."""
MODELS = (
    Whisper("tiny.en", 384, 4, 4),
    Whisper("base", 512, 6, 6),
    Whisper("small", 768, 12, 12),
    Whisper("large-v3-turbo", 1280, 32, 4, mels=128),
    Whisper("large-v3", 1280, 32, 32, mels=128),
)
"""Published shapes (their config.json)."""
LARGE_V2 = Whisper("large-v2", 1280, 32, 32)
AT_ONCE = 16
PUBLISHED_S, PUBLISHED_BEAM, PUBLISHED_BATCH = 13 * 60, 5, 8
"""Of faster-whisper's README: the length of its recording, its beam, and the larger of its batch
sizes."""
FEEDING_S = READ_S + EMBED_S / CLIP_S
"""CPU seconds per second of audio of the tasks that feed the workers."""
PACKED_S = 28.0
"""Of a recording that is transcribed in one go lie in a window (assumed)."""


def transcribing(
    model: Whisper,
    device: Device,
    text: float,
    clips: int = 1,
    beam: int = 1,
    word_times: bool = True,
) -> float:
    """Seconds of a device for `clips` segments, together, with so many tokens of text in each."""
    on_cpu = device.kind == "CPU"
    itemsize, call = (INT8, 0.0) if on_cpu else (BFLOAT16, ASR_CALL_S)
    # A CPU reads the weights for each token as generating does. What is published of a GPU has
    # windows and tokens in one figure.
    job = GENERATE if on_cpu else TRANSCRIBE
    tokens = text + MARKS
    window = device.seconds(model.window(itemsize) * clips, TRANSCRIBE, itemsize)
    window += call * ENCODER_CALLS * model.encoder_layers
    a_step = call * (DECODER_CALLS * model.decoder_layers + TOKEN_CALLS)
    # The hypotheses of a beam share the keys and values of their window.
    one = model.step(clips, itemsize, beam)
    steps = tokens * (device.seconds(one, job, itemsize) + a_step)
    # Word times come of one more pass over all tokens.
    again = device.seconds(model.step(clips, itemsize, tokens), job, itemsize) + a_step
    return window + steps + again * word_times


def published(clips: int) -> float:
    """Seconds for the recording of faster-whisper's README, so many windows at once."""
    batches = math.ceil(PUBLISHED_S / PACKED_S / clips)
    text = TEXT_PER_SECOND * PUBLISHED_S / batches / clips
    return batches * transcribing(
        LARGE_V2, RTX_3070_TI, text, clips, PUBLISHED_BEAM, word_times=False
    )


@dataclass(frozen=True)
class Preparing:
    """Seconds for a second of audio, on one GPU and its share of the machine's cores."""

    gpu: float
    """Of the GPU, one segment at a time."""
    batched: float
    """Of the GPU, AT_ONCE segments at a time."""
    worker: float
    """Of the worker: the GPU, and what it does on a core while the GPU waits."""
    cutting: float
    """Of all cores, before the first segment is transcribed."""
    parts: dict[str, float]
    """What runs at the same time after cutting."""

    @property
    def seconds(self) -> float:
        return self.cutting + max(self.parts.values())

    @property
    def bottleneck(self) -> str:
        slowest = max(self.parts, key=lambda part: self.parts[part])
        if slowest != "worker":
            return slowest
        return "GPU" if self.gpu > self.worker / 2 else "a core that the GPU waits for"

    @property
    def cores(self) -> float:
        """Busy while transcribing: the worker's, and those that read for it."""
        return 1 + FEEDING_S / max(self.parts.values())


def prepare(model: Whisper, machine: Machine, devices: int = 1) -> Preparing:
    """For segments of CLIP_S."""
    cores = machine.cores / machine.devices
    text = TEXT_PER_SECOND * CLIP_S
    gpu = transcribing(model, machine.device, text) / CLIP_S
    worker = gpu + FEATURES_S / CLIP_S
    parts = {
        "worker": worker,
        "cores that read": FEEDING_S / max(1.0, cores - 1),
        "Ray's tasks": devices * TASKS / (SEGMENT_ROWS * CLIP_S) / TASKS_PER_SECOND,
    }
    batched = transcribing(model, machine.device, text, AT_ONCE) / AT_ONCE / CLIP_S
    return Preparing(gpu, batched, worker, CUT_S / cores, parts)
