"""The group of Ray Train's workers, and how their process group starts.

Owns the rendezvous: torch's default store listens on every address of the machine
(docs/upstream.md), so rank 0 opens it on its node's own address instead. Neither the store nor gloo
authenticates: on a one-machine cluster both stay on loopback; between nodes only the network
protects them.
"""

import ipaddress
import os
import socket
import sys
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch.distributed as dist
from ray.train.torch import TorchConfig, prepare_model
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)
from torch import nn

from sheen.runs.device import DeviceError, worker_device
from sheen.train.learning.collectives import Collectives


class WorkerGroup(Collectives):
    """The group of a Ray Train worker."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        super().__init__(worker_device(), context.get_world_rank(), context.get_world_size())

    def data_parallel(self, model: nn.Module, **settings: Any) -> nn.Module:
        prepared: nn.Module = prepare_model(
            model, move_to_device=self.device, parallel_strategy_kwargs=settings
        )
        return prepared


_store: Any = None
"""Rank 0's store, for as long as its process lives."""


class Backend(_TorchBackend):
    """Ray's backend, with another address for the store, and gloo where workers compute on
    the CPU."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        backend = backend_config.backend
        if backend == "nccl":  # which Ray's trainer takes where GPUs are reserved
            backend = worker_group.execute_single(0, process_group_backend)
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


def process_group_backend() -> str:
    """Backends for this worker's device and the host: what hosts exchange at every step must not
    wait for devices."""
    try:
        return "cpu:gloo,cuda:nccl" if worker_device().type == "cuda" else "gloo"
    except DeviceError:  # which the training loop reports
        return "gloo"


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
