"""The train job: a dataset of codes -> a checkpoint that transformers opens.

Owns what happens before and after the workers run: opening data and base, refusing what does not
fit together, resuming by run name, and exporting the last checkpoint and the best.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from pyarrow import fs
from transformers import AutoConfig, AutoTokenizer

from sheen.codec import info as dataset_info
from sheen.codec.info import CODEC_FOLDER, CodecInfo, describe_codec, find_codec
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import open_codec
from sheen.data import dataset
from sheen.data.prompts import Prompt
from sheen.lm import base_model, checkpoint
from sheen.lm.model import to_bfloat16
from sheen.runs import cluster
from sheen.runs.output import folder_digest, output_lock
from sheen.scoring.asr import Grammar, check_transcriber
from sheen.storage import files, folders, uris
from sheen.text.steps import (
    NfcSpaceStep,
    NormalizerStep,
    check_steps,
    phoneme_step,
    text_normalization,
)
from sheen.train import checkpoints
from sheen.train.checkpoints import RunStore
from sheen.train.config import FREE_FIELDS, TrainConfig
from sheen.train.data import build_training_set, describe
from sheen.train.evaluation import eval_prompts
from sheen.train.launcher import fit
from sheen.train.tracking import check_trackers
from sheen.train.trainer import describe_dry_run, dry_run_loop, show_example, train_loop


def run(config: TrainConfig) -> dict[str, Any]:
    """Train; returns the last metrics, or the figures of a dry run.

    Raises ValueError for what the user must change, and what `launch.fit` raises.
    """
    output = cluster.output_folder("--output", config.output)
    locations = [uris.absolute(location) for location in config.data]
    check_trackers(config.trackers)
    codec, codec_files = _codec_of(locations, config.codec)
    model = _model_source(config.model)
    info, tokenizer, extends = _plan_checkpoint(model, codec)
    info.softmax = config.softmax
    info.normalizer = _normalizer_of(locations, model, info)
    limit = min(config.max_tokens, info.max_seq_len)
    if config.batch_tokens < limit:
        raise ValueError(
            f"--batch-tokens {config.batch_tokens}: a row must hold the longest utterance, "
            f"--max-tokens {limit}; give more or lower that"
        )
    _check_level_weights(config, info.token_layout.levels)
    data = build_training_set(
        locations,
        info.token_layout,
        tokenizer,
        limit,
        config.eval_share,
        config.eval_rows,
        config.seed,
    )
    print(describe(data.summary), flush=True)
    info.voices = sorted({*info.voices, *data.voices})
    info.duration_model |= data.duration_model
    # What is learned last is not all that it was taught.
    info.max_chunk_chars = max(info.max_chunk_chars or 0, data.max_chunk_chars)
    prompts: list[Prompt] = []
    grammar: Grammar | None = None
    if config.eval_prompts is not None:
        if config.strategy == "fsdp":
            raise ValueError(
                "--eval-prompts: a sharded model (--strategy fsdp) cannot synthesize while it "
                "trains; omit the prompts and run jobs/evaluate.py on the checkpoint"
            )
        grammar = check_transcriber(config.asr, config.grammar)
        prompts = eval_prompts(config.eval_prompts, info.voices)
        check_steps(info.normalizer)
    needs_codec = bool(prompts) or extends
    with ExitStack() as owned:
        if not config.dry_run:
            owned.enter_context(output_lock(output))
        fields = config.model_dump(mode="json")
        if config.dry_run:
            print(show_example(data, tokenizer), flush=True)
            fields["trackers"] = []  # a server would keep what a dry run must not leave behind
            # Next to the output: workers elsewhere could not reach a temporary folder.
            output += ".dry-run"
        else:
            content = {
                "data content": f"{len(data.lengths)} utterances, sha256 {data.digest()}",
                "model content": _model_content(model),
                "codec sha256": codec.sha256,
            }
            # No noise is as in runs from before there was the field.
            recorded = fields | {"history_noise": config.history_noise or None}
            checkpoints.claim_run(output, config.run_name, recorded, FREE_FIELDS, content)
        cluster.connect()
        arguments = {
            "config": fields,
            "data": ray.put(data),
            "info": info,
            "model": model,
            "codec": ray.put(_codec_parts(codec_files) if needs_codec else None),
            "prompts": prompts,
            "grammar": grammar,
            "output": output,
        }
        if config.dry_run:
            try:
                result = fit(
                    dry_run_loop, arguments, config.model_copy(update={"max_failures": 0}), output
                )
            finally:
                files.delete(output)
            figures = dict(result.return_value)  # type: ignore[attr-defined]
            print(describe_dry_run(figures), flush=True)
            return figures
        fit(train_loop, arguments, config, output)
        store = RunStore(uris.join(output, config.run_name), config.keep_checkpoints)
        last, best = store.latest(), store.best()
        assert last is not None, "a run that ended well has saved"
        model_folder = uris.join(last, checkpoints.MODEL_FOLDER)
        _export(model_folder, uris.join(output, "checkpoint"), codec, codec_files, config.half)
        if best is not None:
            _export(best, uris.join(output, "best"), codec, codec_files, config.half)
        return checkpoints.last_metrics(output)


def _check_level_weights(config: TrainConfig, levels: int) -> None:
    weights = config.level_weights
    if weights is None:
        if config.level_weights_steps is not None:
            raise ValueError("--level-weights-steps needs --level-weights")
    elif len(weights) != levels or not any(weights):
        raise ValueError(
            f"--level-weights {','.join(f'{weight:g}' for weight in weights)}: expected {levels} "
            "weights, one for each level of the codec, coarse first, and one of them above 0"
        )


def _codec_parts(source: str) -> Any:
    """The codec's arguments and weights."""
    with folders.local_folder(source) as folder:
        codec, arguments = open_codec(str(folder))
    return arguments, codec.state_dict()


