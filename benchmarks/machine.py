"""What the GPU benchmarks say of the machine: which it is, and how fast its memory is.

A floor in their tables is the time that the memory needs for what must be read and written at
least, at the bandwidth of a plain copy on the same machine in the same run. All of it runs on a CPU
too, for trying the benchmarks out.
"""

import os
import time

import torch
import transformers

COPY_BYTES = 1 << 30
COPIES = 10


def describe(device: torch.device) -> str:
    """The machine and the versions, in a line."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {os.cpu_count()} cores"
    versions = [f"torch {torch.__version__}", f"transformers {transformers.__version__}"]
    return ", ".join([name, *versions, *([f"CUDA {torch.version.cuda}"] if on_gpu else [])])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy on the device reads and writes."""
    size = COPY_BYTES if device.type == "cuda" else COPY_BYTES // 16
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    synchronize(device)
    started = time.perf_counter()
    for _ in range(COPIES):
        target.copy_(source)
    synchronize(device)
    return 2 * size * COPIES / (time.perf_counter() - started)
