"""The training loop of one worker.

Owns the optimizer step: gradients of summed losses, divided once by the target count over all
ranks and accumulated batches; and when to log, evaluate and save. Step k sees the same batches
whether or not the run was interrupted before it, because the plan of all steps is made at the
start from lengths and seed.
"""

import logging
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray.train.torch import get_device, prepare_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers.utils.logging import disable_progress_bar

from sheen.core import checkpoint, files
from sheen.core.batches import Batch, Step, plan_batches, plan_epoch, plan_steps
from sheen.core.loss import IGNORE_INDEX
from sheen.core.model import SpeechLM, extend, load_base, load_model, save_model
from sheen.train import state
from sheen.train.config import TrainConfig
from sheen.train.data import TrainingSet
from sheen.train.schedule import learning_rate

logger = logging.getLogger(__name__)

MODEL_FOLDER = "checkpoint"


def train_loop(arguments: dict[str, Any]) -> None:
    """What each worker runs; `arguments` are those of Worker."""
    # A bar per file of weights says nothing in a job's log.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    Worker(**arguments).run()


def plan_run(data: TrainingSet, config: TrainConfig, world: int) -> list[Step]:
    """All optimizer steps of a run, from lengths and seed alone."""
    size = world * config.accumulation
    wanted = (config.max_steps or 0) * size
    batches: list[NDArray[np.int64]] = []
    epoch = 0
    while len(batches) < wanted if config.max_steps else epoch < config.epochs:
        batches += plan_epoch(data.lengths, data.train, config.batch_tokens, config.seed, epoch)
        epoch += 1
    return plan_steps(batches, world, config.accumulation)[: config.max_steps]


