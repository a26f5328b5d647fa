"""The training loop of one worker.

Owns the optimizer step: gradients of summed losses, divided once by the target count over all
ranks and accumulated rows; and when to log, evaluate, save and stop. Step k sees the same rows
whether or not the run was interrupted before it, because the plan of all steps is made at the
start from lengths and seed.
"""

import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from snac import SNAC
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from sheen.core import checkpoint, files
from sheen.core.codec import Codec
from sheen.core.draws import step_seed
from sheen.core.model import SpeechLM, extend, load_base, load_model
from sheen.core.packing import Step, pack
from sheen.judge.hearing import open_transcriber
from sheen.train import state
from sheen.train.audition import Audition, Prompt
from sheen.train.config import TrainConfig
from sheen.train.control import Control
from sheen.train.data import TrainingSet
from sheen.train.learner import Learner, add_adapters
from sheen.train.outcome import Outcome
from sheen.train.plan import Position, plan_run
from sheen.train.ranks import Ranks
from sheen.train.schedule import learning_rate
from sheen.train.store import RunStore, StorageFull
from sheen.train.throughput import peak_flops, training_flops

logger = logging.getLogger(__name__)


def train_loop(arguments: dict[str, Any]) -> None:
    """What each worker runs; `arguments` are those of Worker."""
    # A bar per file of weights says nothing in a job's log.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    worker = Worker(**arguments)
    try:
        worker.run()
    finally:
        worker.outcome.close()


