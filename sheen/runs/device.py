"""The device of a worker: the GPU that Ray reserved for it, or the CPU.

Owns which of CUDA's devices that is, and in `open_device` all that a worker asks torch about
devices. Refuses a reserved GPU that torch cannot use: the worker would hold it and compute on the
CPU. A process without Ray takes the device that its caller names.
"""

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

DRIVER_FILE = Path("/proc/driver/nvidia/version")
"""The file with the version of NVIDIA's driver."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


class DeviceError(ValueError):
    """Ray reserved a GPU for this worker that it cannot compute on."""


def worker_device() -> "torch.device":
    """The device that this worker computes on. Raises DeviceError.

    Of several reserved GPUs the first. Ray does not hide GPUs from a worker that reserved none:
    such a worker computes on the CPU, since others may have reserved all of them.
    """
    import ray

    ids: list[str] = []
    if ray.is_initialized():
        ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return open_device(min(map(device_index, ids)) if ids else None)


def device_index(gpu: str) -> int:
    """Which of this process's CUDA devices is the one that Ray calls `gpu`."""
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return int(gpu)
    names = visible.split(",")
    if gpu not in names:
        raise DeviceError(
            f"Ray reserved GPU {gpu} for this worker, and {VISIBLE} is {visible!r}, which lacks "
            "it: leave that variable to Ray"
        )
    return names.index(gpu)


def open_device(index: int | None) -> "torch.device":
    """CUDA's device at `index`, which is reserved for this worker; the CPU for None."""
    import torch

    if index is None:
        if torch.cuda.is_available():
            logger.warning(
                "%d GPU(s) are here and none is reserved for this worker, which computes on the "
                "CPU. To reserve one: --gpu, or num_gpus: 1 in a server's ray_actor_options",
                torch.cuda.device_count(),
            )
        return torch.device("cpu")
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        built = torch.version.cuda
        raise DeviceError(
            f"Ray reserved a GPU for this worker that torch cannot use. NVIDIA driver: "
            f"{_driver()}; torch: {torch.__version__}, built "
            + (f"for CUDA {built}. The driver must run it" if built else "without CUDA")
            + ": install a newer driver or another torch, or compute on CPUs (--no-gpu; no "
            "num_gpus in a server's ray_actor_options)"
        )
    return torch.device("cuda", index)


def _driver() -> str:
    """The driver's version in words, or that none is loaded."""
    try:
        text = DRIVER_FILE.read_text("utf-8")
    except OSError:
        return "none is loaded"
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else "of an unknown version"
