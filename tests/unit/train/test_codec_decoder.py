"""Training of a codec's decoder alone, with discriminators or without: what it moves and keeps, and
how it resumes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from snac import SNAC
from torch import Tensor

from helpers.tiny_codec import TINY, tiny
from sheen.codec import discriminators
from sheen.codec.snac import load_codec
from sheen.codec.training import CodecFiles
from sheen.train.codec.config import CodecTrainConfig
from sheen.train.codec.decoder import (
    DISCRIMINATOR_RATE,
    AdversarialLearner,
    DecoderLearner,
    balanced,
)
from sheen.train.codec.job import run
from sheen.train.codec.learner import CodecStep
from sheen.train.codec.trainer import ADVERSARIAL_WEIGHT, loss_weights, segment_samples
from sheen.train.learning.collectives import Collectives

SAMPLES = 4096
DISTANCES = {"mel", "stft", "waveform"}
ADVERSARIAL = {"adversarial", "feature_matching", "discriminator"}
CPU = torch.device("cpu")


def open_learner(
    model: SNAC, group: Collectives | None = None, **changes: Any
) -> AdversarialLearner:
    config = CodecTrainConfig(data="", output="", adversarial=True)
    settings: dict[str, Any] = {
        "loss_weights": loss_weights(config, asr_features=False),
        "adversarial_weight": ADVERSARIAL_WEIGHT,
        "asr_features": None,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "compile_layers": False,
        "seed": 0,
    }
    with pytest.MonkeyPatch.context() as patch:  # an eighth of the adversary's channels
        patch.setattr(discriminators, "STFT_CHANNELS", 2)
        patch.setattr(discriminators, "PERIOD_CHANNELS", (2, 4, 8, 16, 16))
        return AdversarialLearner(model, group or Collectives(CPU), **(settings | changes))


def open_plain(model: SNAC) -> DecoderLearner:
    config = CodecTrainConfig(data="", output="", decoder_only=True)
    return DecoderLearner(
        model,
        Collectives(CPU),
        loss_weights=loss_weights(config, asr_features=False),
        asr_features=None,
        learning_rate=1e-3,
        compile_layers=False,
        seed=0,
    )


both = pytest.mark.parametrize(
    ("opened", "losses"), [(open_plain, DISTANCES), (open_learner, DISTANCES | ADVERSARIAL)]
)


def audio(step: int, rank: int = 0, samples: int = SAMPLES) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    level = torch.linspace(0.01, 0.5, samples) * torch.tensor([[1.0], [0.4]])
    return level * torch.randn(2, samples, generator=generator)


def take_steps(learner: DecoderLearner, steps: range, rate: float = 1e-3) -> list[CodecStep]:
    return [learner.update(audio(step), step, rate) for step in steps]


def copied(state: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(state)


def assert_same(ours: Any, theirs: Any, at: str = "") -> None:
    """Equal to the bit, in whatever nesting."""
    if isinstance(ours, Tensor):
        assert torch.equal(ours, theirs), at
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), at
        for name, value in ours.items():
            assert_same(value, theirs[name], f"{at}.{name}")
    elif isinstance(ours, list):
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{at}.{index}")
    else:
        assert ours == theirs, at


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# What it moves


@both
def test_the_decoder_learns_and_nothing_else(
    opened: Callable[[SNAC], DecoderLearner], losses: set[str]
) -> None:
    model = tiny()
    before = copied(model.state_dict())
    learner = opened(model)
    steps = take_steps(learner, range(3))
    assert all(set(step.losses) == losses for step in steps)
    assert all(loss.isfinite() and loss > 0 for step in steps for loss in step.losses.values())
    of_decoder = {name for name in before if name.startswith("decoder.")}
    for codec in (learner.model, learner.average):
        assert moved(before, codec.state_dict()) == of_decoder
    in_optimizer = [id(w) for group in learner.optimizer.param_groups for w in group["params"]]
    assert sorted(in_optimizer) == sorted(id(weight) for weight in model.decoder.parameters())


@pytest.mark.slow
def test_the_codec_it_exports_makes_the_codes_it_made_before(tmp_path: Path) -> None:
    model = tiny()
    CodecFiles(TINY, torch.float32).write(tmp_path / "first", model.state_dict())
    learner = open_learner(model)
    take_steps(learner, range(3))
    CodecFiles(TINY, torch.float32).write(tmp_path / "second", learner.average.state_dict())
    first, second = (load_codec(str(tmp_path / stage)) for stage in ("first", "second"))
    heard = list(audio(9, samples=3 * SAMPLES))
    before, after = first.encode(heard), second.encode(heard)
    for ours, theirs in zip(after, before, strict=True):
        for level, other in zip(ours, theirs, strict=True):
            assert level.tolist() == other.tolist()
    codes = [level[None] for level in before[0]]
    assert not torch.equal(first.decode(codes), second.decode(codes))
    stored = torch.load(tmp_path / "second" / "pytorch_model.bin", weights_only=True)
    assert stored.keys() == tiny().state_dict().keys(), "discriminators are no part of a codec"


@pytest.mark.slow
def test_without_a_rate_only_the_discriminators_learn() -> None:
    """As in the first step of the decoder's warm-up, nearly."""
    model = tiny()
    before = copied(model.state_dict())
    learner = open_learner(model)
    adversary = copied(learner.discriminators.state_dict())
    take_steps(learner, range(2), rate=0.0)
    assert moved(before, model.state_dict()) == set()
    assert moved(adversary, learner.discriminators.state_dict()) == set()
    learner = open_learner(model, warmup_steps=5)
    take_steps(learner, range(2), rate=0.0)
    assert moved(before, model.state_dict()) == set()
    assert moved(adversary, learner.discriminators.state_dict()) == set(adversary)


