"""The training loop of a worker: saving, stopping and resuming, without the cluster around it."""

import threading
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from helpers.example import CODEC, VOICE
from helpers.random_codes import write_codes
from helpers.training import metrics, train_config
from sheen.codec.snac import open_codec
from sheen.data.prompts import Prompt
from sheen.engine.engine import Engine
from sheen.lm.checkpoint import read_info
from sheen.lm.model import SpeechLM
from sheen.lm.model_files import load_model
from sheen.train import distributed, evaluation, loop, trainer
from sheen.train.checkpoints import MODEL_FOLDER, StorageFull, load
from sheen.train.config import TrainConfig
from sheen.train.data import Position, build_training_set, plan_run
from sheen.train.launcher import Control
from sheen.train.learning import learner as learner_module
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.metrics import loss_metrics
from sheen.train.learning.training_set import TrainingSet
from sheen.train.loop import log_interval, save_interval
from sheen.train.trainer import DRY_RUN_STEPS, SpeechTrainer, measure_steps

TIMED = ("tokens_per_second", "target_tokens_per_second", "seconds_left", "share_of_peak")


class Stop:
    """The messages of a run; it asks to stop after a number of steps."""

    def __init__(self, after: int | None = None) -> None:
        self.left = after
        self.failures: list[str] = []

    def watched(self) -> "Stop":
        return self

    def stop_requested(self) -> bool:
        if self.left is not None:
            self.left -= 1
        return self.left == 0

    def fail(self, message: str) -> None:
        self.failures.append(message)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "WorkerGroup", lambda: Collectives(torch.device("cpu")))
    monkeypatch.setattr(trainer.ray, "get", lambda item: item)


