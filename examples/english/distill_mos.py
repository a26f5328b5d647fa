"""DistillMOS: a second judge of how natural speech sounds, 1 to 5, beside DNSMOS.

Owns the call of package distillmos (MIT; Stahl and Gamper 2025), whose weights are in the package:
nothing is downloaded. It is installed without dependencies, of which its network needs only
xls-r-sqa's layers.
"""

import contextlib
import importlib.util
import logging
import sys

import numpy as np
import torch
from numpy.typing import NDArray

from sheen.scoring.packaged import UnscorableError, prepare_clip

PACKAGES = {"distillmos": "distillmos==0.9.1", "xls_r_sqa": "xls-r-sqa==0.1.0"}

logger = logging.getLogger(__name__)


class DistillMos:
    """The network, on the CPU: about 1.5 seconds of a core per clip of up to 7.7 s.

    Raises ValueError when a package is not installed.
    """

    def __init__(self) -> None:
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(
                f"package {missing[0]} is not installed: pip install --no-deps "
                + " ".join(PACKAGES.values())
            )
        from distillmos import ConvTransformerSQAModel

        with contextlib.redirect_stdout(sys.stderr):  # it prints where its weights are
            self._network = ConvTransformerSQAModel().eval()

    @torch.inference_mode()
    def score(self, waveform: NDArray[np.float32], sample_rate: int) -> float | None:
        """Of a waveform `[n]`; None where it is silent or too short."""
        try:
            clip = prepare_clip(waveform, sample_rate)
        except UnscorableError as error:
            logger.warning("no DistillMOS: %s", error)
            return None
        return float(self._network(torch.from_numpy(clip)[None]))
