"""What a run keeps on disk: resumable checkpoints and the log of metrics.

Owns `trainer.pt` (optimizer, step, random state, metrics so far) beside the model folder of a
checkpoint, and `metrics.jsonl`, which a resumed run continues without repeated or missing lines.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from pyarrow import fs
from transformers import PreTrainedTokenizerBase

from sheen.core import checkpoint, files
from sheen.core.model import SpeechLM, save_model

MODEL_FOLDER = "checkpoint"
STATE_FILE = "trainer.pt"


class MetricsLog:
    """`metrics.jsonl` as a list of rows that survives in every checkpoint."""

    def __init__(self, location: str, rows: list[dict[str, Any]], writes: bool) -> None:
        self.rows = rows
        self._location = location
        filesystem, self._path = files.open_filesystem(location)
        # Object stores cannot append: there the file is written whole at each checkpoint.
        self._appends = isinstance(filesystem, fs.LocalFileSystem)
        self._writes = writes
        self.sync()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self._writes and self._appends:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Make the file hold exactly the rows; a resumed run thereby drops what it will redo."""
        if self._writes:
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            files.write_bytes(self._location, text.encode())


def save(
    folder: Path,
    model: SpeechLM,
    tokenizer: PreTrainedTokenizerBase,
    info: checkpoint.CheckpointInfo,
    optimizer: torch.optim.Optimizer,
    step: int,
    rows: list[dict[str, Any]],
) -> None:
    """Write a checkpoint into an empty folder."""
    target = folder / MODEL_FOLDER
    target.mkdir()
    save_model(model, tokenizer, target)
    checkpoint.write_info(target, info)
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    torch.save(
        {"optimizer": optimizer.state_dict(), "step": step, "random": random, "rows": rows},
        folder / STATE_FILE,
    )


def load(folder: str | os.PathLike[str], device: torch.device) -> dict[str, Any]:
    """The trainer's state; restores torch's random state as it was when it was saved."""
    state: dict[str, Any] = torch.load(
        Path(folder) / STATE_FILE, map_location="cpu", weights_only=True
    )
    torch.set_rng_state(state["random"]["cpu"])
    if device.type == "cuda" and "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"])
    return state
