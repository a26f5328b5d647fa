"""A training step asks a GPU for its work and goes on: nothing in it waits for the device.

Tensors are said to be on a GPU and hold nothing, so that any value a step asks for is an error.
"""

from collections.abc import Sequence
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from helpers.no_waits import CUDA, imagined_gpu
from helpers.small_models import FAMILIES
from helpers.utterances import LAYOUT, prompts, utterances
from sheen.codec.layout import Softmax
from sheen.lm.batching import collate
from sheen.lm.model import SpeechLM
from sheen.train.learning import learner as learner_module
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.learner import Learner, take_step
from sheen.train.learning.metrics import MetricsWindow


@pytest.mark.slow
@pytest.mark.parametrize(("softmax", "guide"), [("masked", 0.0), ("full", 0.5)])
def test_a_step_waits_for_no_value_and_for_no_copy(
    monkeypatch: pytest.MonkeyPatch, softmax: Softmax, guide: float
) -> None:
    def backward(tensors: object, gradients: Sequence[Tensor]) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.autograd, "backward", backward)  # torch asks for a real GPU there
    monkeypatch.setattr(learner_module, "check_isolation", lambda lm: None)  # which reads values
    rows = [
        collate(prompts(*texts), utterances(*frames), LAYOUT, 0, 200)
        for texts, frames in [((5, 3, 8), (2, 4, 1)), ((4,), (6,)), ((), ())]
        if frames or softmax == "masked"  # tensors that hold nothing are not split into none
    ]
    group = Collectives(CUDA)
    with imagined_gpu(monkeypatch) as copies:
        with CUDA:
            lm = AutoModelForCausalLM.from_config(deepcopy(FAMILIES["qwen3"]))
        model = SpeechLM(lm, LAYOUT, softmax)
        model.to = lambda device: model  # type: ignore[assignment] # it is there
        learner = Learner(
            model,
            group,
            strategy="ddp",
            precision="float32",
            compile_layers=False,
            learning_rate=1e-3,
        )
        copies.clear()
        window = MetricsWindow(group)
        for _ in range(2):
            norm = take_step(
                learner,
                group,
                window,
                rows,
                weights=[1.0, 2.0, 3.0],
                guide_weight=guide,
                rate=1e-3,
                seed=0,
            )
    assert norm.device.type == "cuda"
    assert len(copies.all) > 2 * len(rows)
    copies.check()
