"""The train job: a dataset of codes -> a checkpoint that transformers opens.

Owns what happens before and after the workers run: opening data and base, refusing what does not
fit together, resuming by run name, and exporting the last checkpoint.
"""

from pathlib import Path
from typing import Any

import ray
from pyarrow import fs
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from transformers import AutoConfig, AutoTokenizer

from sheen import cluster
from sheen.core import checkpoint, dataset, files
from sheen.core.codec import CodecInfo, describe_codec, find_codec
from sheen.core.tokens import TokenLayout
from sheen.train import state
from sheen.train.config import FREE_FIELDS, TrainConfig
from sheen.train.data import build_training_set, describe
from sheen.train.loop import MODEL_FOLDER, train_loop


def run(config: TrainConfig) -> dict[str, Any]:
    """Train; returns the last metrics. Raises ValueError for what the user must change."""
    output = cluster.output_folder("--output", config.output)
    location = files.absolute(config.data)
    codec, codec_files = _codec_of(location, config.codec)
    model = _model_source(config.model)
    info, tokenizer = _plan_checkpoint(model, codec, codec_files)
    data = build_training_set(
        location,
        info.token_layout,
        tokenizer,
        min(config.max_tokens, info.max_positions),
        config.eval_share,
        config.eval_rows,
        config.seed,
    )
    print(describe(data.summary), flush=True)
    info.voices = sorted({*info.voices, *data.voices})
    state.claim_run(output, config.run_name, config.model_dump(), FREE_FIELDS, ("data", "model"))
    cluster.connect()
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "config": config.model_dump(),
            "data": ray.put(data),
            "info": info,
            "model": model,
            "output": output,
        },
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=cluster.use_gpus(config.gpu),
            resources_per_worker={"CPU": config.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=config.run_name,
            storage_path=output,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
        ),
    )
    result = trainer.fit()
    assert result.checkpoint is not None, "a run that ended well has reported a checkpoint"
    _export(result.checkpoint, files.join(output, "checkpoint"), codec, codec_files)
    return state.last_metrics(output)


def _codec_of(location: str, codec: str | None) -> tuple[CodecInfo, str]:
    """The codec of the data, and where its files are."""
    if files.kind(location) == fs.FileType.NotFound:
        raise ValueError(f"--data {location}: no such file or folder")
    if files.kind(location) == fs.FileType.File:
        if codec is None:
            raise ValueError(
                f"--data {location}: a file of codes does not say which codec made them; "
                "give --codec (hub id or folder)"
            )
        return describe_codec(codec), str(find_codec(codec).resolve())
    info = dataset.read_info(location).codec
    if codec is not None and describe_codec(codec).sha256 != info.sha256:
        raise ValueError(
            f"--codec {codec} is not the codec that made {location} ({info.source}, weights "
            f"{info.sha256[:12]}); leave --codec out"
        )
    return info, dataset.codec_source(location, info)


def _model_source(model: str) -> str:
    """A folder made absolute; a URI or a hub id as it is."""
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if not files.is_uri(model) and (model.startswith(("/", ".", "~")) or model.count("/") > 1):
        raise ValueError(f"--model {model}: no such folder")
    return model


def _plan_checkpoint(
    model: str, codec: CodecInfo, codec_files: str
) -> tuple[checkpoint.CheckpointInfo, Any]:
    """What the run will write about itself, known before any weight is loaded."""
    folder = files.local_folder(model) if files.is_uri(model) else Path(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        base = AutoConfig.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--model {model}: neither a transformers folder nor a model the hub gave ({error})"
        ) from error
    if checkpoint.is_checkpoint(folder):
        info = checkpoint.read_info(folder)
        if info.codec.sha256 != codec.sha256:
            raise ValueError(
                f"--data was encoded with {codec.source} (weights {codec.sha256[:12]}), the "
                f"checkpoint {model} speaks {info.codec.source} (weights "
                f"{info.codec.sha256[:12]}): encode the recordings with the checkpoint's codec"
            )
        return info, tokenizer
    layout = TokenLayout(len(tokenizer), codec.codebook_size, codec.strides)
    info = checkpoint.CheckpointInfo(
        layout=checkpoint.LayoutInfo(
            first_id=layout.first_id,
            codebook_size=layout.codebook_size,
            strides=layout.strides,
        ),
        codec=codec,
        sample_rate=codec.sample_rate,
        max_positions=base.max_position_embeddings,
    )
    return info, tokenizer


def _export(source: ray.train.Checkpoint, target: str, codec: CodecInfo, codec_files: str) -> None:
    """Publish the model folder of a checkpoint, with its codec when that is a folder."""
    files.copy_folder(f"{source.path}/{MODEL_FOLDER}", target, source_filesystem=source.filesystem)
    if codec.embedded:
        files.copy_folder(codec_files, files.join(target, dataset.CODEC_FOLDER))
