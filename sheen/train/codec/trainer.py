"""The training loop of a codec in one worker, and its evaluation on held-out recordings.

Owns which segments a step trains on and at what learning rate, when to log, evaluate, save and
stop, and the evaluation: mel distance, codebook perplexity, audio samples. Step k sees the same
segments and the same noise whether or not the run was interrupted before it. What a step does to
the codec belongs to the learner.
"""

from collections.abc import Iterable, Iterator
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
from sheen.codec.snac import Codec, inference_copy
from sheen.codec.training import CodecFiles
from sheen.runs.attempts import Attempts
from sheen.scoring.code_usage import level_use
from sheen.storage import files, uris
from sheen.train import checkpoints
from sheen.train.checkpoints import Snapshot
from sheen.train.codec.config import CodecTrainConfig
from sheen.train.codec.data import Recordings, SegmentReader, sample_names
from sheen.train.codec.decoder import ADVERSARIES, DISCRIMINATOR, AdversarialLearner, DecoderLearner
from sheen.train.codec.learner import CodecLearner
from sheen.train.evaluation import SAMPLES_FOLDER
from sheen.train.launcher import Control
from sheen.train.learning.metrics import Sums
from sheen.train.learning.optimizers import on_host
from sheen.train.loop import Trainer, run_trainer

MEL_WEIGHT, STFT_WEIGHT = 15.0, 1.0
"""Weights of the log-mel and the STFT distance, to which the other terms' are relative."""
CODEBOOK_WEIGHT = 1.0
"""Weight of the distance that pulls the codes to the encoder."""
ASR_FEATURES_WEIGHT = 4.0
"""Weight of the distance in the features of a speech encoder (docs/decisions/0010)."""
ADVERSARIAL_WEIGHT = 1.0
"""Weight of the discriminators' scores, and of feature matching: the norm of their gradient at the
audio, relative to that of the other losses."""
RESTART_PATIENCE = 10.0
"""A code that was not used in this many times the codebook's size uses of its level is restarted at
an output of the encoder."""
SAMPLES = 4
"""Held-out recordings written as WAV at each evaluation."""


class HeldOut:
    """Sums over recordings: mel distances `[2]` with their count, uses of each code `[L, size]`."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.distances = torch.zeros(2, dtype=torch.float64)
        self.uses = torch.zeros(len(codec.strides), codec.codebook_size, dtype=torch.float64)

    def add(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
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


def loss_weights(config: CodecTrainConfig, asr_features: bool) -> dict[str, float]:
    """The weight of each loss by name, without the discriminators' (ADVERSARIAL_WEIGHT)."""
    weights = {
        "mel": MEL_WEIGHT,
        "stft": STFT_WEIGHT,
        "waveform": config.waveform_weight,
    }
    if not config.codes_stay:
        weights["commitment"] = config.commitment_weight
        weights["codebook"] = CODEBOOK_WEIGHT
    return weights | ({"asr_features": ASR_FEATURES_WEIGHT} if asr_features else {})


def train_loop(arguments: dict[str, Any]) -> None:
    """What each worker runs; `arguments` are those of CodecTrainer."""
    run_trainer(CodecTrainer, arguments)


