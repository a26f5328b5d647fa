"""The bounds of the utterances in a packed row, for attention.

Imports only how tensors get to a device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sheen.codec.transfer import to_device


# Not frozen: torch.compile checks every field of a frozen one in every layer, and compiles them
# anew for each number of utterances in a row.
@dataclass(eq=False)
class Segments:
    """The bounds of the utterances in a row: `bounds` `[N + 1]` int32, from 0 to T.

    `lengths` are the same on the host; `longest` is at least the largest of them.
    """

    bounds: Tensor
    lengths: tuple[int, ...]
    longest: int

    @staticmethod
    def of(lengths: list[int]) -> "Segments":
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        # A power of two, so that compiled code meets few values.
        return Segments(bounds, tuple(lengths), 1 << (max(lengths) - 1).bit_length())

    def to(self, device: torch.device) -> "Segments":
        return Segments(to_device(self.bounds, device), self.lengths, self.longest)
