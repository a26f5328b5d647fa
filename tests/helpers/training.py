"""The short training run that several tests compare with, and what it leaves."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sheen.train.config import TrainConfig


def train_config(data: Path, base: Path, output: Path, **changes: Any) -> TrainConfig:
    """The short run that several tests compare with."""
    fields: dict[str, Any] = {
        "data": str(data),
        "output": str(output),
        "model": str(base),
        "max_steps": 6,
        "accumulation": 2,
        "max_tokens": 512,
        "batch_tokens": 512,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "eval_share": 0.2,
        "eval_every": 3,
        "save_every": 3,
    }
    return TrainConfig(**(fields | changes))


def metrics(output: Path) -> list[dict[str, Any]]:
    """Of a training run: the data's line, then a line per logged step."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Of a training run's last model."""
    return load_file(output / "checkpoint" / "model.safetensors")
