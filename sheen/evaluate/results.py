"""The results of an evaluation: `evaluation.json` and the HTML page, from its rows.

Owns reading the rows back and the choice of clips that the page plays.
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as pads

from sheen import blocks
from sheen.audio.io import decode_audio
from sheen.evaluate.config import EvaluateConfig
from sheen.evaluate.output import AUDIO
from sheen.evaluate.prompts import Plan
from sheen.lm.checkpoint import CheckpointInfo
from sheen.scoring.reports import render_speech_report, speech_json, worst_first
from sheen.scoring.speaker_id import ALL, SpeakerProfiles
from sheen.scoring.speech import Sound, SpeechReport, SpokenClip, score_speech
from sheen.scoring.wer import wer_normaliser
from sheen.storage import files, uris

WORST_CLIPS = 24
"""Clips that the page plays."""
JSON_FILE, PAGE_FILE = "evaluation.json", "evaluation.html"


@dataclass(frozen=True)
class Evaluation:
    """`report` is None where no prompt could be spoken; `rejected` counts them by reason."""

    report: SpeechReport | None
    skipped: Counter[str]
    rejected: Counter[str]


def write_results(
    config: EvaluateConfig,
    info: CheckpointInfo,
    profiles: SpeakerProfiles | None,
    plan: Plan,
    output: str,
) -> Evaluation:
    """Score the rows, write JSON and the page. RuntimeError unless each prompt has one row."""
    filesystem, _ = uris.open_filesystem(output)
    source = pads.dataset(blocks.row_files(output), filesystem=filesystem, format="parquet")
    columns = [name for name in source.schema.names if name != "audio"]
    rows = source.to_table(columns=columns).sort_by("key").to_pylist()
    if [row["key"] for row in rows] != list(range(len(plan.prompts))):
        raise RuntimeError(
            f"{output}: {len(rows)} rows for {len(plan.prompts)} prompts, which are not one each; "
            "was another run writing there? Run again into an empty folder"
        )
    spoken = [row for row in rows if row["reason"] is None]
    rejected = Counter(row["reason"] for row in rows if row["reason"] is not None)
    about = {
        "config": config.model_dump(mode="json"),
        "prompts": len(rows),
        "skipped": dict(plan.skipped),
        "rejected": dict(rejected),
    }
    if not spoken:
        files.write_bytes(
            uris.join(output, JSON_FILE), json.dumps(about, indent=2).encode() + b"\n"
        )
        return Evaluation(None, plan.skipped, rejected)
    report = score_speech(
        [_clip(row) for row in spoken],
        asr=next((row["asr"] for row in spoken), None),
        enrolled=profiles.voices if profiles else (),
        normalise=wer_normaliser(config.asr, config.asr_language),
        seed=config.seed,
    )
    files.write_bytes(uris.join(output, JSON_FILE), speech_json(report, about).encode())
    worst = worst_first(report)[:WORST_CLIPS]
    keys = [spoken[index]["key"] for index in worst]
    # Files that no key is in are not read: they hold their range of keys.
    chosen = source.to_table(columns=["key", "audio"], filter=pc.field("key").isin(keys))
    audio = {row["key"]: row["audio"] for row in chosen.to_pylist()}
    players = []
    for index, key in zip(worst, keys, strict=True):
        data = audio[key]["bytes"]
        if data is None:
            data = files.read_bytes(uris.join(output, AUDIO, audio[key]["path"]))
        players.append((report.clips[index], decode_audio(data, info.sample_rate)))
    lead = (
        f"{config.model}: {len(spoken)} prompts of {config.prompts}, "
        f"{report.voices[ALL].seconds:.0f} s of speech."
    )
    for reason, count in (plan.skipped + rejected).items():
        lead += f" {count} not spoken: {reason}."
    page = render_speech_report(report, lead, players, info.sample_rate)
    files.write_bytes(uris.join(output, PAGE_FILE), page.encode())
    return Evaluation(report, plan.skipped, rejected)


def _clip(row: dict[str, Any]) -> SpokenClip:
    return SpokenClip(
        id=row["id"],
        voice=row["speaker"],
        text=row["text"],
        ended_with_eos=row["ended_with_eos"],
        sound=Sound(row["seconds"], row["speaking"], row["pause"], row["clipped"]),
        expected_seconds=row["expected_seconds"],
        transcript=row["transcript"],
        identified_speaker=row["identified_speaker"],
    )
