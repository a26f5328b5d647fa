"""A step of codec training asks a GPU for its work and goes on, as that of a speech LM does.

Tensors are said to be on a GPU and hold nothing, so that any value a step asks for is an error.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from snac import SNAC
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from helpers.no_waits import CUDA, imagined_gpu
from helpers.tiny_codec import TINY
from sheen.audio import spectral
from sheen.codec import asr_features, training
from sheen.codec.asr_features import AsrFeatureLoss
from sheen.train.codec.decoder import AdversarialLearner, DecoderLearner
from sheen.train.codec.learner import CodecLearner
from sheen.train.codec.trainer import CodecTrainer
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.metrics import MetricsWindow

SAMPLES = 12_288
DISTANCES = {"mel": 15.0, "stft": 1.0, "waveform": 1.0, "asr_features": 4.0}


def open_learner(kind: str, group: Collectives) -> CodecLearner | DecoderLearner:
    model = SNAC(**TINY)
    whisper = WhisperConfig(
        d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=16
    )
    settings: dict[str, Any] = {
        "loss_weights": DISTANCES,
        "asr_features": AsrFeatureLoss(WhisperEncoder(whisper), TINY["sampling_rate"]),
        "learning_rate": 1e-3,
        "compile_layers": False,
        "seed": 0,
    }
    if kind == "adversarial":
        return AdversarialLearner(model, group, adversarial_weight=1.0, warmup_steps=0, **settings)
    if kind == "decoder":
        return DecoderLearner(model, group, **settings)
    settings["loss_weights"] = DISTANCES | {"commitment": 0.25, "codebook": 1.0}
    return CodecLearner(model, group, quantizer_dropout=0.5, restart_patience=2.0, **settings)


def filters(bins: int, low: float, high: float, bands: int, rate: int, **kind: object) -> Tensor:
    return torch.zeros(bins, bands)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["codec", "decoder", "adversarial"])
def test_a_step_waits_for_no_value_and_for_no_copy(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def backward(*arguments: object, **settings: object) -> None:
        trained: list[nn.Module] = [worker.learner.model]
        if isinstance(worker.learner, AdversarialLearner):
            trained.append(worker.learner.discriminators)
        for module in trained:
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)

    def grad(outputs: object, inputs: Tensor, **settings: object) -> tuple[Tensor]:
        return (torch.zeros_like(inputs),)

    # torch asks for a real GPU there.
    monkeypatch.setattr(torch.autograd, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setattr(torch, "autocast", lambda *kind, **settings: nullcontext())
    monkeypatch.setattr(nn.Module, "to", lambda self, *place: self)  # it is there
    # A start may wait, and does for the values of mel filters.
    for module in (spectral, asr_features):
        monkeypatch.setattr(module, "melscale_fbanks", filters)
    # Memory that is not there is not copied.
    monkeypatch.setattr(training, "copy", SimpleNamespace(deepcopy=lambda model: SNAC(**TINY)))
    # A number of the host's, which holds nothing here either.
    monkeypatch.setattr(AdversarialLearner, "_window", lambda self, samples: slice(0, 8000))
    worker = object.__new__(CodecTrainer)
    worker.group = Collectives(CUDA)  # type: ignore[assignment]
    worker.window = MetricsWindow(worker.group)
    with imagined_gpu(monkeypatch) as copies:
        with CUDA:
            worker.learner = open_learner(kind, worker.group)
        copies.clear()
        for step in range(2):
            worker.step = step
            norm = worker.train_step(torch.zeros(2, SAMPLES), 1e-3)
    assert norm.device.type == "cuda"
    assert {part.device.type for part in worker.window._sums.values()} == {"cuda"}
    assert len(copies.all) >= 2
    copies.check()