@pytest.mark.slow
def test_discriminators_follow_the_decoders_rate_after_its_warm_up() -> None:
    learner = open_learner(tiny(), learning_rate=1e-3, warmup_steps=2)
    rates = []
    for step, rate in enumerate((5e-4, 1e-3, 8e-4)):
        learner.update(audio(step), step, rate)
        rates.append(
            tuple(
                optimizer.param_groups[0]["lr"]
                for optimizer in (learner.optimizer, learner.discriminator_optimizer)
            )
        )
    full = DISCRIMINATOR_RATE * 1e-3
    assert rates == [(5e-4, full), (1e-3, full), (8e-4, DISCRIMINATOR_RATE * 8e-4)]


@pytest.mark.slow
def test_without_a_weight_the_adversary_moves_no_decoder() -> None:
    """The step is then the one of the distances alone; and with one, it is another."""
    decoders = []
    for weight in (0.0, 1.0):
        for seed in (0, 1):  # of the discriminators, and of noise
            learner = open_learner(tiny(), adversarial_weight=weight, seed=seed)
            learner._seed = 0  # the same noise
            take_steps(learner, range(1))
            decoders.append(copied(learner.model.decoder.state_dict()))
    assert_same(decoders[0], decoders[1])
    assert moved(decoders[2], decoders[3])
    assert moved(decoders[0], decoders[2])


@pytest.mark.parametrize("answer", [1e-3, 1.0, 1e3])
def test_the_adversary_weighs_what_it_is_told_however_faintly_it_answers(answer: float) -> None:
    first, *others = torch.randn(3, 2, SAMPLES, generator=torch.Generator().manual_seed(0))
    alone, faint = Collectives(CPU), 1e-9
    for weight in (0.0, 0.5, 2.0):
        added = balanced(first, [answer * others[0]], weight, alone) - first
        assert float(added.norm()) == pytest.approx(weight * float(first.norm()), abs=1e-2)
    both = balanced(first, [answer * others[0], others[1]], 1.0, alone)
    one = balanced(first, [answer * others[0]], 1.0, alone)
    assert float((both - one).norm()) == pytest.approx(float(first.norm()), rel=1e-4)
    for nothing in (torch.zeros_like(first), faint * others[0]):
        added = balanced(first, [nothing], 1.0, alone) - first
        assert float(added.norm()) <= 1e-4 * float(first.norm())


