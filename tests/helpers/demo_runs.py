"""What the demo's jobs leave, made up: two evaluations, and the files that its page reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sheen.scoring.speaker_id import ALL


def voice_result(
    errors: float, ended_with_eos: float, right: float | None, **means: float
) -> dict[str, Any]:
    """Of an evaluation's JSON, what the table shows."""
    return {
        "clips": 25,
        "wer": {"rate": errors, "low": errors / 2, "high": errors * 2, "units": 100},
        "ended_with_eos": {"rate": ended_with_eos, "low": 0.0, "high": 1.0, "count": 25, "of": 25},
        "speaker_accuracy": None if right is None else {"rate": right, "low": 0.0, "high": 1.0},
        "speaker_similarity": None,
    } | {name: {"value": value, "low": 0.0, "high": 9.0} for name, value in means.items()}


def evaluation(untrained: Sequence[str], **voices: dict[str, Any]) -> dict[str, Any]:
    everybody = voice_result(0.1, 1.0, 1.0) | {"clips": 25 * len(voices)}
    return {
        "config": {"untrained_voices": list(untrained)},
        "asr": "an ASR",
        "seed": 0,
        "voices": {**voices, ALL: everybody},
    }


BEFORE = evaluation(
    ["af_bella"],
    bf_alice=voice_result(0.04, 1.0, None),
    af_bella=voice_result(0.9, 0.48, 0.0),
    heart=voice_result(0.08, 0.996, 1.0),
)
AFTER = evaluation(
    [],
    bf_alice=voice_result(0.05, 1.0, None),
    af_bella=voice_result(0.1, 1.0, 1.0),
    heart=voice_result(0.09, 1.0, 1.0),
)


def write_run(folder: Path) -> None:
    """The encode job's report and the train job's metrics."""
    for part, content in (
        ("codes/report.json", {"rows_in": 200, "rows_out": 200, "utterances": 800, "hours": 0.2}),
        ("train/metrics.jsonl", {"over_length_limit": 0}),
    ):
        (folder / part).parent.mkdir()
        content |= {"audio_seconds_per_second": 12.5}
        content |= {"length_histogram": {"tokens": [10.0, 20.0, 30.0], "utterances": [2, 3]}}
        (folder / part).write_text(json.dumps(content) + "\n", "utf-8")
    with (folder / "train" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step in (10, 20):
            line = {"step": step, "loss": 3.0, "loss_level_0": 2.0, "eval_loss": 3.1}
            file.write(json.dumps(line | {"target_tokens_per_second": 2400.0}) + "\n")
