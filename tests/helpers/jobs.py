"""The jobs' command lines."""

import json
from pathlib import Path
from typing import Any

from helpers.example import CHECKPOINT, CODEC, DEMO, RECORDINGS, VOICE
from helpers.recogniser import tiny_en

JOBS = ("encode", "evaluate", "prepare", "train", "train_codec")


def arguments(job: str, base: Path, output: Path) -> list[str]:
    """Of a job with nothing wrong but, perhaps, its output. That of training needs `codes.jsonl` in
    the working directory."""
    flags: dict[str, dict[str, Any]] = {
        "encode": {"input": RECORDINGS, "codec": CODEC},
        "evaluate": {
            "model": CHECKPOINT,
            "prompts": DEMO / "sentences.txt",
            "voices": json.dumps([VOICE]),
        },
        "prepare": {"input": RECORDINGS} | ({"asr": tiny_en()} if job == "prepare" else {}),
        "train": {"data": "codes.jsonl", "codec": CODEC, "model": base},
        "train_codec": {"data": RECORDINGS, "codec": CODEC},
    }
    words = flags[job] | {"output": output}
    return [str(word) for name, value in words.items() for word in (f"--{name}", value)]