class Worker:
    """One rank of a run."""

    def __init__(
        self,
        config: dict[str, Any],
        data: "ray.ObjectRef[TrainingSet]",
        info: checkpoint.CheckpointInfo,
        model: str,
        codec: "ray.ObjectRef[tuple[dict[str, Any], dict[str, Tensor]]]",
        prompts: list[Prompt],
        output: str,
        control: Control,
    ) -> None:
        self.config = TrainConfig.model_construct(**config)
        self.data: TrainingSet = ray.get(data)
        self.info = info
        self.control = control.watched()
        self.ranks = Ranks()
        torch.set_num_threads(max(1, int(self.config.cpus_per_worker)))
        torch.manual_seed(self.config.seed)
        rows: list[dict[str, Any]] = [self.data.summary]
        self._codec = codec
        store = RunStore(files.join(output, self.config.run_name), self.config.keep_checkpoints)
        restored: dict[str, Any] = {}
        with store.open_latest() as folder:
            if folder is None:
                self._open(model)
            else:
                adapted = self.config.lora_rank > 0
                self._open(model if adapted else str(folder / state.MODEL_FOLDER))
                restored = state.load(folder)
        if self.config.lora_rank:
            self.model.load_state_dict(restored.get("learned", {}), strict=False)
        self.learner = Learner(
            self.model,
            self.ranks,
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
            world=self.ranks.world,
            accumulation=self.config.accumulation,
            done=done,
        )
        for note in self.plan.notes:
            self._say(note)
        self.step, self.used = (done.step, done.rows) if done else (0, 0)
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        self.outcome = Outcome(
            output,
            rows,
            info,
            self.tokenizer,
            self.config,
            store,
            first_step=self.step,
            writes=self.ranks.first,
        )
        self.audition = self._audition(prompts) if self.ranks.first and prompts else None
        self._speaks = bool(prompts)
        levels = info.token_layout.levels
        # Sums since the last line of metrics; those of a killed run's interval go on.
        self._recent = torch.zeros(2 * levels + 3, dtype=torch.float64, device=self.ranks.device)
        self._seconds = 0.0
        if restored and self.ranks.first:
            self._recent += restored["recent"].to(self.ranks.device)
            self._seconds = restored["seconds"]
        self._since = time.monotonic()
        self._flops = training_flops(self.model)
        self._peak = peak_flops(self.ranks.device)

    def _open(self, source: str) -> None:
        codebooks = None
        if self.config.new_rows == "codebook":
            quantizers = self._open_codec().quantizer.quantizers
            codebooks = [quantizer.codebook.weight.detach() for quantizer in quantizers]
        self.model, self.tokenizer = open_model(source, self.info, self.config.seed, codebooks)
        if self.config.lora_rank:
            add_adapters(self.model, self.config.lora_rank, self.config.lora_alpha)

    def _open_codec(self) -> SNAC:
        arguments, weights = ray.get(self._codec)
        codec = SNAC(**arguments)
        codec.load_state_dict(weights)
        return codec

    def _audition(self, prompts: list[Prompt]) -> Audition:
        config = self.config
        judge = open_transcriber(config.judge, config.grammar) if config.judge else None
        codec = Codec(self._open_codec(), self.ranks.device)
        return Audition(prompts, self.info, self.tokenizer, codec, judge, config.speak_seconds)

    def run(self) -> None:
        config = self.config
        for batches in self.plan.steps:
            norm, stop = self._optimizer_step(batches)
            if not np.isfinite(norm):
                self.control.fail(state.not_finite(norm, self.step, config.learning_rate))
                return
            self.step += 1
            self.used += sum(len(row) > 0 for ranks in batches for row in ranks)
            last = self.step == self.plan.total
            row: dict[str, Any] = {}
            if self.step % config.log_every == 0 or last:
                row |= self._training_metrics(norm)
            if len(self.data.evaluation) and (self.step % config.eval_every == 0 or last):
                row |= self._evaluate()
            if self._speaks and (self.step % config.speak_every == 0 or last):
                row |= self._speak()
            if row:
                row = {"event": "step", "step": self.step, "steps": self.plan.total} | row
                self.outcome.add(row)
                self._say(_line(row))
            best = self.outcome.improved(row)
            save = self.step % config.save_every == 0 or last or stop
            if (best or save) and (failure := self._save(best=best, save=save)):
                self.control.fail(failure)
                return
            if stop and not last:
                self._say(f"stopped after step {self.step}, saved")
                break

    def _optimizer_step(self, batches: Step) -> tuple[float, bool]:
        """The gradient norm, and whether the run is to stop: ranks agree on both."""
        config = self.config
        pad_to = config.batch_tokens if config.compile else 0
        mine = [self.data.batch(ranks[self.ranks.rank], self.pad_id, pad_to) for ranks in batches]
        asked = float(self.control.stop_requested())
        targets = float(sum(len(batch.targets) for batch in mine))
        count, stop = self.ranks.sum(torch.tensor([targets, asked], dtype=torch.float64)).tolist()
        # Dropout of this step and rank, whatever ran before.
        torch.manual_seed(step_seed(config.seed, self.step, self.ranks.rank))
        for index, batch in enumerate(mine):
            sums = self.learner.loss(batch, last=index + 1 == len(mine))
            # Gradients are averaged over ranks; the loss is a sum over them.
            (sums.loss.sum() * (self.ranks.world / count)).backward()
            self._recent += _numbers(sums, batch.input_ids.shape[1])
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
        sums = self.ranks.sum(self._recent)
        seconds = self._seconds + time.monotonic() - self._since
        metrics, count = self._named(sums[:-1], "")
        metrics |= {
            "gradient_norm": round(norm, 4),
            "learning_rate": self.learner.optimizer.param_groups[0]["lr"],
            "target_tokens_per_second": round(count / seconds, 1),
            "tokens_per_second": round(float(sums[-1]) / seconds, 1),
        }
        if self._peak is not None:
            flops = self._flops[0] * float(sums[-1]) + self._flops[1] * count
            share = flops / seconds / (self._peak * self.ranks.world)
            metrics["share_of_peak"] = round(share, 4)
        interval = (self.step - 1) % self.config.log_every + 1
        metrics["seconds_left"] = round(seconds / interval * (self.plan.total - self.step))
        self._recent.zero_()
        self._seconds, self._since = 0.0, time.monotonic()
        return metrics

    def _evaluate(self) -> dict[str, Any]:
        started = time.monotonic()
        self.model.eval()
        sums = torch.zeros_like(self._recent)
        rows = pack(self.data.lengths, self.data.evaluation, self.config.batch_tokens)
        # Every rank takes equally many, as sharded layers compute together.
        rows += [np.zeros(0, np.int64)] * (-len(rows) % self.ranks.world)
        for indices in rows[self.ranks.rank :: self.ranks.world]:
            batch = self.data.batch(indices, self.pad_id)
            sums += _numbers(self.learner.evaluate(batch), batch.input_ids.shape[1])
        self.model.train()
        metrics, _ = self._named(self.ranks.sum(sums)[:-1], "eval_")
        self._since += time.monotonic() - started  # not the training's time
        return metrics

    def _speak(self) -> dict[str, Any]:
        """The first rank speaks; all get what was measured."""
        started = time.monotonic()
        metrics: dict[str, Any] = {}
        if self.audition is not None:
            self.model.eval()
            spoken = self.audition.speak(self.model)
            self.model.train()
            metrics = self.audition.measure(spoken)
            self.outcome.speak(self.step, spoken, self.audition.sample_rate)
        metrics = self.ranks.gather(metrics)[0]
        self._since += time.monotonic() - started
        return metrics

    def _named(self, sums: Tensor, prefix: str) -> tuple[dict[str, Any], float]:
        levels = self.info.token_layout.levels
        loss, count, ends = sums[:levels], sums[levels : 2 * levels], sums[2 * levels :]
        metrics = {f"{prefix}loss": float(loss.sum() / count.sum())}
        for level in range(levels):
            metrics[f"{prefix}loss_level_{level}"] = float(loss[level] / count[level])
        metrics[f"{prefix}end_accuracy"] = float(ends[1] / ends[0])
        return {name: round(value, 5) for name, value in metrics.items()}, float(count.sum())

    def _save(self, *, best: bool, save: bool) -> str:
        """Write as the best model, as a checkpoint, or both; returns why it cannot go on, or ""."""
        started = time.monotonic()
        self._seconds += started - self._since
        weights, optimizer = self.learner.state()
        recent = self.ranks.sum(self._recent)
        learned: dict[str, Tensor] = {}
        if self.config.lora_rank:
            names = {name for name, part in self.model.named_parameters() if part.requires_grad}
            learned = {name: part for name, part in weights.items() if name in names}
        failure = ""
        try:
            if best:
                self.outcome.keep_best(self.step, self.model, weights)
            if save:
                self.outcome.save(
                    self.step,
                    self.model,
                    weights,
                    learned=learned,
                    optimizer=optimizer,
                    position=vars(Position(self.step, self.used, self.plan.rows_per_step)),
                    recent=recent,
                    seconds=self._seconds,
                )
        except StorageFull as error:
            failure = str(error)
        self._since = time.monotonic()
        return self.ranks.gather(failure)[0]

    def _say(self, text: str) -> None:
        if self.ranks.first:
            logger.info(text)


