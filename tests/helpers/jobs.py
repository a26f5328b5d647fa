"""The jobs' command lines."""

from typing import Any

from helpers.example import CHECKPOINT, CODEC, DEMO

DOORS: dict[str, dict[str, Any]] = {
    "encode": {"input": DEMO / "heart.jsonl", "codec": CODEC},
    "evaluate": {"model": CHECKPOINT, "prompts": DEMO / "sentences.txt", "voices": '["heart"]'},
    "train": {"data": "codes.jsonl", "codec": CODEC},
    "train_codec": {"data": DEMO / "heart.jsonl", "codec": CODEC},
}
