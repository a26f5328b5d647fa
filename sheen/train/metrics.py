"""The metrics of a speech run: loss per codebook level, speed, and the line for the console.

Owns the vector in which losses are summed over rows, steps and ranks, and the names of what is
made of it. Keeps nothing: sums gather in an interval or an evaluation, the loop says when a line is
due, and the outcome writes it.
"""

from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from sheen.core.loss import LossSums
from sheen.core.model import SpeechLM
from sheen.train.throughput import peak_flops, training_flops


def vector_size(levels: int) -> int:
    return 2 * levels + 3


def sums_vector(sums: LossSums, tokens: int) -> Tensor:
    """Of one row of `tokens` tokens: loss and count per level, ends, ends right, and the tokens.

    Float64 `[vector_size(levels)]` on the row's device.
    """
    ends = torch.stack([sums.ends, sums.ends_right, torch.full_like(sums.ends, tokens)])
    return torch.cat([sums.loss.detach().double(), sums.count.double(), ends.double()])


def _parts(vector: Tensor) -> list[Tensor]:
    levels = (len(vector) - vector_size(0)) // 2
    return list(torch.split(vector, [levels, levels, 1, 1, 1]))


def loss_metrics(vector: Tensor, prefix: str = "") -> dict[str, float]:
    """Mean loss in nats, over all targets and per level, and the share of ends ranked first."""
    loss, count, ends, ends_right, _ = _parts(vector)
    metrics = {f"{prefix}loss": float(loss.sum() / count.sum())}
    for level in range(len(loss)):
        metrics[f"{prefix}loss_level_{level}"] = float(loss[level] / count[level])
    metrics[f"{prefix}end_accuracy"] = float(ends_right / ends)
    return {name: round(value, 5) for name, value in metrics.items()}


class Speed:
    """How fast `world` workers train a model on such a device."""

    def __init__(self, model: SpeechLM, device: torch.device, world: int) -> None:
        self._per_token, self._per_target = training_flops(model)
        peak = peak_flops(device)
        self._peak = None if peak is None else peak * world

    def metrics(self, vector: Tensor, seconds: float) -> dict[str, float]:
        """Tokens per second, and the share of the devices' peak where that is known."""
        _, count, _, _, seen = _parts(vector)
        targets, tokens = float(count.sum()), float(seen)
        metrics = {
            "target_tokens_per_second": round(targets / seconds, 1),
            "tokens_per_second": round(tokens / seconds, 1),
        }
        if self._peak is not None:
            flops = self._per_token * tokens + self._per_target * targets
            metrics["share_of_peak"] = round(flops / seconds / self._peak, 4)
        return metrics


def console_line(row: dict[str, Any]) -> str:
    """A row of `metrics.jsonl` in short."""
    parts = [f"step {row['step']}/{row['steps']}"]
    if "loss" in row:
        levels = "/".join(
            f"{value:.2f}" for name, value in row.items() if name.startswith("loss_level_")
        )
        parts += [f"loss {row['loss']:.3f} ({levels})"]
        parts += [f"{row['tokens_per_second']:.0f} tokens/s"]
        if "share_of_peak" in row:
            parts += [f"{row['share_of_peak']:.0%} of peak"]
        parts += [f"{timedelta(seconds=row['seconds_left'])} left"]
    if "eval_loss" in row:
        parts += [f"eval loss {row['eval_loss']:.3f}, end {row['eval_end_accuracy']:.0%}"]
    if "eval_wer" in row:
        parts += [f"word errors {row['eval_wer']:.1%}"]
    return ", ".join(parts)
