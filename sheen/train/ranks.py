"""What the workers of a group tell each other: sums, lists and agreement.

Owns the collective calls of both training loops. With one worker nothing is sent.
"""

from typing import TypeVar

import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device
from torch import Tensor

Item = TypeVar("Item")


class Ranks:
    """This worker's place in its group, and its device."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world: int = context.get_world_size()
        self.device: torch.device = get_device()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on the host; never `values` itself, so callers may start anew."""
        if self.world == 1:
            return values.to("cpu", copy=True)
        total = values.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.cpu()

    def concatenate(self, values: Tensor) -> Tensor:
        """Every rank's tensor of the same shape, in the order of ranks."""
        if self.world == 1:
            return values
        gathered = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(gathered, values.contiguous())
        return torch.cat(gathered)

    def gather(self, item: Item) -> list[Item]:
        """Every rank's item, in the order of ranks."""
        if self.world == 1:
            return [item]
        items: list[Item | None] = [None] * self.world
        dist.all_gather_object(items, item)
        return items  # type: ignore[return-value]
