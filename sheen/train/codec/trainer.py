"""The training loop of a codec in one worker, and its evaluation on held-out recordings.

Owns which segments a step trains on and at what learning rate, when to log, evaluate, save and
stop, and the evaluation: mel distance, codebook perplexity, audio samples. Step k sees the same
segments and the same noise whether or not the run was interrupted before it. What a step does to
the codec belongs to the learner.
"""

import logging
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from snac import SNAC
from torch import Tensor

from sheen.audio.io import encode_audio
from sheen.audio.spectral import mel_distance
from sheen.codec.asr_features import AsrFeatureLoss
from sheen.codec.snac import Codec
from sheen.codec.training import inference_copy, save_codec
from sheen.runs.attempts import Attempts
from sheen.scoring.code_usage import level_use
from sheen.storage import files, uris
from sheen.train import checkpoints
from sheen.train.checkpoints import RunStore, StorageFull
from sheen.train.codec.config import CodecTrainConfig
from sheen.train.codec.data import Recordings, SegmentReader, sample_names
from sheen.train.codec.learner import CodecLearner
from sheen.train.distributed import Collectives
from sheen.train.launcher import Control
from sheen.train.learner import learning_rate
from sheen.train.metrics import MetricsWindow

SAMPLES_FOLDER = "samples"


