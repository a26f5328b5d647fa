"""A GPU that is not there: its tensors hold nothing, so any value that is asked for is an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda")


class Copies(TorchDispatchMode):
    """Sizes of what was copied from the host to the device, in all and by a copy that waits; and of
    what was pinned for it."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[torch.Size] = []
        self.waiting: list[torch.Size] = []
        self.pinned: list[torch.Size] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        to = str(kwargs.get("device"))
        copied = func is torch.ops.aten._to_copy.default
        if copied and args[0].device.type == "cpu" and to.startswith("cuda"):
            self.all.append(args[0].shape)
            if not kwargs.get("non_blocking"):
                self.waiting.append(args[0].shape)
        return func(*args, **kwargs)

    def clear(self) -> None:
        """Forget the copies of a start."""
        for made in (self.all, self.waiting, self.pinned):
            made.clear()

    def check(self) -> None:
        """No copy waited: CUDA copies from pinned memory alone without a wait."""
        assert not self.waiting
        assert self.pinned == self.all


@contextmanager
def imagined_gpu(patch: pytest.MonkeyPatch) -> Iterator[Copies]:
    copies = Copies()

    def pin(tensor: Tensor) -> Tensor:
        copies.pinned.append(tensor.shape)
        return tensor

    patch.setattr(Tensor, "pin_memory", pin)
    with FakeTensorMode(allow_non_fake_inputs=True), copies:
        yield copies
