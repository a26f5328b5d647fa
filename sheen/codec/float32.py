"""TF32 off while a codec computes on a GPU.

TF32's 10 bits break near ties between codes otherwise than a CPU, and make windows differ from the
whole (decision 0022). The setting is the process's: it holds for all threads, and lasts until the
last of those that ask for it has left.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0
_outside: list[str] = []
"""The settings before the first context was entered."""


@contextmanager
def full_float32() -> Iterator[None]:
    """cuDNN computes in float32 within, for every thread.

    All of its settings say so: where they differ, reading them by torch's older API, as other
    libraries do, is an error.
    """
    global _inside, _outside
    cudnn: Any = torch.backends.cudnn  # torch's stub lacks its parts
    parts = cudnn.conv, cudnn.rnn
    with _lock:
        if _inside == 0:
            _outside = [part.fp32_precision for part in parts]
            cudnn.allow_tf32 = False
            for part in parts:
                part.fp32_precision = "ieee"  # also where all of torch was told otherwise
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                cudnn.allow_tf32 = _outside[0] == "tf32"
                for part, before in zip(parts, _outside, strict=True):
                    part.fp32_precision = before
