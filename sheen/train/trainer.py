"""The training loop of a speech LM in one worker, and the dry run.

Owns when to log, evaluate, save and stop, and the rows of a step: step k has the same rows whether
or not the run was interrupted, because all steps are planned at the start from lengths and seed.
The dry run measures time and peak memory of steps on the fullest rows with the same worker.
"""

import resource
import sys
import time
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sheen.codec.snac import Codec
from sheen.data.prompts import Prompt
from sheen.lm import checkpoint
from sheen.lm.batching import Batch
from sheen.lm.loss import IGNORE_INDEX
from sheen.lm.model_files import ModelFiles
from sheen.lm.packing import Step
from sheen.rng import step_seed
from sheen.scoring.asr.transcribers import open_transcriber
from sheen.scoring.wer import wer_normalizer
from sheen.storage import folders
from sheen.train import checkpoints
from sheen.train.checkpoints import Snapshot
from sheen.train.config import TrainConfig
from sheen.train.data import Position, plan_run
from sheen.train.evaluation import EvalSamples, Evaluation
from sheen.train.initial import CodecParts, build_codec, open_model
from sheen.train.launcher import Control
from sheen.train.learning.learner import Learner, compiles, take_step
from sheen.train.learning.metrics import Speed, Sums, describe_losses, loss_metrics
from sheen.train.learning.metrics_log import best_so_far
from sheen.train.learning.settings import guide_weight, level_weights
from sheen.train.learning.training_set import TrainingSet, with_noise
from sheen.train.loop import Trainer, run_trainer

DRY_RUN_STEPS = 2
"""Steps of a dry run; the last one is timed, since the first allocates the optimizer's state."""
SPEAK_SECONDS = 15.0
"""Longest audio of a chunk of an evaluation sample, of a model that may not emit EOS yet."""


def train_loop(arguments: dict[str, Any]) -> None:
    """The function of each worker; `arguments` are those of SpeechTrainer."""
    run_trainer(SpeechTrainer, arguments)


class SpeechTrainer(Trainer):
    """One rank of a run that trains a speech LM."""

    config: TrainConfig
    learner: Learner

    def __init__(
        self,
        config: dict[str, Any],
        data: "ray.ObjectRef[TrainingSet]",
        info: checkpoint.CheckpointInfo,
        model: str,
        codec: CodecParts,
        prompts: list[Prompt],
        output: str,
        control: Control,
    ) -> None:
        super().__init__(TrainConfig.model_construct(**config), output, control)
        self.schedule = self.config.schedule
        self.data: TrainingSet = ray.get(data)
        self.info = info
        state = self._open_learner(model, codec)
        done = Position(**state["position"]) if state else None
        self.used = done.rows if done else 0
        self.plan = plan_run(
            self.data.lengths,
            partial(self.data.items, self.config.seed),
            capacity=self.config.batch_tokens,
            seed=self.config.seed,
            epochs=self.config.epochs,
            max_steps=self.config.max_steps,
            world=self.group.world,
            accumulation=self.config.accumulation,
            done=done,
        )
        self.evaluation = Evaluation(
            self.learner,
            self.group,
            self.data,
            self._eval_samples(prompts, codec) if self.group.first and prompts else None,
            capacity=self.config.batch_tokens,
            pad_id=self.pad_id,
        )
        self._has_prompts = bool(prompts)
        self.speed = Speed(self.learner.model, self.group.device, self.group.world)
        self.begin(state, self.data.summary, self.plan.total)
        for note in self.plan.notes:
            self.log_line(note)
        saved = self.store.best_metric() if state else {}
        self.best = best_so_far(self.log.rows, saved, self.config.best_metric or "")

    def _open_learner(self, model: str, codec: CodecParts) -> dict[str, Any] | None:
        """Open the learner from the last checkpoint, or new; returns that checkpoint's state.

        With LoRA, opens the base and loads the checkpoint's adapters.
        """
        config = self.config
        torch.manual_seed(config.seed)
        state: dict[str, Any] | None = None
        with self.store.open_latest() as folder:
            resumed = folder is not None and not config.lora_rank
            self.model, self.tokenizer = open_model(
                str(folder / checkpoints.MODEL_FOLDER) if folder and resumed else model,
                self.info,
                config.seed,
                codec,
                lora_rank=config.lora_rank,
            )
            if folder is not None:
                state = checkpoints.load(folder)
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        if state and config.lora_rank:
            self.model.load_state_dict(state["learned"], strict=False)
        self.learner = Learner(
            self.model,
            self.group,
            strategy=config.strategy,
            precision=config.precision,
            compile_layers=compiles(config.compile, self.group.device),
            learning_rate=config.learning_rate,
        )
        if state:
            self.learner.load_optimizer(state["optimizer"])
        return state

    def _eval_samples(self, prompts: list[Prompt], codec: CodecParts) -> EvalSamples:
        config, asr = self.config, None
        if config.asr:
            asr = open_transcriber(config.asr, language=config.asr_language)
        return EvalSamples(
            prompts,
            self.info,
            self.tokenizer,
            Codec(build_codec(codec), self.group.device),
            asr,
            SPEAK_SECONDS,
            wer_normalizer(config.asr, config.asr_language),
            self.output,
        )

    def batches(self) -> Iterator[Step]:
        return iter(self.plan.steps)

    def train_step(self, batch: Step, rate: float) -> Tensor:
        config = self.config
        norm = take_step(
            self.learner,
            self.group,
            self.window,
            self._rows(batch),
            weights=level_weights(
                config.level_weights,
                config.level_weights_steps,
                self.step,
                self.data.layout.levels,
            ),
            guide_weight=guide_weight(
                config.guided_attention, config.guided_attention_steps, self.step
            ),
            rate=rate,
            seed=step_seed(config.seed, self.step, self.group.rank),
        )
        self.used += sum(len(row) > 0 for ranks in batch for row in ranks)
        return norm

    def _rows(self, batch: Step) -> list[Batch]:
        """This rank's rows of a step. A row's noise depends on its number in the run alone."""
        config, group, data = self.config, self.group, self.data
        rows = []
        for index, ranks in enumerate(batch):
            row = data.batch(ranks[group.rank], self.pad_id, self.plan.row_length)
            number = self.used + index * group.world + group.rank
            rows.append(with_noise(row, data.layout, config.history_noise, config.seed, number))
        return rows

    def training_metrics(self, sums: Sums, seconds: float) -> dict[str, Any]:
        return loss_metrics(sums) | self.speed.metrics(sums, seconds)

    def evaluation_intervals(self) -> list[int | None]:
        return [
            *([self.eval_every] if len(self.data.evaluation) else []),
            *([self.save_every] if self._has_prompts else []),
        ]

    def evaluate(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        if len(self.data.evaluation) and self.due(self.eval_every):
            metrics |= self.evaluation.loss()
        if self._has_prompts and self.due(self.save_every):
            metrics |= self.evaluation.speech(self.step, self.trackers)
        return metrics

    def is_best(self, row: dict[str, Any]) -> bool:
        metric = self.config.best_metric or ""
        value = row.get(metric)
        if value is None or not value < self.best.get(metric, np.inf):
            return False
        self.best = {metric: value}
        return True

    @cached_property
    def _files(self) -> ModelFiles:
        record = folders.dump_record(self.info)
        return ModelFiles(self.model, self.tokenizer, {checkpoint.INFO_FILE: record})

    def snapshot(self, *, resumable: bool) -> Snapshot:
        if not resumable:
            return Snapshot(self._files, self.learner.weights(), {})
        weights, optimizer = self.learner.state()
        learned: dict[str, Tensor] = {}
        if self.config.lora_rank:
            names = {name for name, part in self.model.named_parameters() if part.requires_grad}
            learned = {name: part for name, part in weights.items() if name in names}
        position = Position(self.step, self.used, self.plan.rows_per_step)
        state = {"learned": learned, "optimizer": optimizer, "position": vars(position)}
        return Snapshot(self._files, weights, state)

    def describe(self, row: dict[str, Any]) -> list[str]:
        return describe_losses(row)


def dry_run_loop(arguments: dict[str, Any]) -> dict[str, Any]:
    """The function of each worker in a dry run; returns its figures."""
    worker: SpeechTrainer | None = arguments["control"].start(SpeechTrainer, arguments)
    return {} if worker is None else measure_steps(worker)


def measure_steps(worker: SpeechTrainer) -> dict[str, Any]:
    """Take DRY_RUN_STEPS optimizer steps on the fullest rows; returns time and memory."""
    lengths, steps = worker.data.lengths, worker.plan.steps
    tokens = [max(lengths[row].sum() for ranks in step for row in ranks) for step in steps]
    fullest = steps[int(np.argmax(tokens))]
    for _ in range(DRY_RUN_STEPS):
        started = time.monotonic()
        norm = float(worker.train_step(fullest, worker.learning_rate()))
    seconds = time.monotonic() - started
    worker.close()
    weights = sum(p.numel() for p in worker.model.parameters())
    return {
        "steps": worker.plan.total,
        "seconds_per_step": round(seconds, 3),
        "hours": round(seconds * worker.plan.total / 3600, 2),
        "peak_memory_gb": round(_peak_memory(worker.group.device) / 1e9, 2),
        "device": str(worker.group.device),
        "parameters_m": round(weights / 1e6, 1),
        "gradient_norm": norm,
        "eval_utterances": len(worker.data.evaluation),
    }


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_dry_run(metrics: dict[str, Any]) -> str:
    """The result of a dry run for the console."""
    return (
        f"dry run: {metrics['parameters_m']} M parameters, {metrics['steps']} steps of about "
        f"{metrics['seconds_per_step']} s ({metrics['hours']} h without evaluations), peak memory "
        f"{metrics['peak_memory_gb']} GB of a worker on {metrics['device']}, "
        f"{metrics['eval_utterances']} utterances for evaluation; no files are kept"
    )


def show_example(data: TrainingSet, tokenizer: PreTrainedTokenizerBase) -> str:
    """The shortest utterance token by token, and which tokens carry loss.

    Long stretches are abbreviated.
    """
    index = data.train[data.lengths[data.train].argmin()]
    batch = data.batch(np.array([index]), 0)
    ids = batch.input_ids[0].tolist()
    added = data.layout.token_names()
    names = [
        added[token - data.layout.first_id]
        if 0 <= token - data.layout.first_id < len(added)
        else tokenizer.convert_ids_to_tokens(token)
        for token in ids
    ]
    learned = (batch.labels[0] != IGNORE_INDEX).tolist()
    first = learned.index(True)
    lines = [f"the shortest utterance, {len(ids)} tokens of which {sum(learned)} carry loss:"]
    shown = {*range(first), *range(first, first + 9), *range(len(ids) - 3, len(ids))}
    for at, (token, name) in enumerate(zip(ids, names, strict=True)):
        if at in shown:
            lines.append(f"  {at:5d} {token:7d} {'loss' if learned[at] else '   -'}  {name}")
        elif at - 1 in shown:
            lines.append("    ...")
    return "\n".join(lines)
