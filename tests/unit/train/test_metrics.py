"""The numbers of a training run: which chip's peak counts, and what a logged line sums."""

import pytest
import torch

from sheen.train.learning.collectives import Collectives
from sheen.train.learning.metrics import MetricsWindow, peak_of


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
