"""Copies between the host and the device that computes, for which neither waits.

`to_device` is for the small tensors of a step. `Transfers` is for work that comes in batches: on a
GPU they go there from pinned memory on a stream of their own, and results come back the same way,
so that copying a batch and computing another overlap. On a CPU nothing is copied. Imports nothing
of this package.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device.

    To a GPU by way of pinned memory: before it copies any other, CUDA waits until all that was
    asked of the device is done.
    """
    if device.type != "cuda" or host.is_cuda:
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


class Transfers:
    """Copies to and from one device. torch reuses pinned memory for the next tensor of its size."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pins = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._pins else None

    def zeros(self, *size: int) -> Tensor:
        """Float32 zeros on the host, to be filled and uploaded."""
        return torch.zeros(size, pin_memory=self._pins)

    def upload(self, host: Tensor) -> Tensor:
        """A tensor from `zeros` on the device. The host does not wait; later kernels do."""
        if self._stream is None:
            return host
        with torch.cuda.stream(self._stream):
            copied = host.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        copied.record_stream(computing)  # else its memory is another's as soon as it is freed here
        return copied

    def download(self, tensor: Tensor) -> Callable[[], Tensor]:
        """A function that waits for the copy on the host and returns it."""
        if self._stream is None:
            return lambda: tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        def wait() -> Tensor:
            done.synchronize()
            return host

        return wait
