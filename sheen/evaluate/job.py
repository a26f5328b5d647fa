"""The evaluate job: prompts -> audio -> transcripts -> scores, `evaluation.json` and the HTML page.

Owns the Ray Data pipeline, resuming (the same command resumes with the prompts whose rows are not
committed, see `sheen.blocks`), reading the rows back, and choosing the clips on the page.
"""

import json
import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import ray
from ray.data import ActorPoolStrategy, DataContext

from sheen import blocks
from sheen.audio.io import decode_audio
from sheen.config import errors_of
from sheen.data.prompts import read_prompts
from sheen.engine.types import Sampling
from sheen.evaluate.config import EvaluateConfig
from sheen.evaluate.output import AUDIO, write_rows
from sheen.evaluate.prompts import (
    Plan,
    ReferenceRecording,
    check_enrolled,
    plan_prompts,
    prepare_output,
    prompt_table,
    read_references,
)
from sheen.evaluate.speak_stage import SpeakWorker
from sheen.evaluate.transcribe_stage import TranscribeWorker
from sheen.lm.checkpoint import CheckpointInfo
from sheen.lm.recognition import describe_checkpoint
from sheen.runs import cluster
from sheen.runs.attempts import Attempts
from sheen.runs.output import output_lock
from sheen.scoring.asr.transcribers import check_transcriber
from sheen.scoring.mos import Dnsmos, Mos
from sheen.scoring.reports import render_speech_report, speech_json, worst_first
from sheen.scoring.speaker_id import ALL, SpeakerProfiles, enroll_speakers
from sheen.scoring.speech import Sound, SpeechReport, SpokenClip, score_speech
from sheen.scoring.wer import wer_normalizer
from sheen.storage import files, hub, uris
from sheen.text.steps import check_steps

logger = logging.getLogger(__name__)

SAMPLING = {"temperature", "top_k", "top_p", "repetition_penalty", "repetition_window"}
BLOCK_ROWS = 64
"""Prompts of a block, at most."""
SLOTS = 16
"""Slots of a worker's engine."""
GPU_SHARES = 0.7, 0.3
"""GPUs of a synthesizing and of a transcribing worker, if the ASR runs on GPUs too."""
WORST_CLIPS = 24
"""Clips that the page plays."""
JSON_FILE, PAGE_FILE = "evaluation.json", "evaluation.html"


@dataclass(frozen=True)
class Evaluation:
    """`report` is None where no prompt could be spoken; `rejected` counts them by reason."""

    report: SpeechReport | None
    skipped: Counter[str]
    rejected: Counter[str]


def run(config: EvaluateConfig) -> Evaluation:
    """Speak, score, report. Raises ValueError for what the user must change."""
    output = cluster.output_folder("--output", config.output)
    # Workers on other nodes download a hub id themselves.
    model = config.model if hub.is_hub_id(config.model) else uris.absolute(config.model)
    local = hub.located(model)
    if not files.exists(local):
        raise ValueError(f"--model {config.model}: no such folder; give one of `sheen train`")
    config = with_absolute_paths(config)
    info = describe_checkpoint(local, form=config.form, codec=config.codec, info=config.info)
    # The report and the fingerprint record the settings that were used.
    sampling = config.model_dump(include=SAMPLING)
    used = vars(Sampling.of(info.sampling_settings, **sampling))
    config = config.model_copy(
        update={name: used[name] for name in ("temperature", "top_k", "top_p")}
    )
    with errors_of(f"--model {config.model}"):
        check_steps(info.normalizer)
    with errors_of("--prompts"):
        listed = read_prompts(uris.absolute(config.prompts))
    references = _read_references(config, info)
    plan = plan_prompts(listed, info, config, references)
    if config.asr is not None:
        check_transcriber(config.asr, config.asr_language)
    if config.dnsmos:
        with errors_of("--dnsmos"):
            Dnsmos()
    profiles = None
    if config.voice_recordings is not None:
        with errors_of(f"--voice-recordings {config.voice_recordings}"):
            profiles = enroll_speakers(config.voice_recordings, info.sample_rate)
        check_enrolled(config.voice_recordings, profiles.voices, plan.prompts)
    with output_lock(output):
        prepare_output(output, config, local, info, plan.prompts, profiles, references)
        blocks.merge_all(output)  # what an interrupted run committed
        done = blocks.merged_keys(output)
        if len(done):
            logger.info("%d of %d prompts are spoken already", len(done), len(plan.prompts))
        if len(done) < len(plan.prompts):
            if config.asr is not None:
                # Here, and not in a worker while others speak.
                check_transcriber(config.asr, config.asr_language, fetch=True)
            cluster.connect()
            table = prompt_table(plan.prompts)
            _speak(table, done, config, model, profiles, info.sample_rate, output, references)
            blocks.merge_all(output)
        return write_results(config, info, profiles, plan, output)


