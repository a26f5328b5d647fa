"""The train job: a dataset of codes -> a checkpoint that transformers opens.

Owns the work before and after the workers run: opening data and base, resuming, and exporting the
last and the best checkpoint.
"""

from contextlib import ExitStack
from typing import Any

import ray

from sheen.codec.info import CODEC_FOLDER, CodecInfo
from sheen.codec.snac import open_codec
from sheen.data.prompts import Prompt
from sheen.lm.card import CARD_FILE, card, trained_note
from sheen.lm.checkpoint import INFO_FILE, ReferenceInfo
from sheen.lm.model_files import to_bfloat16
from sheen.runs import cluster
from sheen.runs.output import output_lock
from sheen.scoring.asr.transcribers import check_transcriber
from sheen.storage import files, folders, hub, uris
from sheen.text.steps import check_steps
from sheen.train import checkpoints
from sheen.train.checkpoints import RunStore
from sheen.train.config import FREE_FIELDS, TrainConfig
from sheen.train.data import build_training_set, describe
from sheen.train.evaluation import eval_prompts
from sheen.train.inputs import (
    codec_of,
    model_content,
    model_source,
    normalizer_of,
    plan_checkpoint,
    tags_of,
)
from sheen.train.launcher import fit
from sheen.train.learning.metrics_log import last_metrics
from sheen.train.learning.settings import check_guide_weight, check_level_weights
from sheen.train.tracking import check_trackers
from sheen.train.trainer import describe_dry_run, dry_run_loop, show_example, train_loop

EVAL_ROWS = 256
"""Most utterances of an evaluation, which costs as much as their training; the intervals of their
losses are narrow enough."""


def run(config: TrainConfig) -> dict[str, Any]:
    """Train; returns the last metrics, or the figures of a dry run.

    Raises ValueError for what the user must change, and the errors of `launcher.fit`.
    """
    output = cluster.output_folder("--output", config.output)
    locations = [uris.absolute(location) for location in config.data]
    check_trackers(config.trackers)
    source = model_source(config.model)
    model = hub.located_with(source, INFO_FILE)
    codec, codec_files = codec_of(locations, config.codec, model)
    tags = tags_of(locations, config.tags)
    named = config.codec is not None
    info, tokenizer, extends = plan_checkpoint(model, codec, tags, config.form, named=named)
    if config.softmax is None:
        # Other engines for the family's checkpoints decode without a mask.
        orpheus = info.layout.family == "orpheus"
        config = config.model_copy(update={"softmax": "full" if orpheus else "masked"})
    assert config.softmax is not None
    info.softmax = config.softmax
    info.normalizer = normalizer_of(locations, model, info)
    limit = min(config.max_tokens, info.max_seq_len)
    if config.batch_tokens < limit:
        raise ValueError(
            f"--batch-tokens {config.batch_tokens}: a row must hold the longest utterance, "
            f"--max-tokens {limit}; raise the one or lower the other"
        )
    check_guide_weight(config.guided_attention, config.guided_attention_steps)
    check_level_weights(config.level_weights, config.level_weights_steps, info.token_layout.levels)
    data, properties = build_training_set(
        locations,
        info.token_layout,
        tokenizer,
        limit,
        config.eval_share,
        EVAL_ROWS,
        config.seed,
        reference_share=config.reference_share,
        prompt=info.prompt,
        softmax=info.softmax,
        tags=info.tags,
    )
    if config.reference_share:
        info.reference = ReferenceInfo(form="one-turn")
    print(describe(data.summary), flush=True)
    properties.add_to(info)
    prompts: list[Prompt] = []
    if config.eval_prompts is not None:
        if config.strategy == "fsdp":
            raise ValueError(
                "--eval-prompts: a sharded model (--strategy fsdp) cannot synthesize while it "
                "trains; omit the prompts and run jobs/evaluate.py on the checkpoint"
            )
        if config.asr is not None:
            check_transcriber(config.asr, config.asr_language)
        prompts = eval_prompts(
            config.eval_prompts,
            info.voices,
            instructions=info.follows_instructions,
            described=info.prompt.describes,
        )
        check_steps(info.normalizer)
    needs_codec = bool(prompts) or extends
    with ExitStack() as owned:
        if not config.dry_run:
            owned.enter_context(output_lock(output))
        fields = config.model_dump(mode="json")
        if config.dry_run:
            print(show_example(data, tokenizer), flush=True)
            fields["trackers"] = []  # a dry run leaves nothing behind
            # Next to the output: workers on other nodes could not access a temporary folder.
            output = uris.with_suffix(output, ".dry-run")
        else:
            content = {
                "data content": f"{data.summary['utterances']} utterances, sha256 {data.digest()}",
                "model content": model_content(model),
                "codec sha256": codec.sha256,
            }
            # None for the default, as in runs from before these fields existed.
            since = ("history_noise", "guided_attention", "reference_share")
            recorded = fields | {name: fields[name] or None for name in since}
            checkpoints.check_run_fingerprint(output, recorded, FREE_FIELDS, content)
        cluster.connect()
        arguments = {
            "config": fields,
            "data": ray.put(data),
            "info": info,
            "model": source,
            "codec": ray.put(_codec_parts(codec_files) if needs_codec else None),
            "prompts": prompts,
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
        store = RunStore(output, config.keep_checkpoints)
        last, best = store.latest(), store.best()
        assert last is not None, "a finished run has a checkpoint"
        model_folder = uris.join(last, checkpoints.MODEL_FOLDER)
        words = card(info, [trained_note(info)]) if info.layout.family == "orpheus" else None
        made = codec, codec_files, config.half, words
        _export(model_folder, uris.join(output, "checkpoint"), *made)
        if best is not None:
            _export(best, uris.join(output, "best"), *made)
        return last_metrics(output)


def _codec_parts(source: str) -> Any:
    """The codec's arguments and weights."""
    with folders.local_folder(source) as folder:
        codec, arguments = open_codec(str(folder))
    return arguments, codec.state_dict()


def _export(
    source: str, target: str, codec: CodecInfo, codec_files: str, half: bool, words: str | None
) -> None:
    """Write a model folder atomically, with its codec if that is a folder, and a model card."""
    with folders.replacing(target) as folder:
        folders.copy_folder(source, str(folder))
        if half:
            to_bfloat16(folder)
        if codec.embedded:
            folders.copy_folder(codec_files, str(folder / CODEC_FOLDER))
        if words is not None:
            (folder / CARD_FILE).write_text(words, "utf-8")
