"""A dry run: one step on the largest rows, and what it cost.

Owns the measurement of memory and time; everything else is the real worker, so that what would
fail in the first minutes of a run fails here.
"""

import resource
import sys
import time
from typing import Any

import numpy as np
import torch

from sheen.train.loop import Worker


def rehearsal_loop(arguments: dict[str, Any]) -> dict[str, Any]:
    """What each worker runs instead of the training loop; its figures."""
    worker = arguments["control"].start(Worker, arguments)
    if worker is None:
        return {}
    lengths, steps = worker.data.lengths, worker.plan.steps
    tokens = [max(lengths[row].sum() for ranks in step for row in ranks) for step in steps]
    fullest = steps[int(np.argmax(tokens))]
    worker.train_step(fullest)  # opens the optimizer's state
    started = time.monotonic()
    norm, _ = worker.train_step(fullest)
    seconds = time.monotonic() - started
    worker.outcome.close()
    weights = sum(p.numel() for p in worker.model.parameters())
    return {
        "steps": worker.plan.total,
        "seconds_per_step": round(seconds, 3),
        "hours": round(seconds * worker.plan.total / 3600, 2),
        "peak_memory_gb": round(_peak_memory(worker.ranks.device) / 1e9, 2),
        "device": str(worker.ranks.device),
        "parameters_m": round(weights / 1e6, 1),
        "gradient_norm": norm,
        "eval_utterances": len(worker.data.evaluation),
    }


def _peak_memory(device: torch.device) -> int:
    """Bytes: the device's, or this process's where it computes in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_rehearsal(metrics: dict[str, Any]) -> str:
    """For the console."""
    return (
        f"dry run: {metrics['parameters_m']} M parameters, {metrics['steps']} steps of about "
        f"{metrics['seconds_per_step']} s ({metrics['hours']} h without evaluations), peak memory "
        f"{metrics['peak_memory_gb']} GB of a worker on {metrics['device']}, "
        f"{metrics['eval_utterances']} utterances to evaluate on; nothing of it is kept"
    )
