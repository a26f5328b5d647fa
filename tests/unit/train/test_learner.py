"""What learns, what a step does, and that any number of processes takes the same steps."""

import sysconfig
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForCausalLM

from helpers.small_models import small_model
from helpers.utterances import LAYOUT, prompts, utterances
from sheen.codec.layout import Softmax
from sheen.lm.batching import Batch, collate
from sheen.lm.model import SpeechLM, extend
from sheen.lm.model_files import load_base, merge_adapters, save_model
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.learner import Learner, add_adapters, compiles
from sheen.train.learning.settings import Strategy

Weights = dict[str, Tensor]


CPU = torch.device("cpu")


def open_learner(model: SpeechLM, place: Collectives | None = None, **changes: Any) -> Learner:
    settings: dict[str, Any] = {
        "strategy": "ddp",
        "precision": "auto",
        "compile_layers": False,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
    }
    return Learner(model, place or Collectives(CPU), **(settings | changes))


def row(seed: int) -> Batch:
    """A packed row of three utterances."""
    generator = np.random.default_rng(seed)
    codes = [generator.integers(0, 32, (frames, 7), np.int16) for frames in (2, 4, 1)]
    return collate(prompts(5, 3, 8), codes, LAYOUT, pad_id=0)


def backward(learner: Learner, batch: Batch) -> float:
    sums = learner.loss(batch, last=True)
    loss = sums.loss.sum() / len(batch.targets)
    loss.backward()
    return float(loss.detach())


def take_steps(learner: Learner, seeds: range) -> list[float]:
    losses = []
    for seed in seeds:
        losses.append(backward(learner, row(seed)))
        learner.update(1e-3, 1.0)
    return losses


def weights_of(model: SpeechLM) -> Weights:
    return {name: part.detach().clone() for name, part in model.state_dict().items()}


def shared(weights: Weights) -> int:
    """How many names have no memory of their own."""
    return len(weights) - len({part.data_ptr() for part in weights.values()})


def changed(before: Weights, after: Weights) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def moments_of(learner: Learner) -> Weights:
    """Everything the optimizer remembers, as copies."""
    _, optimizer = learner.state()
    return {
        f"{name}.{kind}": part.clone()
        for name, parts in optimizer["state"].items()
        for kind, part in parts.items()
    }


def test_layers_are_compiled_on_a_gpu_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setenv("CC", "cc")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert compiles(None, cuda)
    assert not compiles(False, cuda)
    assert not compiles(None, CPU)
    assert compiles(True, CPU)
    # Without what compiles them a run is slower, and does not end in its first step.
    (tmp_path / "Python.h").unlink()
    assert not compiles(None, cuda)
    assert "Python's headers" in caplog.text
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert not compiles(None, cuda)
    assert "a C compiler" in caplog.text
    assert compiles(True, cuda)


# Adapters


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
def test_with_adapters_only_they_and_the_tables_learn(family: str) -> None:
    model = small_model(family)
    add_adapters(model, rank=4, alpha=8)
    linear = [name for name, _ in model.named_modules() if name.endswith(".base_layer")]
    assert len(linear) == model.lm.config.num_hidden_layers * (4 if family == "gpt2" else 7)
    assert not any("head" in name for name in linear)
    learner = open_learner(model)
    before = weights_of(model)
    take_steps(learner, range(3))
    tables = {name for name in before if name.endswith(("embed_tokens.weight", "wte.weight"))}
    tables |= {"lm.lm_head.weight"}
    assert changed(before, weights_of(model)) == tables | {
        name for name in before if "lora" in name
    }


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_merged_adapters_are_a_plain_model_that_computes_the_same(family: str) -> None:
    """GPT-2's linear layers keep their weights turned over."""
    model = small_model(family)
    plain = SpeechLM(deepcopy(model.lm), LAYOUT)
    add_adapters(model, rank=4, alpha=8)
    learner = open_learner(model)
    take_steps(learner, range(4))
    model.eval()
    ids = torch.arange(40)[None] * 3
    with torch.no_grad():
        before = plain.lm(ids).logits
        expected = model.hidden(ids).last_hidden_state @ model.head.T
        weights, _ = learner.state()
        plain.load_state_dict(merge_adapters(model, weights))
        found = plain.lm(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - before).abs().max() > 0.05, "they had learnt nothing"
    assert merge_adapters(plain, weights_of(plain)).keys() == plain.state_dict().keys()


