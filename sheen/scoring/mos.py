"""DNSMOS P.835: mean opinion scores of speech predicted by a network, 1 to 5.

Owns the windows and the polynomials around the network (Reddy, Gopal and Cutler 2022), which is in
package speechmos. It was trained on noisy recordings before and after noise suppression: it detects
noise, distortion and missing bands, but does not consider the words or the voice.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sheen.scoring.packaged import RATE, package_file, prepare_clip

_WINDOW = 144_160  # samples that the network takes: 9.01 s
# From the network's output to the scale of opinion scores; highest power first.
_SIG = (-0.08397278, 1.22083953, 0.0052439)
_BAK = (-0.13166888, 1.60915514, -0.39604546)
_OVRL = (-0.06766283, 1.11546468, 0.04602535)


@dataclass(frozen=True)
class Mos:
    """Mean opinion scores of ITU-T P.835: overall, of the speech alone, and of the background."""

    ovrl: float
    sig: float
    bak: float


class Dnsmos:
    """The network; on as many threads as torch has in this process.

    Raises ValueError when the package is not installed.
    """

    def __init__(self) -> None:
        import onnxruntime

        path = package_file("speechmos", "dnsmos_models/sig_bak_ovr.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    def score(self, waveform: NDArray[np.float32], sample_rate: int) -> Mos:
        """The means over windows of 9.01 s that begin every second; a shorter clip is repeated.

        Raises UnscorableError for a clip that is empty, too short or silent.
        """
        clip = prepare_clip(waveform, sample_rate)
        while len(clip) < _WINDOW:
            clip = np.tile(clip, 2)
        # As the package counts them: one fewer than fit, but at least one.
        starts = [RATE * second for second in range(max(1, len(clip) // RATE - 9))]
        raw = np.array(
            [
                self._session.run(None, {"input_1": clip[None, start : start + _WINDOW]})[0][0]
                for start in starts
            ],
            np.float64,
        )
        sig, bak, ovrl = (
            float(np.polyval(polynomial, column).mean())
            for polynomial, column in zip((_SIG, _BAK, _OVRL), raw.T, strict=True)
        )
        return Mos(ovrl, sig, bak)