@pytest.mark.slow
@pytest.mark.parametrize("part", ["decoder", "discriminators"])
def test_a_gradient_that_is_no_number_moves_neither_side(part: str) -> None:
    learner = open_learner(tiny())
    take_steps(learner, range(1))
    before = copied(learner.state())
    module = learner.model.decoder if part == "decoder" else learner.discriminators
    next(module.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    for step in take_steps(learner, range(1, 3)):
        assert not step.norm.isfinite()
    for name in ("model", "optimizer", "discriminators", "discriminator_optimizer"):
        assert_same(learner.state()[name], before[name], name)


def test_from_a_gradient_that_is_no_number_on_no_decoder_moves() -> None:
    learner = open_plain(tiny())
    take_steps(learner, range(1))
    before = copied(learner.state())
    hook = next(learner.model.decoder.parameters()).register_hook(lambda gradient: gradient / 0)
    (step,) = take_steps(learner, range(1, 2))
    assert not step.norm.isfinite()
    hook.remove()
    (step,) = take_steps(learner, range(2, 3))
    assert step.norm.isfinite(), "the norm before is read later"
    for name in ("model", "optimizer"):
        assert_same(learner.state()[name], before[name], name)


def test_a_state_from_before_the_optimizer_was_fused_is_resumed() -> None:
    whole, resumed = open_plain(tiny()), open_plain(tiny())
    take_steps(whole, range(1))
    state = copied(whole.state())
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = None
    resumed.load_state(state)
    for learner in (whole, resumed):
        take_steps(learner, range(1, 2))
    assert_same(resumed.state(), whole.state())


# Resuming


@pytest.mark.slow
@both
def test_a_resumed_run_ends_as_one_that_never_stopped(
    tmp_path: Path, opened: Callable[[SNAC], DecoderLearner], losses: set[str]
) -> None:
    whole = opened(tiny())
    steps = take_steps(whole, range(3))
    stopped = opened(tiny())
    take_steps(stopped, range(1))
    torch.save(stopped.state(), tmp_path / "state.pt")
    resumed = opened(tiny())
    torch.manual_seed(99)  # as another process would begin
    resumed.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    again = take_steps(resumed, range(1, 3))
    assert_same(resumed.state(), whole.state())
    for ours, theirs in zip(again, steps[1:], strict=True):
        assert ours.losses.keys() == losses
        assert ours.norm == theirs.norm
        assert_same(ours.losses, theirs.losses)


# Several workers


def of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        # Another seed of the discriminators: what counts are the first rank's.
        learner = open_learner(tiny(), Collectives(CPU, rank, 2), seed=rank)
        for step in range(2):
            learner.update(audio(step, rank), step, 1e-3)
        torch.save(learner.state(), f"{folder}/rank-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_hold_the_same_codec_and_the_same_adversary(two_processes: Path) -> None:
    folder = two_processes / Path(__file__).stem
    first, second = (torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    assert_same(first, second)
    alone = open_learner(tiny())
    take_steps(alone, range(2))
    assert moved(alone.state()["model"], first["model"]), "both ranks' audio is learnt from"


# What does not go together


def stage_two(tmp_path: Path, **fields: Any) -> CodecTrainConfig:
    defaults = {"data": str(tmp_path / "data"), "output": str(tmp_path / "out")}
    return CodecTrainConfig(**(defaults | {"adversarial": True} | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantizer_dropout": 0.3}, "--adversarial does not go with --quantizer-dropout: "),
        (
            {"from_scratch": True, "commitment_weight": 0.5},
            "--adversarial does not go with --from-scratch, --commitment-weight: it leaves encoder "
            "and codebooks",
        ),
        (
            {"adversarial": False, "decoder_only": True, "quantizer_dropout": 0.3},
            "--decoder-only does not go with --quantizer-dropout: ",
        ),
    ],
)
def test_fields_of_the_other_stage_are_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(stage_two(tmp_path, **fields))
    assert not (tmp_path / "out").exists()


def test_segments_that_are_too_short_for_the_losses_are_refused(tmp_path: Path) -> None:
    arguments = TINY | {"encoder_rates": [2, 2], "decoder_rates": [2, 2], "vq_strides": [2, 1]}
    model = tiny(arguments)
    CodecFiles(arguments, torch.float32).write(tmp_path / "codec", model.state_dict())
    for seconds in (1e-9, 0.01, 1024 / 24_000):
        with pytest.raises(ValueError, match=r"--segment-seconds .*: give at least 0\.043"):
            run(stage_two(tmp_path, codec=str(tmp_path / "codec"), segment_seconds=seconds))
    fields = {"codec": str(tmp_path / "codec"), "segment_seconds": 0.043}
    with pytest.raises(ValueError, match="data: no such file"):  # the next that is missing
        run(stage_two(tmp_path, **fields))
    learner = open_plain(model)
    shortest = torch.randn(2, segment_samples(0.043, model))
    assert learner.update(shortest, 0, 1e-3).norm.isfinite()


def test_codes_that_16_bits_would_change_are_refused(tmp_path: Path) -> None:
    CodecFiles(TINY, torch.float32).write(tmp_path / "codec", tiny().state_dict())
    fields = {"codec": str(tmp_path / "codec"), "half": True}
    with pytest.raises(ValueError, match=r"--half: the encoder of --codec .* in 32 bits"):
        run(stage_two(tmp_path, **fields))
    CodecFiles(TINY, torch.float16).write(tmp_path / "codec", tiny().state_dict())
    with pytest.raises(ValueError, match="data: no such file"):  # the next that is missing
        run(stage_two(tmp_path, **fields))