class HeldOut:
    """Sums over recordings: mel distances `[2]` with their count, uses of each code `[L, size]`."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.distances = torch.zeros(2, dtype=torch.float64)
        self.uses = torch.zeros(len(codec.strides), codec.codebook_size, dtype=torch.float64)

    def hear(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """Count one recording `[n]`; returns its reconstruction `[n]`."""
        codec = self._codec
        codes = codec.encode([torch.from_numpy(waveform)])[0]
        decoded = codec.decode([level[None] for level in codes])[0, : len(waveform)].numpy()
        distance = mel_distance(decoded, waveform, codec.sample_rate)
        self.distances += torch.tensor([distance, 1.0])
        for uses, found in zip(self.uses, codes, strict=True):
            uses += torch.bincount(
                torch.from_numpy(found.astype(np.int64)), minlength=codec.codebook_size
            )
        return decoded


def metrics_of(distances: Tensor, uses: Tensor) -> dict[str, float]:
    """Mean mel distance in dB, and per level the perplexity of the codes used."""
    metrics = {"eval_mel_distance_db": round(float(distances[0] / distances[1]), 4)}
    for level, counts in enumerate(uses.cpu().numpy()):
        metrics[f"eval_perplexity_level_{level}"] = level_use(counts).perplexity
    return metrics


def write_sample(
    output: str,
    folder: str,
    name: str,
    waveform: NDArray[np.float32],
    decoded: NDArray[np.float32],
    sample_rate: int,
) -> None:
    """A recording and its reconstruction as WAV, under `recordings` and under `folder`."""
    pairs: Iterable[tuple[str, NDArray[np.float32]]] = (
        ("recordings", waveform),
        (folder, decoded),
    )
    for kind, samples in pairs:
        target = uris.join(output, SAMPLES_FOLDER, kind, f"{name}.wav")
        files.write_bytes(target, encode_audio(samples, sample_rate, "WAV"))


logger = logging.getLogger(__name__)

CODEC_FOLDER = "codec"
TERMS = ("mel", "stft", "waveform", "commitment", "codebook")
ASR_TERM = "asr_features"


def train_loop(arguments: dict[str, Any]) -> None:
    """What each worker runs; `arguments` are those of Worker."""
    if worker := arguments["control"].start(Worker, arguments):
        worker.run()


def segment_samples(seconds: float, model: SNAC) -> int:
    """Samples of a segment, rounded up to the codec's block."""
    block = int(np.prod(model.encoder_rates)) * int(
        np.lcm(model.vq_strides[0], model.attn_window_size or 1)
    )
    return -(-round(seconds * int(model.sampling_rate)) // block) * block


class Worker:
    """One rank of a run."""

    def __init__(
        self,
        config: dict[str, Any],
        recordings: Recordings,
        codec: "ray.ObjectRef[tuple[dict[str, Any], dict[str, Tensor]]]",
        asr_features: "ray.ObjectRef[AsrFeatureLoss] | None",
        output: str,
        attempts: Attempts,
        control: Control,
    ) -> None:
        self.config = CodecTrainConfig.model_construct(**config)
        self.recordings = recordings
        self.output = output
        self.control = control.watched()
        self.group = Collectives()
        torch.set_num_threads(max(1, int(self.config.cpus_per_worker)))
        self.codec_config, weights = ray.get(codec)
        model = SNAC(**self.codec_config)
        model.load_state_dict(weights)
        self.sample_rate = int(model.sampling_rate)
        self.terms = TERMS if asr_features is None else (*TERMS, ASR_TERM)
        self.learner = CodecLearner(
            model,
            self.group,
            loss_weights={name: getattr(self.config, f"{name}_weight") for name in self.terms},
            range_db=self.config.range_db,
            asr_features=None if asr_features is None else ray.get(asr_features),
            learning_rate=self.config.learning_rate,
            codebook_rate=self.config.codebook_rate,
            clip_norm=self.config.clip_norm,
            average_decay=self.config.average_decay,
            restart_patience=self.config.restart_patience,
            compile_layers=self.config.compile,
            seed=self.config.seed,
        )
        self.step = 0
        rows: list[dict[str, Any]] = [recordings.summary]
        self.store = RunStore(uris.join(output, self.config.run_name), self.config.keep_checkpoints)
        restored: dict[str, Any] = {}
        with self.store.open_latest() as folder:
            if folder is not None:
                restored = checkpoints.load(folder)
        if restored:
            self.learner.load_state(restored)
            self.step, rows = restored["step"], restored["rows"]
            self._say(f"resuming after step {self.step}")
        self.log = checkpoints.MetricsLog(output, rows, writes=self.group.first)
        self.samples = segment_samples(self.config.segment_seconds, model)
        self.reader = SegmentReader(
            recordings.train,
            sample_rate=self.sample_rate,
            samples=self.samples,
            per_rank=self.config.segments,
            rank=self.group.rank,
            world=self.group.world,
            seed=self.config.seed,
            attempts=attempts,
        )
        self._sample_names = sample_names(recordings.evaluation[: self.config.sample_recordings])
        # Sums of the terms, and steps.
        self.window = MetricsWindow(self.group, len(self.terms) + 1, torch.device("cpu"))
        self._restarted = 0
        if restored:
            self.window.load_state(restored)
            self._restarted = restored["restarted"] if self.group.first else 0

    def run(self) -> None:
        total = self.config.max_steps
        if self.step == 0 and self.recordings.evaluation:
            # What a fine-tune starts from, heard and measured like everything after it.
            self._add({"event": "step", "step": 0, "steps": total} | self._evaluate())
        for batch in self.reader.batches(self.step, total):
            norm = self._train_step(batch)
            if not np.isfinite(norm):
                self.control.fail(
                    checkpoints.not_finite(norm, self.step, self.config.learning_rate)
                )
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
            stop = float(self.group.sum(asked)) > 0
            save = self.step % self.config.save_every == 0 or last or stop
            if save and (failure := self._save()):
                self.control.fail(failure)
                return
            if stop and not last:
                self._say(f"stopped after step {self.step}, saved")
                return

    def _train_step(self, batch: Tensor) -> float:
        """The gradient norm: one that is no number ends the run."""
        config = self.config
        rate = learning_rate(self.step, config.learning_rate, config.warmup_steps, config.max_steps)
        done = self.learner.update(batch, self.step, rate)
        self.window.add(torch.cat([done.losses, done.losses.new_ones(1)]).double().cpu())
        self._restarted += done.restarted
        return done.norm

    def _training_metrics(self, norm: float) -> dict[str, Any]:
        sums, seconds = self.window.end()
        restarted, self._restarted = self._restarted, 0
        steps = float(sums[-1]) / self.group.world
        heard = float(sums[-1]) * self.config.segments * self.samples / self.sample_rate
        metrics = {
            **{name: round(float(sums[i] / sums[-1]), 5) for i, name in enumerate(self.terms)},
            "restarted_codes": restarted,
            "gradient_norm": round(norm, 4),
            "learning_rate": self.learner.optimizer.param_groups[0]["lr"],
            "realtime": round(heard / seconds, 2),
            "seconds_left": round(seconds / steps * (self.config.max_steps - self.step)),
        }
        if unreadable := self._unreadable():
            metrics["unreadable"] = unreadable
        return metrics

    def _unreadable(self) -> dict[str, str]:
        """What any rank could not read, with the reason."""
        of_ranks = self.group.gather(self.reader.unreadable)
        return {path: reason for found in of_ranks for path, reason in found.items()}

    def _evaluate(self) -> dict[str, Any]:
        """The averaged codec on the held-out recordings."""
        with self.window.paused():
            codec = inference_copy(self.learner.average, self.codec_config, self.group.device)
            held_out = HeldOut(codec)
            for index, path in enumerate(self.recordings.evaluation):
                if index % self.group.world != self.group.rank:
                    continue
                waveform = self.reader.read(path)
                if waveform is None:
                    continue
                decoded = held_out.hear(waveform)
                if index < len(self._sample_names):
                    folder, name = f"step-{self.step:06d}", self._sample_names[index]
                    write_sample(self.output, folder, name, waveform, decoded, self.sample_rate)
            distances, uses = self.group.sum(held_out.distances), self.group.sum(held_out.uses)
        if distances[1] == 0:
            return {"unreadable": self._unreadable()}
        return metrics_of(distances, uses)

    def _save(self) -> str:
        """A checkpoint; returns why the run cannot go on, or ""."""
        failure = ""
        with self.window.paused():
            window = self.window.state()

            def write(folder: Path) -> None:
                save_codec(
                    self.learner.average,
                    self.codec_config,
                    folder / CODEC_FOLDER,
                    torch.float16 if self.config.half else torch.float32,
                )
                checkpoints.save(
                    folder,
                    **self.learner.state(),
                    step=self.step,
                    rows=self.log.rows,
                    **window,
                    restarted=self._restarted,
                )

            if self.group.first:
                self.log.sync()
                try:
                    self.store.save(self.step, write)
                except StorageFull as error:
                    failure = str(error)
        return self.group.gather(failure)[0]

    def _add(self, row: dict[str, Any]) -> None:
        self.log.add(row)
        self._say(_line(row))

    def _say(self, text: str) -> None:
        if self.group.first:
            logger.info(text)


def _line(row: dict[str, Any]) -> str:
    parts = [f"step {row['step']}/{row['steps']}"]
    if "mel" in row:
        parts += [
            f"mel {row['mel']:.4f}, stft {row['stft']:.3f}",
            f"waveform {row['waveform']:.3f}, codebook {row['codebook']:.4f}",
        ]
        if ASR_TERM in row:
            parts += [f"ASR features {row[ASR_TERM]:.4f}"]
        parts += [f"{row['restarted_codes']} codes restarted", f"{row['realtime']} x realtime"]
        parts += [f"{timedelta(seconds=row['seconds_left'])} left"]
    if "eval_mel_distance_db" in row:
        parts += [f"held out: {row['eval_mel_distance_db']:.2f} dB mel distance"]
    if "unreadable" in row:
        parts += [f"{len(row['unreadable'])} recordings unreadable"]
    return ", ".join(parts)
