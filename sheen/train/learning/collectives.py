"""A worker's place in its group, its device, and the sums and gathers over the group.

With one worker nothing is sent. Groups are made by `sheen.train.distributed`.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Item = TypeVar("Item")


class Collectives:
    """Collectives of torch.distributed's initialized group, or of one process alone."""

    def __init__(self, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self.device = device

    def data_parallel(self, model: nn.Module, **settings: Any) -> nn.Module:
        """The model, which is on the device, with gradients averaged over the group.

        settings: of DistributedDataParallel. One process alone gets the model itself.
        """
        return model if self.world == 1 else DistributedDataParallel(model, **settings)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on the host; never `values` itself, so callers may start anew.

        The hosts exchange it: for values in main memory no device waits.
        """
        if self.world == 1:
            return values.to("cpu", copy=True)
        total = values.to("cpu", copy=True)
        dist.all_reduce(total)
        return total

    def sum_on_device(self, values: Tensor) -> Tensor:
        """As `sum`, but the values stay on their device, and the host does not wait for it."""
        total = values.clone()
        if self.world > 1:
            dist.all_reduce(total)
        return total

    def sum_named(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over ranks of values with the same names and shapes on all, in one exchange."""
        if not values:
            return {}
        names = sorted(values)
        total = self.sum(torch.cat([values[name].flatten() for name in names]))
        parts = torch.split(total, [values[name].numel() for name in names])
        return {
            name: part.view(values[name].shape) for name, part in zip(names, parts, strict=True)
        }

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether any rank has it set, in one exchange."""
        found: list[bool] = (self.sum(torch.tensor(flags).float()) > 0).tolist()
        return found

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