def _codec_of(locations: Sequence[str], codec: str | None) -> tuple[CodecInfo, str]:
    """The codec that made all of the data, and where its files are."""
    (first, source), *others = [_codec_of_one(location, codec) for location in locations]
    for location, (other, _) in zip(locations[1:], others, strict=True):
        if other.sha256 != first.sha256:
            raise ValueError(
                f"--data {location} was made by another codec ({other.source}, weights "
                f"{other.sha256[:12]}) than {locations[0]} ({first.source}, {first.sha256[:12]}); "
                "encode both with one"
            )
    return first, source


def _codec_of_one(location: str, codec: str | None) -> tuple[CodecInfo, str]:
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
    return info, dataset_info.codec_source(location, info)


def _normalizer_of(
    locations: Sequence[str], model: str, info: checkpoint.CheckpointInfo
) -> tuple[NormalizerStep, ...]:
    """The steps that the texts of the data have gone through, and the prompt's own after them.

    `info` is the model's so far. A file of codes does not say, and goes with the others.
    """
    found = {
        location: dataset.read_info(location).normalizer
        for location in locations
        if files.kind(location) == fs.FileType.Directory
    }
    if not found:
        return info.normalizer
    (first, steps), *others = found.items()
    for location, other in others:
        if other != steps:
            raise ValueError(
                f"--data {location} has {_texts(other)}, {first} has {_texts(steps)}; "
                "encode both with the same --language and --phonemes"
            )
    taught = info.text_normalization
    lost = phoneme_step(info.normalizer) is not None and phoneme_step(steps) is None
    if taught is not None and (not steps or lost):
        raise ValueError(
            f"--data {first} has {_texts(steps)}, the checkpoint {model} was taught "
            f"{_texts(info.normalizer)}; encode with --language {taught.language}"
            + (" --phonemes" if lost else "")
        )
    return (*steps, NfcSpaceStep())


def _texts(steps: Sequence[NormalizerStep]) -> str:
    if (step := text_normalization(steps)) is None:
        return "texts as they are"
    words = (
        f"texts normalised as {step.language!r} by {step.name} {step.version} ({step.segmentation})"
    )
    if (sounds := phoneme_step(steps)) is None:
        return words
    return f"{words}, as phonemes of {sounds.library} {sounds.version} ({sounds.alphabet})"


def _model_source(model: str) -> str:
    """A folder made absolute; a URI or a hub id as it is."""
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if not uris.is_uri(model) and (model.startswith(("/", ".", "~")) or model.count("/") > 1):
        raise ValueError(f"--model {model}: no such folder")
    return model


def _model_content(model: str) -> str:
    """A hub id as it is: its owner answers for what it holds."""
    if not uris.is_uri(model) and not Path(model).is_dir():
        return model
    return folder_digest(model, (".safetensors", ".bin", ".json"))


def _plan_checkpoint(model: str, codec: CodecInfo) -> tuple[checkpoint.CheckpointInfo, Any, bool]:
    """What the run will write about itself, known before any weight is loaded.

    The tokenizer, and whether the base lacks the codec's tokens.
    """
    with folders.local_folder(model, weights=False) as folder:
        try:
            if folder.is_dir() and not uris.is_uri(model):  # a copy is without weights
                base_model.check_files(folder)
        except ValueError as error:
            raise ValueError(f"--model {model}: {error}") from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
            base = AutoConfig.from_pretrained(str(folder))
        except Exception as error:  # whatever the many readers of foreign files raise
            raise ValueError(
                f"--model {model}: neither a transformers folder nor a model the hub gave ({error})"
            ) from error
        if checkpoint.is_checkpoint(folder):
            info = checkpoint.read_info(model)
            if info.codec.sha256 != codec.sha256:
                raise ValueError(
                    f"--data was encoded with {codec.source} (weights {codec.sha256[:12]}), the "
                    f"checkpoint {model} generates codes of {info.codec.source} (weights "
                    f"{info.codec.sha256[:12]}): encode the recordings with the checkpoint's codec"
                )
            return info, tokenizer, False
    try:
        positions = base_model.check_config(base)
        first_id = base_model.first_new_id(tokenizer)
    except ValueError as error:
        raise ValueError(f"--model {model}: {error}") from error
    layout = TokenLayout(first_id, codec.codebook_size, codec.strides)
    info = checkpoint.CheckpointInfo(
        layout=checkpoint.LayoutInfo.of(layout),
        codec=codec,
        sample_rate=codec.sample_rate,
        max_seq_len=positions,
    )
    return info, tokenizer, True


def _export(source: str, target: str, codec: CodecInfo, codec_files: str, half: bool) -> None:
    """Publish a model folder, with its codec when that is a folder: all of it at once."""
    with folders.replacing(target) as folder:
        folders.copy_folder(source, str(folder))
        if half:
            to_bfloat16(folder)
        if codec.embedded:
            folders.copy_folder(codec_files, str(folder / CODEC_FOLDER))