def _numbers(sums: Any, tokens: int) -> Tensor:
    """Loss and count per level, ends, ends right, and the tokens of the row."""
    ends = torch.stack([sums.ends, sums.ends_right, torch.full_like(sums.ends, tokens)])
    return torch.cat([sums.loss.detach().double(), sums.count.double(), ends.double()])


def open_model(
    source: str, info: checkpoint.CheckpointInfo, seed: int, codebooks: list[Tensor] | None
) -> tuple[SpeechLM, Any]:
    """A checkpoint as it is, or a base with the codec's tokens added."""
    folder = files.local_folder(source) if files.is_uri(source) else Path(source)
    if checkpoint.is_checkpoint(folder):
        return load_model(folder, info.token_layout, info.objective)
    lm, tokenizer = load_base(str(folder))
    model = extend(lm, tokenizer, info.layout.codebook_size, info.layout.strides, seed, codebooks)
    assert model.layout == info.token_layout, "driver and worker disagree about the first id"
    model.objective = info.objective
    return model, tokenizer


def _line(row: dict[str, Any]) -> str:
    parts = [f"step {row['step']}/{row['steps']}"]
    if "loss" in row:
        levels = "/".join(
            f"{value:.2f}" for name, value in row.items() if name.startswith("loss_level_")
        )
        parts += [f"loss {row['loss']:.3f} ({levels})"]
        parts += [f"{row['tokens_per_second']:.0f} tokens/s"]
        if "share_of_peak" in row:
            parts += [f"{row['share_of_peak']:.0%} of peak"]
        parts += [f"{timedelta(seconds=row['seconds_left'])} left"]
    if "eval_loss" in row:
        parts += [f"eval loss {row['eval_loss']:.3f}, end {row['eval_end_accuracy']:.0%}"]
    if "eval_wer" in row:
        parts += [f"word errors {row['eval_wer']:.1%}"]
    return ", ".join(parts)