def segment_samples(seconds: float, model: SNAC) -> int:
    """Samples of a segment, rounded up to the codec's block."""
    block = int(np.prod(model.encoder_rates)) * int(
        np.lcm(model.vq_strides[0], model.attn_window_size or 1)
    )
    return -(-round(seconds * int(model.sampling_rate)) // block) * block


class CodecTrainer(Trainer):
    """One rank of a run that trains a codec."""

    config: CodecTrainConfig
    learner: CodecLearner | DecoderLearner

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
        super().__init__(CodecTrainConfig.model_construct(**config), output, control)
        self.recordings = recordings
        self.codec_config, weights = ray.get(codec)
        model = SNAC(**self.codec_config)
        model.load_state_dict(weights)
        self.sample_rate = int(model.sampling_rate)
        of_losses = loss_weights(self.config, asr_features is not None)
        adversaries = [*ADVERSARIES, DISCRIMINATOR] if self.config.adversarial else []
        self.losses = [*of_losses, *adversaries]
        settings: dict[str, Any] = {
            "loss_weights": of_losses,
            "asr_features": None if asr_features is None else ray.get(asr_features),
            "learning_rate": self.config.learning_rate,
            "compile_layers": bool(self.config.compile),
            "seed": self.config.seed,
        }
        if self.config.adversarial:
            self.learner = AdversarialLearner(
                model,
                self.group,
                adversarial_weight=ADVERSARIAL_WEIGHT,
                warmup_steps=self.config.warmup_steps,
                **settings,
            )
        elif self.config.decoder_only:
            self.learner = DecoderLearner(model, self.group, **settings)
        else:
            self.learner = CodecLearner(
                model,
                self.group,
                quantizer_dropout=self.config.quantizer_dropout,
                restart_patience=RESTART_PATIENCE,
                **settings,
            )
        self.samples = segment_samples(self.config.segment_seconds, model)
        self.reader = SegmentReader(
            recordings.train,
            sample_rate=self.sample_rate,
            samples=self.samples,
            per_rank=self.config.segments,
            rank=self.group.rank,
            world=self.group.world,
            seed=self.config.seed,
            speed_perturbation=self.config.speed_perturbation,
            attempts=attempts,
        )
        self._files = CodecFiles(
            self.codec_config, torch.float16 if self.config.half else torch.float32
        )
        self._sample_names = sample_names(recordings.evaluation[:SAMPLES])
        with self.store.open_latest() as folder:
            state = None if folder is None else checkpoints.load(folder)
        if state is not None:
            self.learner.load_state(state)
        self.begin(state, recordings.summary, self.config.max_steps)

    def run(self) -> None:
        if self.step == 0:  # what a fine-tune starts from, measured like everything after it
            with self.window.paused():
                row = self.evaluate()
            if row:
                self.record(row)
        super().run()

    def batches(self) -> Iterator[Tensor]:
        return self.reader.batches(self.step, self.total)

    def train_step(self, batch: Tensor, rate: float) -> Tensor:
        done = self.learner.update(batch, self.step, rate)
        counts = {"updates": torch.ones_like(done.norm), "restarted_codes": done.norm.new_zeros(())}
        if done.restarted is not None and self.group.first:  # every rank restarts the same codes
            counts["restarted_codes"] = done.restarted
        self.window.add(done.losses | counts)
        return done.norm

    def training_metrics(self, sums: Sums, seconds: float) -> dict[str, Any]:
        updates = float(sums["updates"])
        audio_seconds = updates * self.config.segments * self.samples / self.sample_rate
        metrics: dict[str, Any] = {
            **{name: round(float(sums[name]) / updates, 5) for name in self.losses},
            "realtime": round(audio_seconds / seconds, 2),
        }
        if not self.config.codes_stay:
            metrics["restarted_codes"] = int(sums["restarted_codes"])
        if unreadable := self._unreadable():
            metrics["unreadable"] = unreadable
        return metrics

    def _unreadable(self) -> dict[str, str]:
        """The recordings that any rank could not read, with the reason."""
        of_ranks = self.group.gather(self.reader.unreadable)
        return {path: reason for found in of_ranks for path, reason in found.items()}

    def evaluate(self) -> dict[str, Any]:
        """The averaged codec on the held-out recordings."""
        if not self.recordings.evaluation:
            return {}
        codec = inference_copy(self.learner.average, self.codec_config, self.group.device)
        held_out = HeldOut(codec)
        for index, path in enumerate(self.recordings.evaluation):
            if index % self.group.world != self.group.rank:
                continue
            waveform = self.reader.read(path)
            if waveform is None:
                continue
            decoded = held_out.add(waveform)
            if index < len(self._sample_names):
                folder, name = f"step-{self.step:06d}", self._sample_names[index]
                write_sample(self.output, folder, name, waveform, decoded, self.sample_rate)
        distances, uses = self.group.sum(held_out.distances), self.group.sum(held_out.uses)
        if distances[1] == 0:
            return {"unreadable": self._unreadable()}
        return metrics_of(distances, uses)

    def snapshot(self, *, resumable: bool) -> Snapshot:
        weights = on_host(self.learner.average.state_dict())
        return Snapshot(self._files, weights, self.learner.state() if resumable else {})

    def describe(self, row: dict[str, Any]) -> list[str]:
        parts = []
        if "mel" in row:
            parts += [f"mel {row['mel']:.4f}, stft {row['stft']:.3f}"]
            parts += [f"waveform {row['waveform']:.3f}"]
            if "asr_features" in row:
                parts += [f"ASR features {row['asr_features']:.4f}"]
            if self.config.adversarial:
                parts += [
                    f"adversarial {row['adversarial']:.3f}",
                    f"feature matching {row['feature_matching']:.3f}",
                    f"discriminator {row['discriminator']:.3f}",
                ]
            if not self.config.codes_stay:
                parts += [
                    f"codebook {row['codebook']:.4f}, {row['restarted_codes']} codes restarted"
                ]
            parts += [f"{row['realtime']} x realtime"]
        if "eval_mel_distance_db" in row:
            parts += [f"held out: {row['eval_mel_distance_db']:.2f} dB mel distance"]
        if "unreadable" in row:
            parts += [f"{len(row['unreadable'])} recordings unreadable"]
        return parts