def test_merged_adapters_are_saved_for_bare_transformers(base: Path, tmp_path: Path) -> None:
    lm, tokenizer = load_base(str(base))
    model = extend(lm, tokenizer, 32, (4, 2, 1), seed=0)
    add_adapters(model, rank=2, alpha=8)
    learner = open_learner(model)
    layout = model.layout
    batch = collate(prompts(5, layout=layout), utterances(3, layout=layout), layout, pad_id=0)
    for _ in range(3):
        backward(learner, batch)
        learner.update(1e-2, 1.0)
    weights, _ = learner.state()
    save_model(model, tokenizer, tmp_path, weights)
    bare, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    model.eval()
    with torch.no_grad():
        expected = model.hidden(batch.input_ids).last_hidden_state @ model.head.T
        torch.testing.assert_close(bare(batch.input_ids).logits, expected, rtol=1e-4, atol=1e-4)


# Steps


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("adapted", [False, True])
def test_from_a_gradient_that_is_no_number_on_nothing_changes(value: float, adapted: bool) -> None:
    """It is read some steps later."""
    model = start_model("qwen3", "masked", adapters=4 if adapted else 0)
    learner = open_learner(model)
    take_steps(learner, range(2))
    before, moments = weights_of(model), moments_of(learner)
    backward(learner, row(2))
    gradient = next(part.grad for part in model.parameters() if part.grad is not None)
    gradient[0, 0] = value
    norms = [learner.update(1e-3, 1.0)]
    assert all(part.grad is None for part in model.parameters()), "the next step starts anew"
    for seed in (3, 4):
        backward(learner, row(seed))
        norms.append(learner.update(1e-3, 1.0))
    assert [bool(norm.isfinite()) for norm in norms] == [False, True, True]
    assert not changed(before, weights_of(model))
    assert not changed(moments, moments_of(learner))


def test_the_norm_is_that_before_clipping_and_the_step_that_after() -> None:
    model = small_model("qwen3")
    learner = open_learner(model)
    backward(learner, row(0))
    gradients = [part.grad.clone() for part in model.parameters() if part.grad is not None]
    expected = float(torch.stack([part.square().sum() for part in gradients]).sum().sqrt())
    assert expected > 0.5
    assert float(learner.update(1e-3, 0.5)) == pytest.approx(expected, rel=1e-5)
    moments = [state["exp_avg"] for state in learner.optimizer.state.values()]
    clipped = torch.stack([moment.square().sum() for moment in moments]).sum().sqrt()
    assert float(clipped) == pytest.approx((1 - 0.9) * 0.5, rel=1e-4)


def test_matrices_decay_and_norms_do_not() -> None:
    model = small_model("gpt2")
    learner = open_learner(model, weight_decay=0.5)
    (learner.loss(row(0), last=True).loss.sum() * 0.0).backward()
    before = weights_of(model)
    learner.update(1e-2, 1.0)
    for name, part in weights_of(model).items():
        expected = before[name] * (1 - 1e-2 * 0.5) if part.ndim >= 2 else before[name]
        torch.testing.assert_close(part, expected, msg=name)


def test_a_row_without_utterances_moves_no_weight() -> None:
    model = small_model("qwen3")
    learner = open_learner(model, weight_decay=0.0)
    before = weights_of(model)
    learner.loss(collate([], [], LAYOUT, pad_id=0), last=True).loss.sum().backward()
    assert all(part.grad is not None for part in model.parameters()), "ranks wait for each of them"
    assert float(learner.update(1e-3, 1.0)) == 0.0
    assert not changed(before, weights_of(model))


def test_mixed_precision_learns_in_float32() -> None:
    whole, half = (
        open_learner(small_model("qwen3"), precision=precision)
        for precision in ("float32", "bfloat16")
    )
    losses = take_steps(whole, range(5))
    assert take_steps(half, range(5)) == pytest.approx(losses, rel=0.02)
    assert losses[-1] < losses[0]
    assert {part.dtype for part in half.model.parameters()} == {torch.float32}
    evaluated = float(half.evaluate(row(9)).loss.sum())
    assert evaluated == pytest.approx(float(whole.evaluate(row(9)).loss.sum()), rel=0.02)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_restored_optimizer_takes_the_same_steps(adapted: bool, tmp_path: Path) -> None:
    def start() -> SpeechLM:
        model = small_model("qwen3")
        if adapted:
            torch.manual_seed(1)
            add_adapters(model, rank=4, alpha=8)
        return model

    learner = open_learner(start())
    take_steps(learner, range(3))
    torch.save(learner.state(), tmp_path / "state.pt")
    expected = take_steps(learner, range(3, 6))

    weights, optimizer = torch.load(tmp_path / "state.pt", weights_only=True)
    restored = start()
    restored.load_state_dict(weights)
    again = open_learner(restored)
    again.load_optimizer(optimizer)
    assert take_steps(again, range(3, 6)) == expected
    assert not changed(weights_of(learner.model), weights_of(again.model))
    assert not changed(moments_of(learner), moments_of(again))

    forgetful = open_learner(restored)
    forgetful.model.load_state_dict(weights)
    take_steps(forgetful, range(3, 6))
    assert changed(weights_of(learner.model), weights_of(forgetful.model)), "moments matter"