def built(checkpoint: Path, folder: Path, reference_share: float = 0.0) -> TrainingSet:
    path = write_codes(folder / "codes.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint))
    layout = read_info(checkpoint).token_layout
    return build_training_set(
        [str(path)], layout, tokenizer, 128, 0.2, 8, seed=0, reference_share=reference_share
    )[0]


@pytest.fixture(scope="module")
def data(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    return built(checkpoint, tmp_path_factory.mktemp("codes"))


def codec_parts() -> tuple[dict[str, Any], dict[str, Tensor]]:
    codec, arguments = open_codec(str(CODEC))
    return arguments, codec.state_dict()


def open_trainer(
    data: TrainingSet,
    checkpoint: Path,
    output: Path,
    control: Stop,
    prompts: list[Prompt] | None = None,
    log_every: int = 2,
    **changes: Any,
) -> SpeechTrainer:
    fields: dict[str, Any] = {"batch_tokens": 128, "max_tokens": 128, "trackers": []}
    fields |= {"max_steps": 4} | changes
    config = train_config(Path("codes"), checkpoint, output, **fields)
    opened = SpeechTrainer(
        config.model_dump(mode="json"),
        cast(Any, data),
        read_info(checkpoint),
        str(checkpoint),
        cast(Any, codec_parts()) if prompts else cast(Any, None),
        prompts or [],
        str(output),
        cast(Control, control),
    )
    opened.log_every = log_every
    return opened


def weights(worker: SpeechTrainer) -> dict[str, Tensor]:
    return {name: part.clone() for name, part in worker.model.state_dict().items()}


def tensors(model: SpeechLM) -> dict[str, Tensor]:
    """Weights and buffers, those too that no file has."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def untimed(output: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMED} for row in metrics(output)]


WEIGHTED = {"level_weights": [3.0, 1.0, 0.25], "level_weights_steps": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        WEIGHTED
        | {"history_noise": 0.5, "guided_attention": 0.5, "guided_attention_steps": 3}
        | {"reference_share": 0.5},
        pytest.param({"lora_rank": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_within_a_metrics_window_resumes_with_the_same_bits(
    data: TrainingSet, checkpoint: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if share := changes.get("reference_share"):
        data = built(checkpoint, tmp_path, share)
    whole = open_trainer(data, checkpoint, tmp_path / "whole", Stop(), **changes)
    if data.references is not None:
        rows = [row for step in whole.plan.steps for ranks in step for row in ranks]
        assert any((row >= data.references.first).any() for row in rows)
    whole.run()
    stopped = open_trainer(data, checkpoint, tmp_path / "parts", Stop(after=3), **changes)
    stopped.run()
    assert stopped.step == 3
    resumed = open_trainer(data, checkpoint, tmp_path / "parts", Stop(), **changes)
    assert resumed.step == 3
    resumed.run()
    found = weights(resumed)
    for name, expected in weights(whole).items():
        assert torch.equal(found[name], expected), name
    assert untimed(tmp_path / "parts") == untimed(tmp_path / "whole")


@pytest.fixture
def a_minute_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of checkpoints, moved by steps alone."""
    now = 0.0
    take_step = SpeechTrainer.train_step

    def step(self: SpeechTrainer, batch: Any, rate: float) -> float:
        nonlocal now
        now += 60
        return take_step(self, batch, rate)

    monkeypatch.setattr(SpeechTrainer, "train_step", step)
    monkeypatch.setattr(loop, "monotonic", lambda: now)


BY_MINUTES: dict[str, Any] = {
    "save_every": "2min",
    "eval_every": None,
    "max_steps": 5,
    "log_every": 3,
    "keep_checkpoints": 9,
}


def saved(output: Path, kind: str = "step") -> list[int]:
    return sorted(int(folder.name[5:]) for folder in (output / "run").glob(f"{kind}-*"))


def evaluated(output: Path) -> list[int]:
    return [row["step"] for row in metrics(output) if "eval_loss" in row]


def best_model(output: Path) -> dict[str, Tensor]:
    (folder,) = (output / "run").glob("best-*")
    return load_file(folder / "model.safetensors")


def evaluations(patch: pytest.MonkeyPatch, losses: Sequence[float]) -> None:
    """Evaluations that find these losses after steps 1, 2 and so on, and compute all they did."""
    evaluate = SpeechTrainer.evaluate
    patch.setattr(
        SpeechTrainer,
        "evaluate",
        lambda self: evaluate(self) | {"eval_loss": losses[self.step - 1]},
    )


IMPROVING = [5.0, 4.0, 3.0, 2.0, 1.0]


@pytest.mark.slow
def test_checkpoints_by_the_clock_are_so_many_minutes_apart_and_resume_with_the_same_bits(
    data: TrainingSet,
    checkpoint: Path,
    tmp_path: Path,
    a_minute_a_step: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluations(monkeypatch, IMPROVING)
    whole = open_trainer(data, checkpoint, tmp_path / "whole", Stop(), **BY_MINUTES)
    whole.run()
    assert saved(tmp_path / "whole") == evaluated(tmp_path / "whole") == [2, 4, 5]
    assert saved(tmp_path / "whole", "best") == [5]
    dying = open_trainer(data, checkpoint, tmp_path / "parts", Stop(), **BY_MINUTES)
    dying.batches = lambda: iter([*dying.plan.steps[:3], None])  # type: ignore[method-assign]
    with pytest.raises(TypeError):
        dying.run()
    assert saved(tmp_path / "parts") == saved(tmp_path / "parts", "best") == [2]
    resumed = open_trainer(data, checkpoint, tmp_path / "parts", Stop(), **BY_MINUTES)
    assert resumed.step == 2
    assert resumed.best == {"eval_loss": 4.0}
    resumed.run()
    found = weights(resumed)
    for name, expected in weights(whole).items():
        assert torch.equal(found[name], expected), name
    assert untimed(tmp_path / "parts") == untimed(tmp_path / "whole")
    assert saved(tmp_path / "parts", "best") == [5]
    best, expected_best = best_model(tmp_path / "parts"), best_model(tmp_path / "whole")
    torch.testing.assert_close(best, expected_best, rtol=0, atol=0)


@pytest.mark.slow
def test_a_resumed_run_that_evaluates_at_other_steps_does_not_lose_a_better_model(
    data: TrainingSet,
    checkpoint: Path,
    tmp_path: Path,
    a_minute_a_step: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The best model may be of a step after the last checkpoint, whose rows do not have it."""
    with monkeypatch.context() as patch:
        evaluations(patch, [5.0, 4.0, 1.0])
        changes = BY_MINUTES | {"eval_every": 1}
        dying = open_trainer(data, checkpoint, tmp_path, Stop(), **changes)
        dying.batches = lambda: iter([*dying.plan.steps[:3], None])  # type: ignore[method-assign]
        with pytest.raises(TypeError):
            dying.run()
    assert saved(tmp_path) == [2]
    assert saved(tmp_path, "best") == [3]
    best = best_model(tmp_path)
    evaluations(monkeypatch, [5.0, 4.0, 1.0, 3.0, 2.0])
    resumed = open_trainer(data, checkpoint, tmp_path, Stop(), **BY_MINUTES)
    assert resumed.step == 2
    resumed.run()
    assert evaluated(tmp_path) == [1, 2, 4, 5]
    assert saved(tmp_path, "best") == [3]
    torch.testing.assert_close(best_model(tmp_path), best, rtol=0, atol=0)


@pytest.mark.slow
def test_the_best_model_is_copied_without_the_optimizer_and_no_step_waits_for_its_file(
    data: TrainingSet, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations(monkeypatch, IMPROVING)
    changes = {"save_every": 9, "eval_every": 1, "max_steps": 5}
    worker = open_trainer(data, checkpoint, tmp_path, Stop(), **changes)
    copied, written = [], []
    at_four: dict[str, Tensor] = {}
    best_at_four: dict[str, Tensor] = {}
    gone_on, write, take_step = threading.Event(), worker.store._write, worker.train_step
    optimizer_state = learner_module.get_optimizer_state_dict

    def copy_optimizer(*arguments: Any, **settings: Any) -> Any:
        copied.append(worker.step)
        return optimizer_state(*arguments, **settings)

    def step(batch: Any, rate: float) -> Tensor:
        if worker.step == 4:
            at_four.update(weights(worker))
            gone_on.set()
        return take_step(batch, rate)

    def write_late(number: int, *arguments: Any) -> None:
        assert gone_on.wait(60), "the steps wait for the file"
        write(number, *arguments)
        written.append(number)
        if number == 4:
            best_at_four.update(best_model(tmp_path))

    monkeypatch.setattr(learner_module, "get_optimizer_state_dict", copy_optimizer)
    worker.train_step, worker.store._write = step, write_late  # type: ignore[method-assign]
    worker.run()
    assert copied == saved(tmp_path) == saved(tmp_path, "best") == [5]
    assert written == [1, 4, 5], "a better model takes the place of one that waits"
    assert best_at_four
    for name, part in best_at_four.items():
        assert torch.equal(part, at_four[f"lm.{name}"]), name


@pytest.mark.slow
def test_the_first_workers_clock_decides_for_all(
    data: TrainingSet,
    checkpoint: Path,
    tmp_path: Path,
    a_minute_a_step: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = open_trainer(data, checkpoint, tmp_path, Stop(), **BY_MINUTES)
    said, kept = [], []

    def exchange(*flags: bool) -> list[bool]:
        said.append(flags)
        return [False, worker.step == 3, False]

    def save(**what: bool) -> str:
        kept.append(worker.step)
        return ""

    monkeypatch.setattr(Collectives, "first", False)
    monkeypatch.setattr(worker.group, "any", exchange)
    monkeypatch.setattr(worker, "_save", save)
    worker.run()
    assert said == [(False, False, False)] * 5
    assert kept == [3, 5]
    assert [row["step"] for row in worker.log.rows if "eval_loss" in row] == [3, 5]


def test_checkpoints_come_by_minutes_on_a_gpu_and_by_steps_on_a_cpu_unless_told_otherwise() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")

    def interval(device: torch.device, **given: Any) -> tuple[int | None, float | None]:
        fields: dict[str, Any] = {"data": "codes", "output": "out"}
        return save_interval(TrainConfig(**fields | given), device)

    assert interval(cuda) == (None, 10.0)
    assert interval(cpu) == (200, None)
    assert interval(cuda, save_every=50) == (50, None)
    assert interval(cpu, save_every="200") == (200, None)
    assert interval(cpu, save_every="0.5min") == (None, 0.5)


@pytest.mark.parametrize(
    "given", [0, -5, "0", "0min", "0.0min", "ten", "10m", "min", "-1min", "1e3"]
)
def test_an_interval_of_checkpoints_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(ValidationError, match=r"expected optimizer steps, such as 200, or minutes"):
        TrainConfig(data=["codes"], output="out", save_every=given)


@pytest.mark.parametrize(("total", "every"), [(1, 1), (99, 1), (100, 2), (499, 9), (10_000, 10)])
def test_a_short_run_logs_more_often(total: int, every: int) -> None:
    assert log_interval(total) == every


@pytest.mark.parametrize(
    ("changes", "intervals"),
    [
        ({}, [200, 200]),
        ({"save_every": "2min"}, [None, None]),
        ({"save_every": "2min", "eval_every": 7}, [7, None]),
        ({"save_every": 50}, [200, 50]),
    ],
)
def test_samples_come_with_checkpoints_and_evaluations_with_those_by_the_clock(
    data: TrainingSet,
    checkpoint: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    intervals: list[int | None],
) -> None:
    fields: dict[str, Any] = {"save_every": None, "eval_every": None} | changes
    prompts = [Prompt("a", "text 1", VOICE)]
    worker = open_trainer(data, checkpoint, tmp_path, Stop(), prompts, **fields)
    assert worker.evaluation_intervals() == intervals
    worker.step = 1
    assert not any(map(worker.due, intervals))
    worker.late = True
    assert list(map(worker.due, intervals)) == [every is None for every in intervals]
    worker.step = worker.total
    assert all(map(worker.due, intervals))


@pytest.mark.slow
def test_a_checkpoint_is_of_its_step_though_steps_go_on_while_it_is_written(
    data: TrainingSet, checkpoint: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"save_every": 2, "eval_every": 4, "best_metric": None}
    stopped = open_trainer(data, checkpoint, tmp_path / "stopped", Stop(after=2), **changes)
    stopped.run()
    worker = open_trainer(data, checkpoint, tmp_path / "going", Stop(), **changes)
    gone_on, write = threading.Event(), worker.store._write
    take_step, took = worker.train_step, []

    def step(batch: Any, rate: float) -> Tensor:
        norm = take_step(batch, rate)
        took.append(worker.step)
        if worker.step == 3:
            gone_on.set()
        return norm

    def write_late(*arguments: Any) -> None:
        assert gone_on.wait(60), "the steps wait for the file"
        write(*arguments)

    worker.train_step, worker.store._write = step, write_late  # type: ignore[method-assign]
    worker.run()
    assert took == [0, 1, 2, 3]
    assert saved(tmp_path / "going") == [2, 4]
    early, late = (tmp_path / name / "run" / "step-00000002" for name in ("stopped", "going"))
    found, expected = (load(folder) for folder in (late, early))
    assert found["step"] == expected["step"] == 2
    assert found["position"] == expected["position"]
    found, expected = found["optimizer"]["state"], expected["optimizer"]["state"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found, expected = (load_file(at / MODEL_FOLDER / "model.safetensors") for at in (late, early))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "at_the_end"),
    [(StorageFull(28, "the disk is full"), True), (RuntimeError("no disk"), False)],
)
def test_an_error_while_a_checkpoint_is_written_ends_the_run(
    data: TrainingSet, checkpoint: Path, tmp_path: Path, error: Exception, at_the_end: bool
) -> None:
    control = Stop()
    every = 9 if at_the_end else 1
    worker = open_trainer(data, checkpoint, tmp_path, control, save_every=every, eval_every=9)

    def write(*arguments: Any) -> None:
        raise error

    worker.store._write = write  # type: ignore[method-assign]
    if isinstance(error, StorageFull):
        worker.run()
        assert control.failures == [str(error)]
    else:
        with pytest.raises(RuntimeError, match="no disk"):
            worker.run()
    assert worker.step == (4 if at_the_end else 2)


def test_all_rows_of_a_run_have_one_length_and_a_resumed_run_the_same(
    data: TrainingSet, checkpoint: Path, tmp_path: Path
) -> None:
    worker = open_trainer(data, checkpoint, tmp_path, Stop(), max_steps=None, epochs=3)
    plan = worker.plan
    rows = [row for step in plan.steps for row in worker._rows(step)]
    assert {row.input_ids.shape for row in rows} == {(1, plan.row_length)}
    tokens = [row.tokens for row in rows]
    assert len(set(tokens)) > 1
    assert tokens == [data.lengths[row].sum() for step in plan.steps for (row,) in step]
    again = partial(
        plan_run, data.lengths, lambda _: data.train, capacity=128, seed=0, max_steps=None
    )
    done = Position(len(plan.steps) - 1, 2 * len(plan.steps) - 2, 2)
    left = again(epochs=3, world=1, accumulation=2, done=done)
    assert len(left.steps) == 1
    assert left.row_length == plan.row_length


@pytest.mark.slow
def test_a_run_resumed_by_other_workers_says_how_many_rows_a_step_has(
    data: TrainingSet, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One worker of one row where there were two rows."""
    open_trainer(data, checkpoint, tmp_path, Stop(after=1), accumulation=2).run()
    caplog.set_level("INFO")
    resumed = open_trainer(data, checkpoint, tmp_path, Stop(), accumulation=1)
    assert (resumed.step, resumed.plan.rows_per_step) == (1, 2)
    assert any("the same 2 rows" in message for message in caplog.messages)


def test_hosts_tell_each_other_without_their_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for device, backend in [("cuda", "cpu:gloo,cuda:nccl"), ("cpu", "gloo")]:
        monkeypatch.setattr(distributed, "worker_device", partial(torch.device, device))
        assert distributed.process_group_backend() == backend


def test_a_dry_run_takes_the_steps_that_its_help_names_with_the_fullest_rows(
    data: TrainingSet, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = open_trainer(data, checkpoint, tmp_path, Stop())
    before, step, taken = weights(worker), worker.train_step, list[Any]()

    def counted(batch: Any, rate: float) -> Tensor:
        taken.append(batch)
        return step(batch, rate)

    monkeypatch.setattr(worker, "train_step", counted)
    figures = measure_steps(worker)

    def longest(batch: Any) -> int:
        return max(int(data.lengths[row].sum()) for ranks in batch for row in ranks)

    lengths = [*map(longest, worker.plan.steps)]
    assert min(lengths) < max(lengths), "else any batch would do"
    assert [*map(longest, taken)] == [max(lengths)] * DRY_RUN_STEPS
    words = {1: "one step", 2: "two steps"}
    assert words[DRY_RUN_STEPS] in (TrainConfig.model_fields["dry_run"].description or "")
    assert figures["gradient_norm"] > 0
    assert any(not torch.equal(part, before[name]) for name, part in weights(worker).items())


def gradients(worker: SpeechTrainer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Of the next step, which is not taken."""
    found = {}

    def update(rate: float) -> Tensor:
        for name, part in worker.model.named_parameters():
            found[name], part.grad = part.grad, None
        return torch.ones(())

    with monkeypatch.context() as patch:
        patch.setattr(worker.learner, "update", update)
        worker.train_step(worker.plan.steps[0], 1e-3)
    assert all(part is not None for part in found.values())
    return cast(dict[str, Tensor], found)


def test_level_weights_make_the_loss_a_weighted_mean_for_as_many_steps_as_given(
    data: TrainingSet, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = open_trainer(data, checkpoint, tmp_path, Stop(), **WEIGHTED)
    # Worked out anew: every target's loss times its level's weight, over the sum of these weights.
    by_level = [worker.model(data.batch(row, 0)) for ranks in worker.plan.steps[0] for row in ranks]
    losses = torch.stack([sums.loss for sums in by_level]).sum(0)
    counts = torch.stack([sums.count for sums in by_level]).sum(0)
    assert len(by_level) == 2
    for step, (first, second, third) in [(2, (3.0, 1.0, 0.25)), (3, (1.0, 1.0, 1.0))]:
        worker.step = step
        weighted = first * losses[0] + second * losses[1] + third * losses[2]
        loss = weighted / (first * counts[0] + second * counts[1] + third * counts[2])
        parameters = dict(worker.model.named_parameters())
        expected = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        found = gradients(worker, monkeypatch)
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.slow
def test_guided_attention_is_a_part_of_the_loss_for_as_many_steps_as_given(
    data: TrainingSet, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"guided_attention": 0.5, "guided_attention_steps": 3}
    worker = open_trainer(data, checkpoint, tmp_path, Stop(), **changes)
    rows = [data.batch(row, 0) for ranks in worker.plan.steps[0] for row in ranks]
    targets = sum(len(row.targets) for row in rows)
    for step, weight in ((2, 0.5), (3, 0.0)):
        worker.step = step
        by_row = [worker.model(row, guided=True) for row in rows]
        guided = torch.stack([cast(Tensor, sums.guide) for sums in by_row]).sum()
        loss = torch.stack([sums.loss.sum() for sums in by_row]).sum() + weight * guided
        parameters = dict(worker.model.named_parameters())
        expected = torch.autograd.grad(loss / targets, list(parameters.values()))
        found = gradients(worker, monkeypatch)
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    logged = loss_metrics(worker.window.end()[0])
    assert logged["guided_attention"] == pytest.approx(float(guided.detach()) / targets, rel=1e-4)


def test_equal_level_weights_are_the_plain_mean_to_the_bit(
    data: TrainingSet, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = open_trainer(data, checkpoint, tmp_path, Stop())
    rows = [data.batch(row, 0) for ranks in worker.plan.steps[0] for row in ranks]
    targets = sum(len(row.targets) for row in rows)
    for row in rows:
        (worker.learner.loss(row, last=True).loss.sum() * (1 / targets)).backward()
    expected = {name: part.grad for name, part in worker.model.named_parameters()}
    worker.learner.optimizer.zero_grad(set_to_none=True)
    for given in (None, [1.0, 1.0, 1.0]):
        worker.config.level_weights = given
        for name, gradient in gradients(worker, monkeypatch).items():
            assert torch.equal(gradient, cast(Tensor, expected[name])), name


def test_a_rows_noise_depends_on_its_number_and_not_on_the_workers(
    data: TrainingSet, checkpoint: Path, tmp_path: Path
) -> None:
    changes = {"accumulation": 4, "history_noise": 0.5}
    worker = open_trainer(data, checkpoint, tmp_path, Stop(), **changes)
    rows = [ranks[0] for ranks in worker.plan.steps[0]]
    noisy = [batch.input_ids for batch in worker._rows([[row] for row in rows])]
    plain = [data.batch(row, worker.pad_id).input_ids for row in rows]
    assert any(not torch.equal(one, other) for one, other in zip(noisy, plain, strict=True))
    worker.group.world = 2
    shared: dict[int, Tensor] = {}
    for rank in range(2):
        worker.group.rank = rank
        for index, batch in enumerate(worker._rows([rows[:2], rows[2:]])):
            shared[2 * index + rank] = batch.input_ids
    for number, expected in enumerate(noisy):
        assert torch.equal(shared[number], expected)
    worker.group.rank, worker.group.world, worker.used = 0, 1, 4
    again = [batch.input_ids for batch in worker._rows([[row] for row in rows])]
    assert any(not torch.equal(one, other) for one, other in zip(noisy, again, strict=True))


def test_a_checkpoint_holds_the_model_and_what_resuming_needs(
    data: TrainingSet, checkpoint: Path, tmp_path: Path
) -> None:
    worker = open_trainer(data, checkpoint, tmp_path, Stop(), max_steps=3)
    worker.run()
    with worker.store.open_latest() as folder:
        assert folder is not None
        assert read_info(folder / MODEL_FOLDER) == worker.info
        state = load(folder)
    assert state["step"] == state["position"]["step"] == 3
    assert state["rows"] == metrics(tmp_path)
    best = min(row["eval_loss"] for row in metrics(tmp_path) if "eval_loss" in row)
    assert worker.store.best() is not None
    assert worker.best == worker.store.best_metric() == {"eval_loss": best}


def test_a_gradient_that_is_not_finite_ends_the_run_and_saves_nothing(
    data: TrainingSet, checkpoint: Path, tmp_path: Path
) -> None:
    control = Stop()
    worker = open_trainer(data, checkpoint, tmp_path, control)
    with torch.no_grad():
        worker.model.head[worker.info.token_layout.start_id :].fill_(float("nan"))
    worker.run()
    (failure,) = control.failures
    assert "the gradient of step 1 is nan" in failure
    assert "--learning-rate" in failure
    assert worker.store.latest() is None


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_told_of_the_right_step_some_steps_later(
    data: TrainingSet, checkpoint: Path, tmp_path: Path
) -> None:
    control = Stop()
    worker = open_trainer(data, checkpoint, tmp_path, control, max_steps=9, log_every=5)
    take_step = worker.train_step

    def step(batch: Any, rate: float) -> Tensor:
        if worker.step == 1:
            for part in worker.model.parameters():
                part.register_hook(lambda gradient: gradient * torch.nan)
        return take_step(batch, rate)

    worker.train_step = step  # type: ignore[method-assign]
    worker.due = lambda every: worker.step == 5  # type: ignore[method-assign]
    worker.run()
    assert worker.step == 5
    (failure,) = control.failures
    assert "the gradient of step 2 is nan" in failure
    assert "weights are those of step 1," in failure
    one = open_trainer(data, checkpoint, tmp_path / "one", Stop(after=1), max_steps=9)
    one.run()
    found = weights(worker)
    for name, expected in weights(one).items():
        assert torch.equal(found[name], expected), name


@pytest.mark.slow
def test_evaluation_samples_are_spoken_as_a_server_would_and_leave_no_memory_in_use(
    data: TrainingSet,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[weakref.ref[Any]] = []
    formats: list[dict[str, torch.dtype]] = []

    def engine(model: SpeechLM, *arguments: Any, **settings: Any) -> Engine:
        made = Engine(model, *arguments, **settings)
        formats.append({name: part.dtype for name, part in tensors(model).items()})
        parts = model, made, made._generator, made._generator.cache
        opened.extend(map(weakref.ref, parts))
        return made

    monkeypatch.setattr(evaluation, "Engine", engine)
    monkeypatch.setattr(trainer, "SPEAK_SECONDS", 0.3)
    prompts = [Prompt("a", "text 1", VOICE)]
    worker = open_trainer(data, checkpoint, tmp_path, Stop(), prompts, max_steps=1)
    samples = worker.evaluation._samples
    assert samples is not None
    assert samples._dtype == "auto", "as `load_voice` has it"
    samples._dtype = "bfloat16"
    worker.run()
    folder = tmp_path / "run" / "step-00000001" / MODEL_FOLDER
    served, _ = load_model(folder, worker.info.token_layout, dtype=torch.bfloat16)
    assert formats == [{name: part.dtype for name, part in tensors(served).items()}]
    spoken = tensors(evaluation.in_dtype(worker.model, torch.bfloat16))
    for name, part in tensors(served).items():
        assert torch.equal(part, spoken[name]), name
    assert {part.dtype for part in worker.model.parameters()} == {torch.float32}
    assert len(opened) == 4
    assert not [ref for ref in opened if ref() is not None]


@pytest.mark.slow
def test_evaluation_samples_are_written_and_do_not_change_the_training(
    data: TrainingSet, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SPEAK_SECONDS", 0.3)
    prompts = [Prompt("a", "text 1", VOICE), Prompt("b", "text 2", "af_aoede")]
    changes = {"max_steps": 2, "save_every": 1}
    spoken = open_trainer(data, checkpoint, tmp_path / "spoken", Stop(), prompts, **changes)
    spoken.run()
    silent = open_trainer(data, checkpoint, tmp_path / "silent", Stop(), **changes)
    silent.run()
    for step in ("step-000001", "step-000002"):
        names = {path.name for path in (tmp_path / "spoken" / "samples" / step).iterdir()}
        assert names == {f"prompt-01-{VOICE}.wav", "prompt-02-af_aoede.wav"}
    assert 0.0 <= metrics(tmp_path / "spoken")[-1]["eval_ended_with_eos"] <= 1.0
    found = weights(spoken)
    for name, expected in weights(silent).items():
        assert torch.equal(found[name], expected), name
