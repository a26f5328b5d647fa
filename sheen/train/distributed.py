"""Collectives over a group of training workers, and how their process group starts.

Owns sums and gathers of both training loops (with one worker nothing is sent), and the rendezvous:
torch's default store listens on every address of the machine (docs/upstream.md), so rank 0 opens
it on its node's own address instead. Neither the store nor gloo authenticates: on a one-machine
cluster both stay on loopback; between nodes only the network protects them.
"""

import ipaddress
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, get_device
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)
from torch import Tensor

Item = TypeVar("Item")


class Collectives:
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

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

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


_store: Any = None
"""Rank 0's, for as long as its process lives."""


class Backend(_TorchBackend):
    """As Ray's, but for the address at which the store listens."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        backend = backend_config.backend or ("nccl" if gpus else "gloo")
        address, port = worker_group.execute_single(0, hold_store)
        worker_group.execute(meet_at, address, port)
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend=backend,
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method="env://",
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ]
        )


@dataclass
class Config(TorchConfig):
    """TorchTrainer's `torch_config`."""

    @property
    def backend_cls(self) -> type[Backend]:
        return Backend


def hold_store() -> tuple[str, int]:
    """Open this process's store; its address and port."""
    global _store
    address: str = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((address, 0), family=family)
    port = listening.getsockname()[1]
    _store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
    )
    return address, port


def meet_at(address: str, port: int) -> None:
    """Say where the store is, before the process group of this worker starts."""
    os.environ["MASTER_ADDR"] = address
    os.environ["MASTER_PORT"] = str(port)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # rank 0 does not open another
    if ipaddress.ip_address(address).is_loopback:
        # Else both listen where the host's name leads.
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
