"""Voice activity: samples in, in blocks of any size; the probability of speech every 32 ms out.

Owns the network and its state: Silero VAD (MIT), in the version for sequences of frames, which is
part of package faster-whisper. A recording is never in memory as a whole, and the block sizes do
not affect the result. The probabilities are used by `sheen.prepare.cutting.cut`.

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
"""Samples before each frame that the network also gets."""
_FRAMES = 256
"""Frames per call; more are not faster."""

Probabilities = NDArray[np.float32]


class VoiceActivity:
    """The network on one recording, on one thread. Call `reset` before the next recording."""

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
        """Take the next samples `[n]`; returns probabilities `[f]` of completed frames."""
        self._waiting = np.concatenate([self._waiting, samples])
        found = [np.zeros(0, np.float32)]
        while (count := min((len(self._waiting) - _CONTEXT) // FRAME, _FRAMES)) > 0:
            if count < _FRAMES and len(samples):
                break
            found.append(self._run(count))
        return np.concatenate(found)

    def flush(self) -> Probabilities:
        """Probabilities of the remaining frames, the last one padded with silence."""
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
    """The network's file. ValueError if the installed version of the package does not have it."""
    return str(package_file("faster_whisper", "assets/silero_vad_v6.onnx"))