class Worker:
    """One rank of a run."""

    def __init__(
        self,
        config: dict[str, Any],
        data: "ray.ObjectRef[TrainingSet]",
        info: checkpoint.CheckpointInfo,
        model: str,
        output: str,
    ) -> None:
        self.config = TrainConfig.model_construct(**config)
        self.data: TrainingSet = ray.get(data)
        self.info = info
        self.output = output
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = get_device()
        torch.set_num_threads(max(1, int(self.config.cpus_per_worker)))
        torch.manual_seed(self.config.seed)
        self.step = 0
        rows: list[dict[str, Any]] = [self.data.summary]
        saved = ray.train.get_checkpoint()
        if saved is None:
            self.model, self.tokenizer = open_model(model, info, self.config.seed)
            self._prepare()
        else:
            with saved.as_directory() as folder:
                self.model, self.tokenizer = load_model(
                    Path(folder) / MODEL_FOLDER, info.token_layout
                )
                self._prepare()
                restored = state.load(folder, self.device)
            self.optimizer.load_state_dict(restored["optimizer"])
            self.step, rows = restored["step"], restored["rows"]
            self._say(f"resuming after step {self.step}")
        self.log = state.MetricsLog(output, rows, writes=self.rank == 0)
        self.steps = plan_run(self.data, self.config, self.world)
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        self._recent = torch.zeros(2 * info.token_layout.levels + 2, dtype=torch.float64)
        self._since = time.monotonic()

    def _prepare(self) -> None:
        self.model.train()
        self.parallel = prepare_model(self.model)
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": self.config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=self.config.learning_rate,
            betas=(0.9, 0.95),
            fused=self.device.type == "cuda",
        )

    def run(self) -> None:
        total = len(self.steps)
        while self.step < total:
            norm = self._optimizer_step(self.steps[self.step])
            self.step += 1
            last = self.step == total
            row: dict[str, Any] = {}
            if self.step % self.config.log_every == 0 or last:
                row |= self._training_metrics(norm)
            if len(self.data.evaluation) and (self.step % self.config.eval_every == 0 or last):
                row |= self._evaluate()
            if row:
                row = {"event": "step", "step": self.step, "steps": total} | row
                self.log.add(row)
                self._say(_line(row))
            if self.step % self.config.save_every == 0 or last:
                self._save()

    def _optimizer_step(self, batches: Step) -> float:
        config = self.config
        mine = [self.data.batch(ranks[self.rank], self.pad_id) for ranks in batches]
        targets = torch.tensor(sum(int((b.labels != IGNORE_INDEX).sum()) for b in mine))
        count = float(self._sum_over_ranks(targets.double()))
        rate = learning_rate(self.step, config.learning_rate, config.warmup_steps, len(self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for index, batch in enumerate(mine):
            accumulating = self.world > 1 and index + 1 < len(mine)
            with self._no_sync() if accumulating else nullcontext():
                sums = self._forward(self.parallel, batch)
                # DDP averages gradients over ranks; the loss is a sum over them.
                (sums[0].sum() * (self.world / count)).backward()
            self._recent += torch.cat([part.detach().double().cpu() for part in sums])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _no_sync(self) -> AbstractContextManager[None]:
        assert isinstance(self.parallel, DistributedDataParallel)
        return self.parallel.no_sync()

    def _forward(self, module: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            sums = module(batch.input_ids.to(self.device), batch.labels.to(self.device))
        return sums.loss, sums.count, torch.stack([sums.ends, sums.ends_right])

    def _training_metrics(self, norm: float) -> dict[str, Any]:
        seconds = time.monotonic() - self._since
        metrics, count = self._named(self._sum_over_ranks(self._recent), "")
        self._recent.zero_()
        self._since = time.monotonic()
        return {
            **metrics,
            "gradient_norm": round(norm, 4),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "target_tokens_per_second": round(count / seconds, 1),
        }

    @torch.no_grad()
    def _evaluate(self) -> dict[str, Any]:
        started = time.monotonic()
        self.model.eval()
        sums = torch.zeros_like(self._recent)
        plan = plan_batches(self.data.lengths, self.data.evaluation, self.config.batch_tokens)
        for indices in plan[self.rank :: self.world]:
            parts = self._forward(self.model, self.data.batch(indices, self.pad_id))
            sums += torch.cat([part.double().cpu() for part in parts])
        self.model.train()
        metrics, _ = self._named(self._sum_over_ranks(sums), "eval_")
        self._since += time.monotonic() - started  # not the training's time
        return metrics

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.world == 1:
            return values
        total = values.to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    def _named(self, sums: Tensor, prefix: str) -> tuple[dict[str, Any], float]:
        levels = self.info.token_layout.levels
        loss, count, ends = sums[:levels], sums[levels:-2], sums[-2:]
        metrics = {f"{prefix}loss": float(loss.sum() / count.sum())}
        for level in range(levels):
            metrics[f"{prefix}loss_level_{level}"] = float(loss[level] / count[level])
        metrics[f"{prefix}end_accuracy"] = float(ends[1] / ends[0])
        return {name: round(value, 5) for name, value in metrics.items()}, float(count.sum())

    def _save(self) -> None:
        started = time.monotonic()
        metrics = {"step": self.step}
        if self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="sheen-") as folder:
            target = Path(folder) / MODEL_FOLDER
            target.mkdir()
            save_model(self.model, self.tokenizer, target)
            checkpoint.write_info(target, self.info)
            state.save(
                Path(folder),
                optimizer=self.optimizer.state_dict(),
                step=self.step,
                rows=self.log.rows,
            )
            self.log.sync()
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        self._since += time.monotonic() - started

    def _say(self, text: str) -> None:
        if self.rank == 0:
            logger.info(text)


def open_model(source: str, info: checkpoint.CheckpointInfo, seed: int) -> tuple[SpeechLM, Any]:
    """A checkpoint as it is, or a base with the codec's tokens added."""
    folder = files.local_folder(source) if files.is_uri(source) else Path(source)
    if checkpoint.is_checkpoint(folder):
        return load_model(folder, info.token_layout)
    lm, tokenizer = load_base(str(folder))
    model = extend(lm, tokenizer, info.layout.codebook_size, info.layout.strides, seed)
    assert model.layout == info.token_layout, "driver and worker disagree about the first id"
    return model, tokenizer


def _line(row: dict[str, Any]) -> str:
    parts = [f"step {row['step']}/{row['steps']}"]
    if "loss" in row:
        levels = "/".join(
            f"{value:.2f}" for name, value in row.items() if name.startswith("loss_level_")
        )
        parts += [f"loss {row['loss']:.3f} ({levels})"]
        parts += [f"{row['target_tokens_per_second']:.0f} tokens/s"]
    if "eval_loss" in row:
        parts += [f"eval loss {row['eval_loss']:.3f}, end {row['eval_end_accuracy']:.0%}"]
    return ", ".join(parts)
