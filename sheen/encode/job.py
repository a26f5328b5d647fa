"""The encode job: recordings -> a dataset folder of codes, with a report that accounts for all.

Owns the Ray Data pipeline, the output folder and `report.json`. `dataset.json` is written last: a
folder without it is not finished.
"""

import json
import time
from collections import defaultdict
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import ray
from ray.data import ActorPoolStrategy

from sheen import cluster
from sheen.core import dataset, files
from sheen.core.codec import describe_codec, find_codec, load_codec
from sheen.core.manifest import read_manifest
from sheen.encode.config import EncodeConfig
from sheen.encode.stages import EncodeWorker, read_and_decode, shift_samples

ROWS_PER_BLOCK = 64
EXAMPLES_PER_REASON = 5


def run(config: EncodeConfig) -> dict[str, Any]:
    """Encode; returns the report. Raises ValueError for what the user must change."""
    output = cluster.output_folder("--output", config.output)
    jsonl = cluster.output_folder("--jsonl", config.jsonl) if config.jsonl else None
    manifest = read_manifest(files.absolute(config.input), config.limit)
    if config.speakers is not None:
        manifest = _only(manifest, config.speakers, config.input)
    info = describe_codec(config.codec)
    codec = load_codec(config.codec)
    for flag, kept in (("--input", config.input), ("--codec", config.codec)):
        if files.contains(output, kept):
            raise ValueError(f"--output {output} holds {flag} {kept}; give another folder")
    _make_room(output, config.overwrite)
    started = time.monotonic()
    cluster.connect()
    _encode(manifest, codec, config, files.join(output, dataset.ROWS))
    report = _report(output, codec.sample_rate, time.monotonic() - started)
    files.write_bytes(
        files.join(output, dataset.REPORT_FILE), json.dumps(report, indent=2).encode() + b"\n"
    )
    if report["rows_out"]:
        if info.embedded:
            source = str(find_codec(config.codec).resolve())
            files.copy_folder(source, files.join(output, dataset.CODEC_FOLDER))
        if jsonl:
            _export(output, jsonl)
        written = dataset.DatasetInfo(
            format_version=dataset.FORMAT_VERSION, codec=info, sample_rate=codec.sample_rate
        )
        dataset.write_info(output, written)
    return report


def _only(manifest: pa.Table, speakers: list[str], location: str) -> pa.Table:
    """The rows of some speakers, and faulty rows that name nobody: they might have been theirs.

    Raises ValueError for a speaker without a row.
    """
    found = {speaker for speaker in manifest["speaker"].to_pylist() if speaker}
    for speaker in speakers:
        if speaker not in found:
            known = ", ".join(sorted(found)) or "none"
            raise ValueError(f"--speakers {speaker}: {location} has no such speaker (has: {known})")
    nameless = pc.field("speaker").is_null() & pc.field("reason").is_valid()
    return manifest.filter(pc.field("speaker").isin(speakers) | nameless)


def _make_room(output: str, overwrite: bool) -> None:
    """Refuse a folder that holds something, or with `overwrite` delete a dataset of ours."""
    if files.is_empty(output):
        return
    if not overwrite:
        raise ValueError(
            f"--output {output} is not empty; give --overwrite to replace it, or another folder"
        )
    ours = {dataset.ROWS, dataset.INFO_FILE, dataset.REPORT_FILE, dataset.CODEC_FOLDER}
    if others := sorted(set(files.list_names(output)) - ours):
        raise ValueError(
            f"--output {output} holds {others[0]!r}, which no encode job wrote: it is not "
            "overwritten; give another folder"
        )
    files.delete_folder(output)


def _encode(manifest: pa.Table, codec: Any, config: EncodeConfig, rows: str) -> None:
    gpu = cluster.use_gpus(config.gpu)
    workers = config.num_workers or cluster.count("GPU" if gpu else "CPU")
    # Small manifests too must reach every worker: cut them finer than workers * 2 blocks.
    rows_per_block = max(1, min(ROWS_PER_BLOCK, len(manifest) // (workers * 2)))
    blocks = [
        manifest.slice(start, rows_per_block) for start in range(0, len(manifest), rows_per_block)
    ]
    filesystem, path = files.open_filesystem(rows)
    decode = partial(read_and_decode, sample_rate=codec.sample_rate, min_seconds=config.min_seconds)
    ray.data.from_blocks(list(blocks)).map_batches(
        decode,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0.25,  # a fraction: whole CPUs would wait forever behind the encoding workers
    ).map_batches(
        EncodeWorker,
        # Not what the worker sees: Ray hides no GPU from a worker that asked for none.
        fn_constructor_kwargs={
            "codec": ray.put(codec),
            "device": "cuda" if gpu else "cpu",
            "shifts": shift_samples(config.shifts, codec.frame_samples),
        },
        compute=ActorPoolStrategy(size=workers),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if gpu else 0,
    ).write_parquet(path, filesystem=filesystem, partition_cols=["status"])


def _report(output: str, sample_rate: int, seconds: float) -> dict[str, Any]:
    filesystem, path = files.open_filesystem(files.join(output, dataset.ROWS))
    source = pads.dataset(path, filesystem=filesystem, format="parquet", partitioning="hive")
    columns = ["id", "n_samples", "status", "source", "reason", "detail"]
    rows = source.to_table(columns=columns).to_pylist()
    rows.sort(key=lambda row: int(row["source"].rpartition(":")[2]))
    samples = 0
    utterances = 0
    encoded: set[str] = set()  # recordings: shifts make several utterances of one
    rejects: dict[str, dict[str, Any]] = defaultdict(lambda: {"rows": 0, "ids": [], "examples": []})
    for row in rows:
        if row["status"] == "encoded":
            encoded.add(row["source"])
            utterances += 1
            samples += row["n_samples"]
            continue
        entry = rejects[row["reason"]]
        entry["rows"] += 1
        entry["ids"].append(row["id"])
        if len(entry["examples"]) < EXAMPLES_PER_REASON:
            entry["examples"].append(f"{row['source']}: {row['detail']}")
    hours = samples / sample_rate / 3600
    return {
        "rows_in": len({row["source"] for row in rows}),
        "rows_out": len(encoded),
        "utterances": utterances,
        "hours": round(hours, 6),
        "seconds": round(seconds, 2),
        "audio_seconds_per_second": round(hours * 3600 / seconds, 2),
        "rejects": dict(rejects),
    }


def _export(output: str, jsonl: str) -> None:
    filesystem, path = files.open_filesystem(files.join(output, dataset.ENCODED))
    source = pads.dataset(path, filesystem=filesystem, format="parquet")
    target_fs, target = files.open_filesystem(jsonl)
    if "/" in target:
        target_fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
    with target_fs.open_output_stream(target) as stream:
        for batch in source.to_batches(columns=["text", "snac_codes"]):
            for row in batch.to_pylist():
                stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
