"""The numbers of a training run: which chip's peak counts, and what a logged line sums."""

import pytest
import torch
from torch import Tensor

from sheen.train.learning.collectives import Collectives
from sheen.train.learning.metrics import MetricsWindow, peak_of
from sheen.train.learning.metrics_log import best_so_far


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA GeForce RTX 4090", 165e12),
    ],
)
def test_peak_flops_of_known_gpus(name: str, peak: float) -> None:
    assert peak_of(name) == peak


@pytest.mark.parametrize(
    "name", ["NVIDIA A10G", "NVIDIA GH200 480GB", "NVIDIA GeForce RTX 4090 Laptop GPU", "Tesla T4"]
)
def test_a_gpu_whose_name_only_contains_a_known_one_has_no_peak(name: str) -> None:
    assert peak_of(name) is None


def open_window() -> MetricsWindow:
    return MetricsWindow(Collectives(torch.device("cpu")))


def test_a_window_sums_by_name_and_starts_again_after_each_line() -> None:
    window = open_window()
    for step in range(3):
        window.add({"tokens": torch.tensor(10 + step), "loss": torch.tensor([0.5, 1.0])})
        window.count_step()
    sums, seconds, steps = window.end()
    assert (float(sums["tokens"]), sums["loss"].tolist(), steps) == (33, [1.5, 3.0], 3)
    assert seconds > 0
    window.add({"tokens": torch.tensor(1)})
    sums, _, steps = window.end()
    assert (set(sums), float(sums["tokens"]), steps) == ({"tokens"}, 1, 0)


def test_a_window_resumes_from_a_checkpoint_with_the_same_bits() -> None:
    values = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    whole, before, resumed = open_window(), open_window(), open_window()
    for value in values:
        whole.add({"loss": value})
        whole.count_step()
    for value in values[:4]:
        before.add({"loss": value})
        before.count_step()
    with before.paused():
        resumed.load_state(before.state())
    for value in values[4:]:
        resumed.add({"loss": value})
        resumed.count_step()
    expected, _, steps = whole.end()
    found, _, steps_resumed = resumed.end()
    assert torch.equal(found["loss"], expected["loss"])
    assert steps_resumed == steps == 6


class Sent(Collectives):
    """One of two ranks, which keeps what it would exchange."""

    def __init__(self, rank: int) -> None:
        super().__init__(torch.device("cpu"), rank, 2)

    def sum(self, values: Tensor) -> Tensor:
        self.values = values.clone()
        return self.values


def test_ranks_resume_a_window_with_a_loss_that_has_ended() -> None:
    """As guided attention does after its steps: all ranks must still exchange the same sums."""
    before = open_window()
    before.add({"loss": torch.tensor([1.0, 2.0]), "guide": torch.tensor(4.0)})
    before.count_step()
    with before.paused():
        state = before.state()
    ranks = [Sent(0), Sent(1)]
    for group in ranks:
        window = MetricsWindow(group)
        window.load_state(state)
        window.add({"loss": torch.tensor([10.0, 20.0])})
        window.end()
    first, second = (group.values for group in ranks)
    assert len(first) == len(second)
    assert (first + second).tolist() == [4.0, 21.0, 42.0]  # guide, then loss


@pytest.mark.parametrize(
    ("metric", "saved", "best"),
    [
        ("eval_loss", {}, {"eval_loss": 2.0}),
        ("eval_loss", {"eval_loss": 1.0}, {"eval_loss": 1.0}),  # of a step after the checkpoint
        ("eval_wer", {"eval_loss": 1.0}, {}),  # no model of these values was stored
        ("eval_wer", {"eval_wer": 0.1}, {"eval_wer": 0.1}),
        ("", {"eval_loss": 1.0}, {}),
    ],
)
def test_a_resumed_run_compares_with_the_model_that_is_stored(
    metric: str, saved: dict[str, float], best: dict[str, float]
) -> None:
    rows = [{"event": "data"}, {"eval_loss": float("nan")}, {"eval_loss": 2.0, "eval_wer": 0.2}]
    assert best_so_far(rows, saved, metric) == best


def test_a_loss_that_is_no_number_is_no_best_one() -> None:
    assert best_so_far([{"eval_loss": float("nan")}], {}, "eval_loss") == {}
