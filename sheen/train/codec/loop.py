"""The codec's training loop of one worker.

Owns the optimizer step and what surrounds it: the restart of unused codes and the average of the
weights, when to log, evaluate and save. Step k hears the same segments and adds the same noise
whether or not the run was interrupted before it.
"""

import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.train.torch import prepare_model
from snac import SNAC
from torch import Tensor

from sheen.core import files
from sheen.core.codec_training import (
    CodecLosses,
    CodeUsage,
    TrainableCodec,
    WeightAverage,
    inference_copy,
    restart_unused,
    save_codec,
)
from sheen.core.draws import step_seed
from sheen.train import state
from sheen.train.codec.config import CodecTrainConfig
from sheen.train.codec.data import Recordings, SegmentReader, sample_names
from sheen.train.codec.evaluation import HeldOut, metrics_of, write_sample
from sheen.train.control import Control
from sheen.train.ranks import Ranks
from sheen.train.schedule import learning_rate
from sheen.train.store import RunStore, StorageFull

logger = logging.getLogger(__name__)

CODEC_FOLDER = "codec"
TERMS = ("mel", "stft", "waveform", "commitment", "codebook")


def train_loop(arguments: dict[str, Any]) -> None:
    """What each worker runs; `arguments` are those of Worker."""
    Worker(**arguments).run()


