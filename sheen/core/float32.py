"""float32 on a GPU: torch lets cuDNN round a convolution's inputs to TF32, which has 10 bits.

Owns that process-wide setting while a codec computes: whoever comes first takes TF32 away, whoever
leaves last gives it back. Rounded so, near ties between codes fall otherwise than on a CPU, and a
window of a stream no longer decodes to what the whole has there. Matrix products are left alone:
torch computes them in float32 unless it is told otherwise.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside = 0
_outside = ""
"""The setting while nobody is inside."""


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions are in float32 within, for every thread."""
    global _inside, _outside
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined] # torch's stub lacks it
    with _lock:
        if _inside == 0:
            _outside = convolutions.fp32_precision
            convolutions.fp32_precision = "ieee"
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                convolutions.fp32_precision = _outside
