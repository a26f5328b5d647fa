"""Metrics of a training run: sums over a window of steps, and the rows that are made of them.

Owns the metrics window (sums since the last log line and the training time they took, which
excludes evaluation and saving, and survives in checkpoints), the FLOP count behind the share of a
device's peak, and the console line. Does not decide when to log, or what a row has besides, and
writes nothing.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from sheen.lm.loss import LossSums
from sheen.lm.model import SpeechLM
from sheen.train.learning.collectives import Collectives

Sums = Mapping[str, Tensor]
"""Sums by name, float64 on the host."""


class MetricsWindow:
    """One rank's sums by name since the last log line, and the training seconds they took.

    The clock runs from the start.
    """

    def __init__(self, group: Collectives) -> None:
        self._group = group
        self._sums: dict[str, Tensor] = {}
        self._seconds, self._since = 0.0, time.monotonic()
        self._steps = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add values of a row or a step; all ranks add the same names in the same shapes."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double()

    def count_step(self) -> None:
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the context from the training's."""
        self._seconds += time.monotonic() - self._since
        yield
        self._since = time.monotonic()

    def end(self) -> tuple[dict[str, Tensor], float, int]:
        """The sums over ranks, the seconds and the steps; starts the next window. Collective."""
        sums = self._group.sum_named(self._sums)
        now = time.monotonic()
        seconds, steps = self._seconds + now - self._since, self._steps
        self._sums, self._steps = {}, 0
        self._seconds, self._since = 0.0, now
        return sums, seconds, steps

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint; the clock must be paused. Collective."""
        sums = self._group.sum_named(self._sums)
        return {"sums": sums, "seconds": self._seconds, "steps": self._steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned, with any number of workers."""
        self._steps = state["steps"]
        sums = {name: part.to(self._group.device) for name, part in state["sums"].items()}
        if self._group.first:
            self._seconds = state["seconds"]
        else:  # the sums are of all ranks already; their names must be the same on all
            sums = {name: torch.zeros_like(part) for name, part in sums.items()}
        self._sums = sums


# Dense bfloat16 peaks in FLOP/s, from NVIDIA's data sheets. The first name that matches counts.
PEAKS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


# What may follow a model's name without making it another chip: form factor and memory.
VARIANT = r"(?:[ -](?:SXM\d?|PCIE|HBM\w+|\d+GB))*"


def peak_flops(device: torch.device) -> float | None:
    """The device's bfloat16 peak in FLOP/s, where it is known."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """As `peak_flops`, for a device's name in CUDA, such as 'NVIDIA A100-SXM4-80GB'.

    Matches whole names: an A10G has about half the peak of an A10, and an L40 more than an L4.
    """
    chip = name.removeprefix("NVIDIA ").removeprefix("GeForce ")
    for known, peak in PEAKS.items():
        if re.fullmatch(re.escape(known) + VARIANT, chip, re.IGNORECASE):
            return peak
    return None


def training_flops(model: SpeechLM) -> tuple[float, float]:
    """FLOP of forward and backward pass per token of a row, and per target token.

    Six per weight and token: two forward, four backward (Kaplan et al. 2020). Attention scores are
    omitted: with utterances of a thousand tokens they are a few percent.
    """
    tables = {id(table) for table in model.tables}
    body = sum(part.numel() for part in model.parameters() if id(part) not in tables)
    rows, width = model.head.shape
    if model.softmax == "masked":
        rows = model.layout.codebook_size
    return 6.0 * body, 6.0 * width * rows


def loss_sums(sums: LossSums, tokens: int) -> dict[str, Tensor]:
    """The sums that a row of `tokens` tokens adds to a window (`LossSums`); `guided`: targets."""
    counted = torch.full_like(sums.ends, tokens)
    guided = {} if sums.guide is None else {"guide": sums.guide, "guided": sums.count.sum()}
    return guided | {
        "loss": sums.loss,
        "targets": sums.count,
        "ends": sums.ends,
        "ends_right": sums.ends_right,
        "tokens": counted,
    }


def loss_metrics(sums: Sums, prefix: str = "") -> dict[str, float]:
    """Mean loss in nats, over all targets and per level, and the share of ends ranked first."""
    loss, targets = sums["loss"], sums["targets"]
    metrics = {f"{prefix}loss": float(loss.sum() / targets.sum())}
    for level in range(len(loss)):
        metrics[f"{prefix}loss_level_{level}"] = float(loss[level] / targets[level])
    if "guide" in sums:
        metrics[f"{prefix}guided_attention"] = float(sums["guide"] / sums["guided"])
    metrics[f"{prefix}end_accuracy"] = float(sums["ends_right"] / sums["ends"])
    return {name: round(value, 5) for name, value in metrics.items()}


class Speed:
    """The speed at which `world` workers train a model on such a device."""

    def __init__(self, model: SpeechLM, device: torch.device, world: int) -> None:
        self._per_token, self._per_target = training_flops(model)
        peak = peak_flops(device)
        self._peak = None if peak is None else peak * world

    def metrics(self, sums: Sums, seconds: float) -> dict[str, float]:
        """Tokens per second, and the share of the devices' peak where that is known."""
        targets, tokens = float(sums["targets"].sum()), float(sums["tokens"])
        metrics = {
            "target_tokens_per_second": round(targets / seconds, 1),
            "tokens_per_second": round(tokens / seconds, 1),
        }
        if self._peak is not None:
            flops = self._per_token * tokens + self._per_target * targets
            metrics["share_of_peak"] = round(flops / seconds / self._peak, 4)
        return metrics


def describe_losses(row: dict[str, Any]) -> list[str]:
    """A speech LM's row of `metrics.jsonl` in short."""
    parts = []
    if "loss" in row:
        parts += [f"loss {row['loss']:.3f} ({_levels(row, 'loss')})"]
        parts += [f"{row['tokens_per_second']:.0f} tokens/s"]
        if "share_of_peak" in row:
            parts += [f"{row['share_of_peak']:.0%} of peak"]
    if "eval_loss" in row:
        parts += [f"eval loss {row['eval_loss']:.3f}, end {row['eval_end_accuracy']:.0%}"]
    if "eval_text_gain_level_0" in row:
        parts += [f"text gain {_levels(row, 'eval_text_gain')}"]
    if "eval_wer" in row:
        parts += [f"WER {row['eval_wer']:.1%}"]
    return parts


def _levels(row: dict[str, Any], name: str) -> str:
    return "/".join(f"{row[key]:.2f}" for key in row if key.startswith(f"{name}_level_"))


def console_line(row: dict[str, Any], parts: list[str]) -> str:
    """A row of metrics for the console: the step, the job's own parts and the time left."""
    parts = [f"step {row['step']}/{row['steps']}", *parts]
    if "seconds_left" in row:
        parts += [f"{timedelta(seconds=row['seconds_left'])} left"]
    return ", ".join(parts)
