"""Voice activity: samples in, in any pieces; the probability of speech of every 32 ms out.

Owns the network and the state that it carries: Silero VAD (MIT), in the form that takes a sequence
of frames, which package faster-whisper has inside. A recording is never in memory whole, and how it
is cut into pieces changes nothing. What is made of the probabilities is `sheen.prepare.cutting`'s.

Shapes: n samples at RATE, f frames of FRAME samples.
"""

import numpy as np
from numpy.typing import NDArray

from sheen.audio.samples import NO_SAMPLES, Samples
from sheen.scoring.packaged import package_file

RATE = 16_000
"""Sample rate of the network, Hz."""
FRAME = 512
"""Samples of a frame: 32 ms."""
_CONTEXT = 64
"""Samples before each frame that the network sees with it."""
_FRAMES = 256
"""Frames of a call: its speed no longer grows beyond."""

Probabilities = NDArray[np.float32]


class VoiceActivity:
    """The network on one recording, on one thread. `reset` makes it forget, for the next one."""

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model_file(), options, providers=["CPUExecutionProvider"]
        )
        self.reset()

    def reset(self) -> None:
        self._hidden = np.zeros((1, 1, 128), np.float32)
        self._cell = np.zeros((1, 1, 128), np.float32)
        self._waiting = np.zeros(
            _CONTEXT, np.float32
        )  # the context of the next frame, then samples

    def push(self, samples: Samples) -> Probabilities:
        """The next samples `[n]`; probabilities `[f]` of the frames that they complete."""
        self._waiting = np.concatenate([self._waiting, samples])
        found = [np.zeros(0, np.float32)]
        while (count := min((len(self._waiting) - _CONTEXT) // FRAME, _FRAMES)) > 0:
            if count < _FRAMES and len(samples):
                break
            found.append(self._run(count))
        return np.concatenate(found)

    def flush(self) -> Probabilities:
        """Of all that is left, the last frame filled up with silence."""
        left = (len(self._waiting) - _CONTEXT) % FRAME
        if left:
            self._waiting = np.pad(self._waiting, (0, FRAME - left))
        return self.push(NO_SAMPLES)

    def _run(self, count: int) -> Probabilities:
        used = self._waiting[: _CONTEXT + count * FRAME]
        frames = np.lib.stride_tricks.sliding_window_view(used, _CONTEXT + FRAME)[::FRAME]
        inputs = {"input": np.ascontiguousarray(frames), "h": self._hidden, "c": self._cell}
        output, self._hidden, self._cell = self._session.run(None, inputs)
        self._waiting = self._waiting[count * FRAME :]
        probabilities: Probabilities = output.reshape(-1)
        return probabilities


def model_file() -> str:
    """The network's file. ValueError where the package is another version without it."""
    return str(package_file("faster_whisper", "assets/silero_vad_v6.onnx"))
