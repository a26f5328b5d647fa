"""The jobs' command lines."""

from pathlib import Path
from typing import Any

from helpers.example import CHECKPOINT, CODEC, DEMO
from helpers.recogniser import tiny_en

JOBS = ("encode", "evaluate", "prepare", "train", "train_codec")


def arguments(job: str, base: Path, output: Path) -> list[str]:
    """Of a job with nothing wrong but, perhaps, its output. That of training needs `codes.jsonl` in
    the working directory."""
    flags: dict[str, dict[str, Any]] = {
        "encode": {"input": DEMO / "heart.jsonl", "codec": CODEC},
        "evaluate": {"model": CHECKPOINT, "prompts": DEMO / "sentences.txt", "voices": '["heart"]'},
        "prepare": {"input": DEMO / "heart.jsonl"}
        | ({"asr": tiny_en()} if job == "prepare" else {}),
        "train": {"data": "codes.jsonl", "codec": CODEC, "model": base},
        "train_codec": {"data": DEMO / "heart.jsonl", "codec": CODEC},
    }
    words = flags[job] | {"output": output}
    return [str(word) for name, value in words.items() for word in (f"--{name}", value)]
