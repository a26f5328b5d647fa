"""The numbers of a training run: which chip's peak counts, and what the dry run measures."""

import pytest

from sheen.train.metrics import peak_of


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
