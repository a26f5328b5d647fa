"""The jobs' command lines."""

from typing import Any

from helpers.example import CODEC, DIGITS

DOORS: dict[str, dict[str, Any]] = {
    "encode": {"input": DIGITS / "heldout", "codec": CODEC},
    "evaluate": {"model": DIGITS / "voice", "prompts": DIGITS / "heldout", "voices": '["slt"]'},
    "train": {"data": "codes.jsonl", "codec": CODEC},
    "train_codec": {"data": DIGITS / "heldout", "codec": CODEC},
}
