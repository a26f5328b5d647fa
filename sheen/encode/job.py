"""The encode job: recordings -> a dataset folder of codes and a report that covers every row.

Owns the Ray Data pipeline, resuming, and the contents of the output folder. A block of rows is
committed as one file, and the same command resumes with the missing blocks (decision 0019 compares
Ray Data's checkpointing). `dataset.json` is written last: a folder without it is not finished.

On one machine tasks reserve nothing and are held to its CPUs. In a cluster they reserve, are as
many as the nodes take, those that start later among them, and never run where there are no CPUs to
reserve.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from sheen import blocks
from sheen.codec.info import CODEC_FOLDER, CodecInfo, describe_codec, find_codec
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec, load_codec
from sheen.config import errors_of
from sheen.data import dataset
from sheen.data.corpus import check_outside
from sheen.encode.config import EncodeConfig
from sheen.encode.output import (
    PAGE_FILE,
    STAGES,
    STATUSES,
    pack,
    plan_blocks,
    prepare_output,
    read_rows,
    write_blocks,
)
from sheen.encode.stages import DecodeSettings, EncodeWorker, decode_blocks, shift_samples
from sheen.encode.statistics import RunTimes, Statistics
from sheen.runs import cluster
from sheen.runs.attempts import Attempts
from sheen.runs.output import output_lock
from sheen.storage import files, folders, uris
from sheen.text import normalization, phonemes
from sheen.text.steps import NormalizerStep, TextPipeline

logger = logging.getLogger(__name__)

PROGRESS_S = 10.0
DECODE_LIMIT_S = 300.0
"""A recording that takes longer to read and decode is rejected."""
DECODING_CPUS = 1.0
"""CPUs of a decode task where nodes start on demand (reserving starts them), and beside GPUs, which
keep workers off the CPUs of other nodes."""


def run(config: EncodeConfig) -> dict[str, Any]:
    """Encode; returns the report. Raises ValueError for what the user must change."""
    output = cluster.output_folder("--output", config.output)
    jsonl = cluster.output_folder("--jsonl", config.jsonl) if config.jsonl else None
    manifest = read_rows(config)
    info = describe_codec(config.codec)
    normalizer = _normalizer(config)
    kept = [("--input", location) for location in config.input] + [("--codec", config.codec)]
    for flag, location in kept:
        if uris.contains(output, location):
            raise ValueError(f"--output {output} holds {flag} {location}; give another folder")
    check_outside("--output", output, config.input)
    if jsonl:
        check_outside("--jsonl", jsonl, config.input)
    codec = load_codec(config.codec)  # before anything is written: it may not load
    with output_lock(output):
        prepare_output(output, config, manifest, info, normalizer)
        report = _write(output, config, manifest, codec, info, normalizer)
        if report["rows_out"]:
            if jsonl:
                _export(output, jsonl)
            _finish(output, config, info, normalizer)
    return report


def _write(
    output: str,
    config: EncodeConfig,
    manifest: pa.Table,
    codec: Codec,
    info: CodecInfo,
    normalizer: tuple[NormalizerStep, ...],
) -> dict[str, Any]:
    """Encode the rows that are not encoded yet, and report on all rows."""
    blocks.merge_all(output, STATUSES)  # what an interrupted run committed
    left = plan_blocks(manifest, output)
    report_file = uris.join(output, dataset.REPORT_FILE)
    if not left and files.exists(report_file):
        logger.info("all %d rows are done already: nothing to do", len(manifest))
        report: dict[str, Any] = json.loads(files.read_bytes(report_file))
        return report
    settings = DecodeSettings(
        codec.sample_rate,
        config.limits,
        TokenLayout(0, info.codebook_size, info.strides),
        codec.frame_samples / codec.sample_rate,
        config.trim_db,
        config.loudness_lufs,
        normalizer,
        tuple(config.tags or ()),
    )
    times = _encode(left, codec, settings, config, output)
    statistics = Statistics(codec.sample_rate, codec.codebook_size)
    names = []
    for name, rows in blocks.merge(output, STATUSES):
        names.append(name)
        statistics.add(rows)
    for rows in blocks.read_merged(output, STATUSES, skip=names):
        statistics.add(rows)
    blocks.check_keys(output, statistics.keys, manifest["key"].to_numpy())
    report = statistics.report(times)
    from sheen.encode.report import render  # here: matplotlib, when there is something to draw

    page = render(report, f"Encoding of {', '.join(config.input)}")
    files.write_bytes(uris.join(output, PAGE_FILE), page.encode())
    files.write_bytes(report_file, json.dumps(report, indent=2).encode() + b"\n")
    return report


def _normalizer(config: EncodeConfig) -> tuple[NormalizerStep, ...]:
    """The steps of --language and --phonemes, with their libraries loaded."""
    steps: tuple[NormalizerStep, ...] = ()
    language = config.language
    code = normalization.language_code(language or "")
    if config.phonemes and code not in phonemes.LANGUAGES:
        raise ValueError(
            "--phonemes needs --language en: it converts normalized words, and supports English "
            "only"
        )
    if language is not None:
        with errors_of(f"--language {language}"):
            steps += (normalization.describe(language),)
            # Compiles the grammars here, once, instead of in every task at the same time.
            TextPipeline(steps).load()
    if config.phonemes:
        with errors_of("--phonemes"):
            steps += (phonemes.describe(code),)
            TextPipeline(steps).load()
    return steps


def _finish(
    output: str, config: EncodeConfig, info: CodecInfo, normalizer: tuple[NormalizerStep, ...]
) -> None:
    if files.exists(uris.join(output, dataset.INFO_FILE)):
        return
    if info.embedded:
        folder = str(find_codec(config.codec).resolve())
        folders.copy_folder(folder, uris.join(output, CODEC_FOLDER))
    written = dataset.DatasetInfo(
        codec=info,
        sample_rate=info.sample_rate,
        normalizer=normalizer,
        tags=config.tags or [],
    )
    dataset.write_info(output, written)


def _encode(
    planned: Sequence[pa.Table],
    codec: Codec,
    settings: DecodeSettings,
    config: EncodeConfig,
    output: str,
) -> RunTimes:
    """Run the pipeline over the blocks that are not written yet."""
    started = time.monotonic()
    if not planned:  # a run that was stopped before its report
        return _times([], 1, time.monotonic() - started)
    cluster.connect()
    gpu = cluster.use_gpus(config.gpu)
    workers = min(config.num_workers or cluster.count("GPU" if gpu else "CPU"), len(planned))
    # Ray counts finished blocks as progress and ends a job after half an hour without any; waiting
    # for a spot node, or a block of an hour's audio on a CPU, may take longer.
    DataContext.get_current().execution_no_progress_timeout_s = -1
    limits = task_limits(cluster.node_resources(), gpu, len(planned))
    tasks = TaskPoolStrategy(size=limits.size)
    attempts = Attempts()
    written = (
        ray.data.from_blocks([pack([block]) for block in planned])
        .map_batches(
            partial(
                decode_blocks,
                settings=settings,
                attempts=attempts,
                limit_s=DECODE_LIMIT_S,
            ),
            batch_size=None,
            batch_format="pyarrow",
            compute=tasks,
            num_cpus=limits.decode_cpus,
        )
        .map_batches(
            EncodeWorker,
            fn_constructor_kwargs={
                "codec": ray.put(codec),
                "shifts": shift_samples(config.shifts, codec.frame_samples),
                "budget": round(config.batch_seconds * codec.sample_rate),
                "attempts": attempts,
            },
            compute=ActorPoolStrategy(size=workers),
            batch_size=1,  # a packed block; Ray wants a number where there are GPUs
            batch_format="pyarrow",
            num_cpus=cluster.WORKER_CPUS,
            num_gpus=1 if gpu else 0,
        )
        .map_batches(
            partial(write_blocks, output=output),
            batch_size=None,
            batch_format="pyarrow",
            compute=tasks,
            num_cpus=limits.write_cpus,
        )
    )
    total = sum(map(len, planned))
    reports: list[dict[str, Any]] = []
    said = time.monotonic()
    for batch in written.iter_batches(batch_size=None, batch_format="pyarrow"):
        reports += batch.to_pylist()
        blocks.raise_fault(batch["fault"].to_pylist())
        now = time.monotonic()
        if now - said > PROGRESS_S:
            said = now
            _say(reports, total, now - started)
    times = _times(reports, workers, time.monotonic() - started)
    if times.rows != total:
        raise RuntimeError(f"{times.rows} rows came out of {total}; run the same command again")
    return times


def _say(reports: Sequence[dict[str, Any]], total: int, seconds: float) -> None:
    rows = sum(one["rows"] for one in reports)
    audio = sum(one["audio_seconds"] for one in reports)
    logger.info(
        "encoded %d/%d rows, %.1f x realtime, about %.0f s left",
        rows,
        total,
        audio / seconds,
        seconds / rows * (total - rows),
    )


def _times(reports: Sequence[dict[str, Any]], workers: int, seconds: float) -> RunTimes:
    """The times of a run, from the reports of its blocks."""
    finished = sorted((one["finished"], one["audio_seconds"]) for one in reports)
    # From the time when every worker had finished a block to when the first found none left:
    # outside of it not all workers have blocks.
    middle = finished[workers - 1 : len(finished) - workers + 1]
    steady = None
    if len(middle) > 1:
        steady = sum(audio for _, audio in middle[1:]) / (middle[-1][0] - middle[0][0])
    return RunTimes(
        seconds=seconds,
        stages={stage: sum(one[f"{stage}_s"] for one in reports) for stage in STAGES},
        idle=sum(one["idle_s"] for one in reports),
        workers=workers,
        audio_seconds=sum(one["audio_seconds"] for one in reports),
        steady=steady,
        rows=sum(one["rows"] for one in reports),
    )


def _export(output: str, jsonl: str) -> None:
    filesystem, path = uris.open_filesystem(uris.join(output, dataset.ENCODED))
    source = pads.dataset(path, filesystem=filesystem, format="parquet")
    target_fs, target = uris.open_filesystem(jsonl)
    if "/" in target:
        target_fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
    with target_fs.open_output_stream(target) as stream:
        for batch in source.to_batches(columns=["text", "snac_codes"]):
            for row in batch.to_pylist():
                stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


@dataclass(frozen=True)
class TaskLimits:
    """`size`: tasks of a stage at a time; None for as many as nodes take."""

    size: int | None
    decode_cpus: float
    write_cpus: float


def task_limits(nodes: Sequence[Mapping[str, float]], gpu: bool, blocks: int) -> TaskLimits:
    """The limits for an encoding of `blocks` blocks, by the current resources of the nodes."""
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    missing = cpus < 1 or (gpu and not any(node.get("GPU") for node in nodes))
    if missing or (gpu and len(nodes) > 1):
        return TaskLimits(None, DECODING_CPUS, cluster.TASK_CPUS)
    if len(nodes) > 1:
        return TaskLimits(None, cluster.TASK_CPUS, cluster.TASK_CPUS)
    return TaskLimits(min(int(cpus), blocks), 0.0, 0.0)