# Processes

ACCUMULATION = 2
STEPS = 3


def rows_of_step(step: int) -> list[Batch]:
    """Four packed rows, of which the last is empty, as at a run's end."""
    full = [row(10 * step + index) for index in range(3)]
    return [*full, collate([], [], LAYOUT, pad_id=0)]


def run_steps(learner: Learner, place: Collectives, steps: range) -> list[float]:
    """As the training loop does it: rank r takes the r-th of each `world` rows."""
    losses = []
    for step in steps:
        batches = rows_of_step(step)
        count = sum(len(batch.targets) for batch in batches)
        mine = batches[place.rank :: place.world]
        total = torch.zeros(())
        for index, batch in enumerate(mine):
            loss = learner.loss(batch, last=index + 1 == len(mine)).loss.sum()
            (loss * (place.world / count)).backward()
            total += loss.detach() / count
        if place.world > 1:
            dist.all_reduce(total)
        losses.append(float(total))
        losses.append(float(learner.update(1e-3, 1.0)))
    return losses


def evaluation(learner: Learner, place: Collectives) -> float:
    total = learner.evaluate(row(99 if place.rank == 0 else 98)).loss.sum().clone()
    if place.world > 1:
        dist.all_reduce(total)
    return float(total)


KINDS: list[tuple[Strategy, str, Softmax, int]] = [
    ("ddp", "qwen3", "masked", 0),
    ("fsdp", "qwen3", "masked", 0),  # one table for input and output
    ("fsdp", "llama", "full", 4),  # two tables, and adapters
]


def start_model(family: str, softmax: Softmax, adapters: int) -> SpeechLM:
    model = small_model(family, softmax)
    if adapters:
        torch.manual_seed(1)
        add_adapters(model, adapters, 8)
    return model


def of_two(rank: int, folder: str) -> None:
    """One of two processes: three steps, the state, two more; and those again, resumed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        steps_of_two(Collectives(CPU, rank, 2), folder)
    finally:
        dist.destroy_process_group()


def steps_of_two(place: Collectives, folder: str) -> None:
    for index, (strategy, family, softmax, adapters) in enumerate(KINDS):
        learner = open_learner(start_model(family, softmax, adapters), place, strategy=strategy)
        losses = run_steps(learner, place, range(STEPS))
        evaluated = evaluation(learner, place)
        weights, optimizer = learner.state()
        if place.rank == 0:
            torch.save((weights, optimizer), f"{folder}/state-{index}.pt")
        dist.barrier()
        after = run_steps(learner, place, range(STEPS, STEPS + 2))
        weights, optimizer = torch.load(f"{folder}/state-{index}.pt", weights_only=True)
        model = start_model(family, softmax, adapters)
        model.load_state_dict(weights)
        again = open_learner(model, place, strategy=strategy)
        again.load_optimizer(optimizer)
        resumed = run_steps(again, place, range(STEPS, STEPS + 2))
        if place.rank == 0:
            torch.save((losses, evaluated, after, resumed), f"{folder}/run-{index}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(KINDS)))
def test_two_processes_take_the_steps_of_one(two_processes: Path, index: int) -> None:
    _, family, softmax, adapters = KINDS[index]
    folder = two_processes / Path(__file__).stem
    losses, evaluated, after, resumed = torch.load(folder / f"run-{index}.pt")
    weights, optimizer = torch.load(folder / f"state-{index}.pt")
    model = start_model(family, softmax, adapters)
    learner = open_learner(model)
    assert losses == pytest.approx(run_steps(learner, Collectives(CPU), range(STEPS)), rel=1e-4)
    expected = sum(float(learner.evaluate(row(seed)).loss.sum()) for seed in (98, 99))
    assert evaluated == pytest.approx(expected, rel=1e-4)
    assert weights.keys() == model.state_dict().keys()
    assert shared(weights) == shared(model.state_dict()) == (0 if family == "llama" else 1)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(weights, weights_of(model), **close)
    own = learner.state()[1]
    torch.testing.assert_close(optimizer["state"], own["state"], **close)
    assert optimizer["param_groups"] == own["param_groups"]

    # Two processes go on from their state as if they had not stopped, and so does one.
    assert resumed == after
    alone = start_model(family, softmax, adapters)
    alone.load_state_dict(weights)
    learner = open_learner(alone)
    learner.load_optimizer(optimizer)
    found = run_steps(learner, Collectives(CPU), range(STEPS, STEPS + 2))
    assert found == pytest.approx(after, rel=1e-4)
