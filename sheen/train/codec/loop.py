"""The codec's training loop of one worker.

Owns the optimizer step and what surrounds it: the restart of unused codes and the average of the
weights, when to log, evaluate and save. Step k hears the same segments and adds the same noise
whether or not the run was interrupted before it.
"""

import io
import logging
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import soundfile
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray.train.torch import get_device, prepare_model
from snac import SNAC
from torch import Tensor

from sheen.core import files
from sheen.core.audio import to_pcm16
from sheen.core.codec_training import (
    CodecLosses,
    CodeUsage,
    TrainableCodec,
    WeightAverage,
    inference_copy,
    restart_unused,
    save_codec,
)
from sheen.core.spectral import mel_distance
from sheen.train import state
from sheen.train.codec.config import CodecTrainConfig
from sheen.train.codec.data import Recordings, SegmentReader, sample_names
from sheen.train.schedule import learning_rate

logger = logging.getLogger(__name__)

CODEC_FOLDER = "codec"
SAMPLES_FOLDER = "samples"
TERMS = ("mel", "stft", "commitment", "codebook")


def train_loop(arguments: dict[str, Any]) -> None:
    """What each worker runs; `arguments` are those of Worker."""
    Worker(**arguments).run()


def segment_samples(seconds: float, sample_rate: int, block: int) -> int:
    """Samples of a segment, rounded up to the codec's block."""
    return -(-round(seconds * sample_rate) // block) * block


def seed_of(*parts: int) -> int:
    """One seed for torch from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Worker:
    """One rank of a run."""

    def __init__(
        self,
        config: dict[str, Any],
        recordings: Recordings,
        codec: "ray.ObjectRef[tuple[dict[str, Any], dict[str, Tensor]]]",
        output: str,
    ) -> None:
        self.config = CodecTrainConfig.model_construct(**config)
        self.recordings = recordings
        self.output = output
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = get_device()
        torch.set_num_threads(max(1, int(self.config.cpus_per_worker)))
        self.codec_config, weights = ray.get(codec)
        model = SNAC(**self.codec_config)
        model.load_state_dict(weights)
        self.model = model.to(self.device)
        self.sample_rate = int(model.sampling_rate)
        self.average = WeightAverage(self.model, self.config.average_decay)
        self.usage = CodeUsage(model.n_codebooks, model.codebook_size, self.config.restart_patience)
        trainable = TrainableCodec(self.model)
        if self.config.compile:
            trainable.compile_layers()
        self.parallel = prepare_model(
            trainable, parallel_strategy_kwargs={"broadcast_buffers": False}
        )
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=self.config.learning_rate,
            betas=(0.8, 0.99),  # as the Descript Audio Codec's
            fused=self.device.type == "cuda",
        )
        self.step = 0
        rows: list[dict[str, Any]] = [recordings.summary]
        saved = ray.train.get_checkpoint()
        if saved is not None:
            with saved.as_directory() as folder:
                restored = state.load(folder, self.device)
            self.model.load_state_dict(restored["model"])
            self.average.load_state_dict(restored["average"])
            self.usage.load_state_dict(restored["usage"])
            self.optimizer.load_state_dict(restored["optimizer"])
            self.step, rows = restored["step"], restored["rows"]
            self._say(f"resuming after step {self.step}")
        self.log = state.MetricsLog(output, rows, writes=self.rank == 0)
        block = int(np.prod(model.encoder_rates)) * int(
            np.lcm(model.vq_strides[0], model.attn_window_size or 1)
        )
        self.samples = segment_samples(self.config.segment_seconds, self.sample_rate, block)
        self.reader = SegmentReader(
            recordings.train,
            sample_rate=self.sample_rate,
            samples=self.samples,
            per_rank=self.config.segments,
            rank=self.rank,
            world=self.world,
            seed=self.config.seed,
        )
        self._sample_names = sample_names(recordings.evaluation[: self.config.sample_recordings])
        self._recent = torch.zeros(len(TERMS) + 1, dtype=torch.float64)
        self._restarted = 0
        self._since, self._since_step = time.monotonic(), self.step

    def run(self) -> None:
        total = self.config.max_steps
        if self.step == 0 and self.recordings.evaluation:
            # What a fine-tune starts from, heard and measured like everything after it.
            self._add({"event": "step", "step": 0, "steps": total} | self._evaluate())
        for batch in self.reader.batches(self.step, total):
            norm = self._optimizer_step(batch)
            self.step += 1
            last = self.step == total
            row: dict[str, Any] = {}
            if self.step % self.config.log_every == 0 or last:
                row |= self._training_metrics(norm)
            if self.recordings.evaluation and (self.step % self.config.eval_every == 0 or last):
                row |= self._evaluate()
            if row:
                self._add({"event": "step", "step": self.step, "steps": total} | row)
            if self.step % self.config.save_every == 0 or last:
                self._save()

    def _optimizer_step(self, batch: Tensor) -> float:
        config = self.config
        # The codec's noise of this step and rank, whatever ran before.
        torch.manual_seed(seed_of(config.seed, self.step, self.rank))
        rate = learning_rate(self.step, config.learning_rate, config.warmup_steps, config.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            losses: CodecLosses = self.parallel(batch.to(self.device))
        terms = torch.stack([getattr(losses, name) for name in TERMS])
        weights = (
            config.mel_weight,
            config.stft_weight,
            config.commitment_weight,
            config.codebook_weight,
        )
        torch.autograd.backward((terms * terms.new_tensor(weights)).sum())
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), config.clip_norm, error_if_nonfinite=True
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model)
        # Every rank sees all ranks' codes, and so restarts the same ones.
        codes = [self._of_all_ranks(level.flatten()) for level in losses.codes]
        vectors = [self._of_all_ranks(level) for level in losses.vectors]
        self.usage.count(codes)
        self._restarted += restart_unused(
            self.model,
            self.average.model,
            self.optimizer,
            self.usage,
            vectors,
            torch.Generator().manual_seed(seed_of(config.seed, self.step)),
        )
        self._recent += torch.cat([terms.detach(), terms.new_ones(1)]).double().cpu()
        return float(norm)

    def _training_metrics(self, norm: float) -> dict[str, Any]:
        sums = self._sum_over_ranks(self._recent)
        self._recent.zero_()
        seconds, steps = time.monotonic() - self._since, self.step - self._since_step
        self._since, self._since_step = time.monotonic(), self.step
        restarted, self._restarted = self._restarted, 0
        heard = steps * self.config.segments * self.world * self.samples / self.sample_rate
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
        if self.world == 1:
            return dict(self.reader.unreadable)
        of_ranks: list[dict[str, str]] = [{} for _ in range(self.world)]
        dist.all_gather_object(of_ranks, self.reader.unreadable)
        return {path: reason for found in of_ranks for path, reason in found.items()}

    def _evaluate(self) -> dict[str, Any]:
        """Mel distance and code usage of the averaged codec on the held-out recordings."""
        started = time.monotonic()
        codec = inference_copy(self.average.model, self.codec_config, self.device)
        sums = torch.zeros(2, dtype=torch.float64)
        counts = torch.zeros(len(codec.strides), codec.codebook_size, dtype=torch.float64)
        for index, path in enumerate(self.recordings.evaluation):
            if index % self.world != self.rank:
                continue
            waveform = self.reader.read(path)
            if waveform is None:
                continue
            codes = codec.encode([torch.from_numpy(waveform)])[0]
            decoded = codec.decode([level[None] for level in codes])[0, : len(waveform)].numpy()
            sums += torch.tensor([mel_distance(decoded, waveform, self.sample_rate), 1.0])
            for level, found in enumerate(codes):
                counts[level] += torch.bincount(
                    torch.from_numpy(found.astype(np.int64)), minlength=codec.codebook_size
                )
            if index < len(self._sample_names):
                self._write_sample(self._sample_names[index], waveform, decoded)
        sums, counts = self._sum_over_ranks(sums), self._sum_over_ranks(counts)
        self._since += time.monotonic() - started  # not the training's time
        if sums[1] == 0:
            return {"unreadable": self._unreadable()}
        metrics: dict[str, Any] = {"eval_mel_distance_db": round(float(sums[0] / sums[1]), 4)}
        for level, used in enumerate(counts):
            shares = used / used.sum()
            entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
            metrics[f"eval_perplexity_level_{level}"] = round(float(entropy.exp()), 1)
        return metrics

    def _write_sample(
        self, name: str, waveform: NDArray[np.float32], decoded: NDArray[np.float32]
    ) -> None:
        folder = f"step-{self.step:06d}"
        for kind, samples in (("recordings", waveform), (folder, decoded)):
            file = io.BytesIO()
            soundfile.write(file, to_pcm16(samples), self.sample_rate, format="WAV")
            target = files.join(self.output, SAMPLES_FOLDER, kind, f"{name}.wav")
            files.write_bytes(target, file.getvalue())

    def _of_all_ranks(self, values: Tensor) -> Tensor:
        if self.world == 1:
            return values
        gathered = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(gathered, values.contiguous())
        return torch.cat(gathered)

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        """The sum, never `values` itself: callers start their sums anew."""
        total = values.to(self.device, copy=True)
        if self.world > 1:
            dist.all_reduce(total)
        return total.cpu()

    def _save(self) -> None:
        started = time.monotonic()
        metrics = {"step": self.step}
        if self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="sheen-") as folder:
            save_codec(
                self.average.model,
                self.codec_config,
                Path(folder) / CODEC_FOLDER,
                torch.float16 if self.config.half else torch.float32,
            )
            state.save(
                Path(folder),
                model=self.model.state_dict(),
                average=self.average.state_dict(),
                usage=self.usage.state_dict(),
                optimizer=self.optimizer.state_dict(),
                step=self.step,
                rows=self.log.rows,
            )
            self.log.sync()
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        self._since += time.monotonic() - started

    def _add(self, row: dict[str, Any]) -> None:
        self.log.add(row)
        self._say(_line(row))

    def _say(self, text: str) -> None:
        if self.rank == 0:
            logger.info(text)


def _line(row: dict[str, Any]) -> str:
    parts = [f"step {row['step']}/{row['steps']}"]
    if "mel" in row:
        parts += [
            f"mel {row['mel']:.4f}, stft {row['stft']:.3f}",
            f"codebook {row['codebook']:.4f}",
        ]
        parts += [f"{row['restarted_codes']} codes restarted", f"{row['realtime']} x realtime"]
        parts += [f"{timedelta(seconds=row['seconds_left'])} left"]
    if "eval_mel_distance_db" in row:
        parts += [f"held out: {row['eval_mel_distance_db']:.2f} dB mel distance"]
    if "unreadable" in row:
        parts += [f"{len(row['unreadable'])} recordings unreadable"]
    return ", ".join(parts)
