"""Part "device": what the device is and what it can do at best, beside its data sheet."""

import platform
from typing import Any

import torch
import transformers

from acceptance.bench import Bench
from sheen.train.learning.metrics import peak_flops

NEEDED = 70 << 30
"""Bytes of free memory that the parts at full size take, at most."""


def check(bench: Bench) -> None:
    facts = describe(bench.device)
    if bench.on_gpu:
        free, whole = torch.cuda.mem_get_info(bench.device)
        bench.row(
            "free memory",
            free / 1e9,
            "GB",
            expected=f">= {NEEDED / 1e9:.0f}",
            passed=free >= NEEDED,
            whole=whole,
            **facts,
        )
    else:
        bench.row("free memory", 0, "GB", expected="a GPU", passed=None, **facts)
    ceilings = bench.ceilings
    bench.row("copies, read and written", ceilings.copy / 1e12, "TB/s")
    peak = peak_flops(bench.device)
    bench.row(
        "matrix product in bfloat16",
        ceilings.bfloat16 / 1e12,
        "TFLOP/s",
        floor=peak and peak / 1e12,
        bound="data sheet",
    )
    bench.row("matrix product in float32", ceilings.float32 / 1e12, "TFLOP/s")
    bench.row("device to pinned memory", ceilings.to_host / 1e9, "GB/s")


def describe(device: torch.device) -> dict[str, Any]:
    """Names and versions."""
    facts: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts
