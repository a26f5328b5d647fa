"""The training loop of a speech LM in one worker, and the dry run.

Owns the optimizer step: gradients of summed losses, divided once by the target count over all
ranks and accumulated rows; and when to log, evaluate, save and stop. Step k sees the same rows
whether or not the run was interrupted before it, because all steps are planned at the start from
lengths and seed. The dry run measures time and peak memory of steps on the fullest rows with the
same worker.
"""

import logging
import resource
import sys
import time
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from sheen.codec.snac import Codec
from sheen.data.prompts import Prompt
from sheen.lm import checkpoint
from sheen.lm.batching import Step
from sheen.rng import step_seed
from sheen.scoring.asr import Grammar, open_transcriber
from sheen.scoring.english import wer_normaliser
from sheen.storage import uris
from sheen.train import checkpoints
from sheen.train.checkpoints import RunOutputs, RunStore, StorageFull
from sheen.train.config import TrainConfig
from sheen.train.data import Position, TrainingSet, plan_run
from sheen.train.distributed import Collectives
from sheen.train.evaluation import EvalSamples, Evaluation
from sheen.train.launcher import Control
from sheen.train.learner import CodecParts, Learner, build_codec, learning_rate, open_model
from sheen.train.metrics import (
    MetricsWindow,
    Speed,
    console_line,
    loss_metrics,
    sums_vector,
    vector_size,
)

logger = logging.getLogger(__name__)


def train_loop(arguments: dict[str, Any]) -> None:
    """What each worker runs; `arguments` are those of Worker."""
    # A bar per file of weights says nothing in a job's log.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    worker = arguments["control"].start(Worker, arguments)
    if worker is None:
        return
    try:
        worker.run()
    finally:
        worker.outputs.close()


class Worker:
    """One rank of a run."""

    def __init__(
        self,
        config: dict[str, Any],
        data: "ray.ObjectRef[TrainingSet]",
        info: checkpoint.CheckpointInfo,
        model: str,
        codec: CodecParts,
        prompts: list[Prompt],
        grammar: Grammar | None,
        output: str,
        control: Control,
    ) -> None:
        self.config = TrainConfig.model_construct(**config)
        self.data: TrainingSet = ray.get(data)
        self.info = info
        self.control = control.watched()
        self.group = Collectives()
        torch.set_num_threads(max(1, int(self.config.cpus_per_worker)))
        torch.manual_seed(self.config.seed)
        rows: list[dict[str, Any]] = [self.data.summary]
        store = RunStore(uris.join(output, self.config.run_name), self.config.keep_checkpoints)
        with store.open_latest() as folder:
            source = model
            if folder is not None and not self.config.lora_rank:  # adapters go on from their base
                source = str(folder / checkpoints.MODEL_FOLDER)
            self.model, self.tokenizer = open_model(
                source,
                info,
                self.config.seed,
                codec if self.config.new_rows == "codebook" else None,
                lora_rank=self.config.lora_rank,
                lora_alpha=self.config.lora_alpha,
            )
            restored: dict[str, Any] = checkpoints.load(folder) if folder is not None else {}
        if self.config.lora_rank:
            self.model.load_state_dict(restored.get("learned", {}), strict=False)
        self.learner = Learner(
            self.model,
            self.group,
            strategy=self.config.strategy,
            precision=self.config.precision,
            compile_layers=self.config.compile,
            learning_rate=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        done: Position | None = None
        if restored:
            self.learner.load_optimizer(restored["optimizer"])
            done, rows = Position(**restored["position"]), restored["rows"]
            self._say(f"resuming after step {done.step}")
        self.plan = plan_run(
            self.data.lengths,
            self.data.train,
            capacity=self.config.batch_tokens,
            seed=self.config.seed,
            epochs=self.config.epochs,
            max_steps=self.config.max_steps,
            world=self.group.world,
            accumulation=self.config.accumulation,
            done=done,
        )
        for note in self.plan.notes:
            self._say(note)
        self.step, self.used = (done.step, done.rows) if done else (0, 0)
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        self.outputs = RunOutputs(
            output,
            rows,
            info,
            self.tokenizer,
            self.config,
            store,
            first_step=self.step,
            writes=self.group.first,
        )
        samples = None
        if self.group.first and prompts:
            samples = self._samples(prompts, codec, grammar)
        self.evaluation = Evaluation(
            self.learner,
            self.group,
            self.data,
            samples,
            capacity=self.config.batch_tokens,
            pad_id=self.pad_id,
        )
        self._speaks = bool(prompts)
        self.speed = Speed(self.model, self.group.device, self.group.world)
        levels = info.token_layout.levels
        self.window = MetricsWindow(self.group, vector_size(levels), self.group.device)
        if restored:
            self.window.load_state(restored)

    def _samples(
        self, prompts: list[Prompt], parts: CodecParts, grammar: Grammar | None
    ) -> EvalSamples:
        config = self.config
        asr = None
        if config.asr:
            asr = open_transcriber(config.asr, grammar, language=config.asr_language)
        normalise = wer_normaliser(config.asr, config.asr_language)
        codec = Codec(build_codec(parts), self.group.device)
        return EvalSamples(
            prompts, self.info, self.tokenizer, codec, asr, config.speak_seconds, normalise
        )

    def run(self) -> None:
        config = self.config
        for batches in self.plan.steps:
            norm, stop = self.train_step(batches)
            if not np.isfinite(norm):
                self.control.fail(checkpoints.not_finite(norm, self.step, config.learning_rate))
                return
            self.step += 1
            self.used += sum(len(row) > 0 for ranks in batches for row in ranks)
            last = self.step == self.plan.total
            row: dict[str, Any] = {}
            if self.step % config.log_every == 0 or last:
                row |= self._training_metrics(norm)
            if len(self.data.evaluation) and (self.step % config.eval_every == 0 or last):
                with self.window.paused():
                    row |= self.evaluation.loss()
            if self._speaks and (self.step % config.speak_every == 0 or last):
                with self.window.paused():
                    row |= self.evaluation.speak(self.outputs.speak, self.step)
            if row:
                row = {"event": "step", "step": self.step, "steps": self.plan.total} | row
                self.outputs.add(row)
                self._say(console_line(row))
            best = self.outputs.improved(row)
            save = self.step % config.save_every == 0 or last or stop
            if (best or save) and (failure := self._save(best=best, save=save)):
                self.control.fail(failure)
                return
            if stop and not last:
                self._say(f"stopped after step {self.step}, saved")
                break

    def train_step(self, batches: Step) -> tuple[float, bool]:
        """The gradient norm, and whether the run is to stop: ranks agree on both."""
        config = self.config
        pad_to = config.batch_tokens if config.compile else 0
        mine = [self.data.batch(ranks[self.group.rank], self.pad_id, pad_to) for ranks in batches]
        asked = float(self.control.stop_requested())
        targets = float(sum(len(batch.targets) for batch in mine))
        count, stop = self.group.sum(torch.tensor([targets, asked], dtype=torch.float64)).tolist()
        # Dropout of this step and rank, whatever ran before.
        torch.manual_seed(step_seed(config.seed, self.step, self.group.rank))
        for index, batch in enumerate(mine):
            sums = self.learner.loss(batch, last=index + 1 == len(mine))
            # Gradients are averaged over ranks; the loss is a sum over them.
            (sums.loss.sum() * (self.group.world / count)).backward()
            self.window.add(sums_vector(sums, batch.input_ids.shape[1]))
        rate = learning_rate(
            self.step,
            config.learning_rate,
            config.warmup_steps,
            self.plan.total,
            config.schedule,
            config.decay_share,
        )
        return self.learner.update(rate, config.clip_norm), stop > 0

    def _training_metrics(self, norm: float) -> dict[str, Any]:
        sums, seconds = self.window.end()
        steps = (self.step - 1) % self.config.log_every + 1
        return {
            **loss_metrics(sums),
            "gradient_norm": round(norm, 4),
            "learning_rate": self.learner.optimizer.param_groups[0]["lr"],
            **self.speed.metrics(sums, seconds),
            "seconds_left": round(seconds / steps * (self.plan.total - self.step)),
        }

    def _save(self, *, best: bool, save: bool) -> str:
        """Write as the best model, as a checkpoint, or both; returns why it cannot go on, or ""."""
        failure = ""
        with self.window.paused():
            weights, optimizer = self.learner.state()
            window = self.window.state()
            learned: dict[str, Tensor] = {}
            if self.config.lora_rank:
                names = {name for name, part in self.model.named_parameters() if part.requires_grad}
                learned = {name: part for name, part in weights.items() if name in names}
            try:
                if best:
                    self.outputs.keep_best(self.step, self.model, weights)
                if save:
                    self.outputs.save(
                        self.step,
                        self.model,
                        weights,
                        learned=learned,
                        optimizer=optimizer,
                        position=vars(Position(self.step, self.used, self.plan.rows_per_step)),
                        **window,
                    )
            except StorageFull as error:
                failure = str(error)
        return self.group.gather(failure)[0]

    def _say(self, text: str) -> None:
        if self.group.first:
            logger.info(text)


def dry_run_loop(arguments: dict[str, Any]) -> dict[str, Any]:
    """What each worker runs instead of the training loop; its figures."""
    worker = arguments["control"].start(Worker, arguments)
    if worker is None:
        return {}
    lengths, steps = worker.data.lengths, worker.plan.steps
    tokens = [max(lengths[row].sum() for ranks in step for row in ranks) for step in steps]
    fullest = steps[int(np.argmax(tokens))]
    worker.train_step(fullest)  # allocates the optimizer's state
    started = time.monotonic()
    norm, _ = worker.train_step(fullest)
    seconds = time.monotonic() - started
    worker.outputs.close()
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
    """Bytes: the device's, or this process's where it computes in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_dry_run(metrics: dict[str, Any]) -> str:
    """For the console."""
    return (
        f"dry run: {metrics['parameters_m']} M parameters, {metrics['steps']} steps of about "
        f"{metrics['seconds_per_step']} s ({metrics['hours']} h without evaluations), peak memory "
        f"{metrics['peak_memory_gb']} GB of a worker on {metrics['device']}, "
        f"{metrics['eval_utterances']} utterances to evaluate on; nothing of it is kept"
    )