def with_absolute_paths(config: EvaluateConfig) -> EvaluateConfig:
    """Locations that workers open, whose working directory is another one."""
    found = {
        name: value if hub.is_hub_id(value) else uris.absolute(value)
        for name in ("codec", "info")
        if (value := getattr(config, name)) is not None
    }
    return config.model_copy(update=found)


def _read_references(config: EvaluateConfig, info: CheckpointInfo) -> dict[str, ReferenceRecording]:
    if config.references is None:
        return {}
    if info.reference is None and config.reference_form is None:
        raise ValueError(
            f"--references: the checkpoint {config.model} was not trained to follow a reference; "
            "train one with --reference-share, or give --reference-form to try it anyway"
        )
    with errors_of("--references"):
        return read_references(config.references)


def speaker_arguments(config: EvaluateConfig, model: str) -> dict[str, Any]:
    """What a config says of the workers that speak, as arguments of `SpeakWorker`."""
    return {
        "model": model,
        "device": None,
        "dtype": config.dtype,
        "untrained_voices": config.untrained_voices,
        "sampling": config.model_dump(include=SAMPLING),
        "source": config.model_dump(include={"form", "codec", "info"}),
        "seed": config.seed,
        "max_seconds": config.max_seconds,
        "slots": SLOTS,
        "reference_form": config.reference_form,
    }


def _speak(
    table: pa.Table,
    done: blocks.Keys,
    config: EvaluateConfig,
    model: str,
    profiles: SpeakerProfiles | None,
    sample_rate: int,
    output: str,
    references: dict[str, ReferenceRecording],
) -> None:
    """Run the pipeline over the prompts that are not done."""
    gpu = cluster.use_gpus(config.gpu)
    workers = config.num_workers or cluster.count("GPU" if gpu else "CPU")
    # Short lists too must reach every worker.
    left = len(table) - len(done)
    size = max(1, min(BLOCK_ROWS, -(-left // (2 * workers))))
    planned = blocks.plan(table, size, done)
    workers = min(workers, len(planned))
    # Ray counts finished blocks as progress and ends a job after half an hour without any; a large
    # model may take longer for a block on a CPU.
    DataContext.get_current().execution_no_progress_timeout_s = -1
    attempts = Attempts()
    asr_on_gpu = gpu and config.asr is not None
    speaking, transcribing = GPU_SHARES if asr_on_gpu else (1.0, 0.0)
    data = ray.data.from_blocks(planned).map_batches(
        SpeakWorker,
        fn_constructor_kwargs=speaker_arguments(config, model)
        | {"attempts": attempts, "references": references},
        compute=ActorPoolStrategy(size=workers),
        batch_size=size,
        batch_format="pyarrow",
        num_cpus=cluster.WORKER_CPUS,
        num_gpus=speaking if gpu else 0,
    )
    if config.asr is not None or profiles is not None or config.dnsmos:
        data = data.map_batches(
            TranscribeWorker,
            fn_constructor_kwargs={
                "asr": config.asr,
                "language": config.asr_language,
                "device": None if asr_on_gpu else "cpu",
                "profiles": ray.put(profiles),
                "sample_rate": sample_rate,
                "attempts": attempts,
                "dnsmos": config.dnsmos,
            },
            compute=ActorPoolStrategy(size=workers),
            batch_size=size,
            batch_format="pyarrow",
            num_cpus=0.1,  # fractions: whole CPUs would wait forever behind the speaking workers
            num_gpus=transcribing,
        )
    data = data.map_batches(
        partial(write_rows, output=output, audio_files=config.audio == "files"),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0.1,
    )
    count = 0
    for written in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        blocks.raise_fault(written["fault"].to_pylist())
        count += sum(written["rows"].to_pylist())
        logger.info("spoken %d/%d", count, left)


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
        normalize=wer_normalizer(config.asr, config.asr_language),
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
        dnsmos=Mos(**row["dnsmos"]) if row["dnsmos"] else None,
        identified_speaker=row["identified_speaker"],
        speaker_similarity=row["speaker_similarity"],
        unscored=row["unscored"],
    )
