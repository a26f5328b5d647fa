"""The evaluate job: prompts -> audio -> transcripts -> scores.

Owns the Ray Data pipeline and resuming: the same command resumes with the prompts whose rows are
not committed (`sheen.blocks`).
"""

import logging
from functools import partial

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from sheen import blocks
from sheen.data.prompts import read_prompts
from sheen.evaluate.config import EvaluateConfig
from sheen.evaluate.output import write_rows
from sheen.evaluate.prompts import plan_prompts, prepare_output, prompt_table
from sheen.evaluate.results import Evaluation, write_results
from sheen.evaluate.speak_stage import SpeakWorker
from sheen.evaluate.transcribe_stage import TranscribeWorker
from sheen.lm import checkpoint
from sheen.runs import cluster
from sheen.runs.attempts import Attempts
from sheen.runs.output import output_lock
from sheen.scoring.asr import POCKETSPHINX, Grammar, check_transcriber
from sheen.scoring.speaker_id import SpeakerProfiles, enroll_speakers
from sheen.storage import files, uris
from sheen.text import normalization

logger = logging.getLogger(__name__)

BLOCK_ROWS = 64
"""Prompts that are spoken and committed together, at most."""
SLOTS = 16
"""Prompts that a worker speaks at once."""
WORKER_CPUS = 0.5
"""Reserved by a speaking worker; below 1, so that ASR, reading and writing find a free share."""
GPU_SHARES = 0.7, 0.3
"""Of a speaking and of a transcribing worker, where the ASR runs on GPUs too."""


def run(config: EvaluateConfig) -> Evaluation:
    """Speak, score, report. Raises ValueError for what the user must change."""
    output = cluster.output_folder("--output", config.output)
    model = uris.absolute(config.model)
    if not files.exists(model):
        raise ValueError(f"--model {config.model}: no such folder; give one of `sheen train`")
    info = checkpoint.read_info(model)
    if info.text_normalization is not None:
        try:
            normalization.check(info.text_normalization)
        except ValueError as error:
            raise ValueError(f"--model {config.model}: {error}") from error
    try:
        listed = read_prompts(uris.absolute(config.prompts))
    except ValueError as error:
        raise ValueError(f"--prompts {error}") from error
    plan = plan_prompts(listed, info, config)
    grammar = check_transcriber(config.asr, config.grammar)
    profiles = _fit_profiles(config.voice_recordings, info.sample_rate)
    with output_lock(output):
        prepare_output(output, config, model, plan.prompts, grammar, profiles)
        blocks.merge_all(output)  # what an interrupted run committed
        done = blocks.merged_keys(output)
        if len(done):
            logger.info("%d of %d prompts are spoken already", len(done), len(plan.prompts))
        if len(done) < len(plan.prompts):
            cluster.connect()
            table = prompt_table(plan.prompts)
            _speak(table, done, config, model, grammar, profiles, info.sample_rate, output)
            blocks.merge_all(output)
        return write_results(config, info, profiles, plan, output)


def _fit_profiles(location: str | None, sample_rate: int) -> SpeakerProfiles | None:
    if location is None:
        return None
    try:
        return enroll_speakers(location, sample_rate)
    except ValueError as error:
        raise ValueError(f"--voice-recordings {location}: {error}") from error


def _speak(
    table: pa.Table,
    done: blocks.Keys,
    config: EvaluateConfig,
    model: str,
    grammar: Grammar | None,
    profiles: SpeakerProfiles | None,
    sample_rate: int,
    output: str,
) -> None:
    """Run the pipeline over the prompts that are not done."""
    gpu = cluster.use_gpus(config.gpu)
    device = "cuda" if gpu else "cpu"
    workers = config.num_workers or cluster.count("GPU" if gpu else "CPU")
    # Short lists too must reach every worker.
    left = len(table) - len(done)
    size = max(1, min(BLOCK_ROWS, -(-left // (2 * workers))))
    planned = blocks.plan(table, size, done)
    workers = min(workers, len(planned))
    # To Ray a stage that computes makes no progress, and half an hour without any ends the job; a
    # large model may take longer for a block on a CPU.
    DataContext.get_current().execution_no_progress_timeout_s = -1
    attempts = Attempts()
    asr_on_gpu = gpu and config.asr not in (None, POCKETSPHINX)
    speaking, transcribing = GPU_SHARES if asr_on_gpu else (1.0, 0.0)
    data = ray.data.from_blocks(planned).map_batches(
        SpeakWorker,
        fn_constructor_kwargs={
            "model": model,
            "device": device,
            "untrained_voices": config.untrained_voices,
            "sampling": config.model_dump(include={"temperature", "top_k", "top_p"}),
            "seed": config.seed,
            "max_seconds": config.max_seconds,
            "slots": SLOTS,
            "attempts": attempts,
        },
        compute=ActorPoolStrategy(size=workers),
        batch_size=size,
        batch_format="pyarrow",
        num_cpus=WORKER_CPUS,
        num_gpus=speaking if gpu else 0,
    )
    if config.asr is not None or profiles is not None:
        data = data.map_batches(
            TranscribeWorker,
            fn_constructor_kwargs={
                "asr": config.asr,
                "language": config.asr_language,
                "grammar": grammar,
                "device": device if asr_on_gpu else "cpu",
                "profiles": ray.put(profiles),
                "sample_rate": sample_rate,
                "attempts": attempts,
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