def segment_samples(seconds: float, sample_rate: int, block: int) -> int:
    """Samples of a segment, rounded up to the codec's block."""
    return -(-round(seconds * sample_rate) // block) * block


def parameter_groups(model: SNAC, codebook_rate: float) -> list[dict[str, Any]]:
    """The optimizer's groups: the codebooks learn `codebook_rate` times as fast as the rest."""
    codebooks = [quantizer.codebook.weight for quantizer in model.quantizer.quantizers]
    of_codebooks = {id(weight) for weight in codebooks}
    rest = [weight for weight in model.parameters() if id(weight) not in of_codebooks]
    return [
        {"params": rest, "relative_rate": 1.0},
        {"params": codebooks, "relative_rate": codebook_rate},
    ]


class Worker:
    """One rank of a run."""

    def __init__(
        self,
        config: dict[str, Any],
        recordings: Recordings,
        codec: "ray.ObjectRef[tuple[dict[str, Any], dict[str, Tensor]]]",
        output: str,
        control: Control,
    ) -> None:
        self.config = CodecTrainConfig.model_construct(**config)
        self.recordings = recordings
        self.output = output
        self.control = control.watched()
        self.ranks = Ranks()
        torch.set_num_threads(max(1, int(self.config.cpus_per_worker)))
        self.codec_config, weights = ray.get(codec)
        model = SNAC(**self.codec_config)
        model.load_state_dict(weights)
        self.model = model.to(self.ranks.device)
        self.sample_rate = int(model.sampling_rate)
        self.average = WeightAverage(self.model, self.config.average_decay)
        self.usage = CodeUsage(model.n_codebooks, model.codebook_size, self.config.restart_patience)
        trainable = TrainableCodec(self.model, self.config.range_db)
        if self.config.compile:
            trainable.compile_layers()
        self.parallel = prepare_model(
            trainable, parallel_strategy_kwargs={"broadcast_buffers": False}
        )
        self.optimizer = torch.optim.Adam(
            parameter_groups(self.model, self.config.codebook_rate),
            lr=self.config.learning_rate,
            betas=(0.8, 0.99),  # as the Descript Audio Codec's
            fused=self.ranks.device.type == "cuda",
        )
        self.step = 0
        rows: list[dict[str, Any]] = [recordings.summary]
        self.store = RunStore(
            files.join(output, self.config.run_name), self.config.keep_checkpoints
        )
        restored: dict[str, Any] = {}
        with self.store.open_latest() as folder:
            if folder is not None:
                restored = state.load(folder)
        if restored:
            self.model.load_state_dict(restored["model"])
            self.average.load_state_dict(restored["average"])
            self.usage.load_state_dict(restored["usage"])
            self.optimizer.load_state_dict(restored["optimizer"])
            self.step, rows = restored["step"], restored["rows"]
            self._say(f"resuming after step {self.step}")
        self.log = state.MetricsLog(output, rows, writes=self.ranks.first)
        block = int(np.prod(model.encoder_rates)) * int(
            np.lcm(model.vq_strides[0], model.attn_window_size or 1)
        )
        self.samples = segment_samples(self.config.segment_seconds, self.sample_rate, block)
        self.reader = SegmentReader(
            recordings.train,
            sample_rate=self.sample_rate,
            samples=self.samples,
            per_rank=self.config.segments,
            rank=self.ranks.rank,
            world=self.ranks.world,
            seed=self.config.seed,
        )
        self._sample_names = sample_names(recordings.evaluation[: self.config.sample_recordings])
        self._recent = torch.zeros(len(TERMS) + 1, dtype=torch.float64)
        self._restarted, self._seconds = 0, 0.0
        if restored and self.ranks.first:
            self._recent, self._seconds = restored["recent"], restored["seconds"]
            self._restarted = restored["restarted"]
        self._since = time.monotonic()

    def run(self) -> None:
        total = self.config.max_steps
        if self.step == 0 and self.recordings.evaluation:
            # What a fine-tune starts from, heard and measured like everything after it.
            self._add({"event": "step", "step": 0, "steps": total} | self._evaluate())
        for batch in self.reader.batches(self.step, total):
            norm = self._optimizer_step(batch)
            if not np.isfinite(norm):
                self.control.fail(state.not_finite(norm, self.step, self.config.learning_rate))
                return
            self.step += 1
            last = self.step == total
            row: dict[str, Any] = {}
            if self.step % self.config.log_every == 0 or last:
                row |= self._training_metrics(norm)
            if self.recordings.evaluation and (self.step % self.config.eval_every == 0 or last):
                row |= self._evaluate()
            if row:
                self._add({"event": "step", "step": self.step, "steps": total} | row)
            asked = torch.tensor([float(self.control.stop_requested())])
            stop = float(self.ranks.sum(asked)) > 0
            save = self.step % self.config.save_every == 0 or last or stop
            if save and (failure := self._save()):
                self.control.fail(failure)
                return
            if stop and not last:
                self._say(f"stopped after step {self.step}, saved")
                return

    def _optimizer_step(self, batch: Tensor) -> float:
        config = self.config
        # The codec's noise of this step and rank, whatever ran before.
        torch.manual_seed(step_seed(config.seed, self.step, self.ranks.rank))
        rate = learning_rate(self.step, config.learning_rate, config.warmup_steps, config.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["relative_rate"]
        device = self.ranks.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            losses: CodecLosses = self.parallel(batch.to(device))
        terms = torch.stack([getattr(losses, name) for name in TERMS])
        weights = (
            config.mel_weight,
            config.stft_weight,
            config.waveform_weight,
            config.commitment_weight,
            config.codebook_weight,
        )
        torch.autograd.backward((terms * terms.new_tensor(weights)).sum())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        if not bool(norm.isfinite()):
            return float(norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model)
        # Every rank sees all ranks' codes, and so restarts the same ones.
        codes = [self.ranks.concatenate(level.flatten()) for level in losses.codes]
        vectors = [self.ranks.concatenate(level) for level in losses.vectors]
        self.usage.count(codes)
        self._restarted += restart_unused(
            self.model,
            self.average.model,
            self.optimizer,
            self.usage,
            vectors,
            torch.Generator().manual_seed(step_seed(config.seed, self.step)),
        )
        self._recent += torch.cat([terms.detach(), terms.new_ones(1)]).double().cpu()
        return float(norm)

    def _training_metrics(self, norm: float) -> dict[str, Any]:
        sums = self.ranks.sum(self._recent)
        self._recent.zero_()
        seconds = self._seconds + time.monotonic() - self._since
        self._seconds, self._since = 0.0, time.monotonic()
        restarted, self._restarted = self._restarted, 0
        steps = float(sums[-1]) / self.ranks.world
        heard = float(sums[-1]) * self.config.segments * self.samples / self.sample_rate
        metrics = {
            **{name: round(float(sums[i] / sums[-1]), 5) for i, name in enumerate(TERMS)},
            "restarted_codes": restarted,
            "gradient_norm": round(norm, 4),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "realtime": round(heard / seconds, 2),
            "seconds_left": round(seconds / steps * (self.config.max_steps - self.step)),
        }
        if unreadable := self._unreadable():
            metrics["unreadable"] = unreadable
        return metrics

    def _unreadable(self) -> dict[str, str]:
        """What any rank could not read, with the reason."""
        of_ranks = self.ranks.gather(self.reader.unreadable)
        return {path: reason for found in of_ranks for path, reason in found.items()}

    def _evaluate(self) -> dict[str, Any]:
        """The averaged codec on the held-out recordings."""
        started = time.monotonic()
        codec = inference_copy(self.average.model, self.codec_config, self.ranks.device)
        held_out = HeldOut(codec)
        for index, path in enumerate(self.recordings.evaluation):
            if index % self.ranks.world != self.ranks.rank:
                continue
            waveform = self.reader.read(path)
            if waveform is None:
                continue
            decoded = held_out.hear(waveform)
            if index < len(self._sample_names):
                folder, name = f"step-{self.step:06d}", self._sample_names[index]
                write_sample(self.output, folder, name, waveform, decoded, self.sample_rate)
        distances, uses = self.ranks.sum(held_out.distances), self.ranks.sum(held_out.uses)
        self._since += time.monotonic() - started  # not the training's time
        if distances[1] == 0:
            return {"unreadable": self._unreadable()}
        return metrics_of(distances, uses)

    def _save(self) -> str:
        """A checkpoint; returns why the run cannot go on, or ""."""
        started = time.monotonic()
        self._seconds += started - self._since
        recent = self.ranks.sum(self._recent)

        def write(folder: Path) -> None:
            save_codec(
                self.average.model,
                self.codec_config,
                folder / CODEC_FOLDER,
                torch.float16 if self.config.half else torch.float32,
            )
            state.save(
                folder,
                model=self.model.state_dict(),
                average=self.average.state_dict(),
                usage=self.usage.state_dict(),
                optimizer=self.optimizer.state_dict(),
                step=self.step,
                rows=self.log.rows,
                recent=recent,
                seconds=self._seconds,
                restarted=self._restarted,
            )

        failure = ""
        if self.ranks.first:
            self.log.sync()
            try:
                self.store.save(self.step, write)
            except StorageFull as error:
                failure = str(error)
        self._since = time.monotonic()
        return self.ranks.gather(failure)[0]

    def _add(self, row: dict[str, Any]) -> None:
        self.log.add(row)
        self._say(_line(row))

    def _say(self, text: str) -> None:
        if self.ranks.first:
            logger.info(text)


def _line(row: dict[str, Any]) -> str:
    parts = [f"step {row['step']}/{row['steps']}"]
    if "mel" in row:
        parts += [
            f"mel {row['mel']:.4f}, stft {row['stft']:.3f}",
            f"waveform {row['waveform']:.3f}, codebook {row['codebook']:.4f}",
        ]
        parts += [f"{row['restarted_codes']} codes restarted", f"{row['realtime']} x realtime"]
        parts += [f"{timedelta(seconds=row['seconds_left'])} left"]
    if "eval_mel_distance_db" in row:
        parts += [f"held out: {row['eval_mel_distance_db']:.2f} dB mel distance"]
    if "unreadable" in row:
        parts += [f"{len(row['unreadable'])} recordings unreadable"]
    return ", ".join(parts)
