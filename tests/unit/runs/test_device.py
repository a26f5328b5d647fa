"""What a worker makes of the GPUs that Ray reserved for it, and of those that it did not."""

from pathlib import Path

import pytest
import torch

from sheen.runs import device
from sheen.runs.device import DeviceError, device_index, open_device, worker_device

DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\n"


def have_gpus(patch: pytest.MonkeyPatch, count: int) -> None:
    """What torch says of this machine."""
    patch.setattr(torch.cuda, "is_available", lambda: count > 0)
    patch.setattr(torch.cuda, "device_count", lambda: count)


def test_a_reserved_gpu_that_torch_cannot_use_is_refused_with_driver_and_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    have_gpus(monkeypatch, 0)
    monkeypatch.setattr(device, "DRIVER_FILE", tmp_path / "version")
    with pytest.raises(DeviceError, match="NVIDIA driver: none is loaded"):
        open_device(0)
    (tmp_path / "version").write_text(DRIVER)
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    for built, words in (("13.0", "built for CUDA 13.0"), (None, "built without CUDA")):
        monkeypatch.setattr(torch.version, "cuda", built)
        with pytest.raises(DeviceError, match=f"driver: 550.54.14; torch: 2.11.0.cu130, {words}"):
            open_device(0)


def test_a_gpu_is_used_at_the_index_that_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    have_gpus(monkeypatch, 2)
    assert open_device(1) == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="cannot use"):
        open_device(2)


def test_a_gpu_that_is_not_reserved_is_left_alone_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    have_gpus(monkeypatch, 0)
    assert open_device(None) == torch.device("cpu")
    assert not caplog.messages
    have_gpus(monkeypatch, 2)
    assert open_device(None) == torch.device("cpu")
    (message,) = caplog.messages
    assert "2 GPU(s) are here and none is reserved" in message
    assert "num_gpus" in message


def test_a_gpu_is_found_among_those_that_the_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device_index("3") == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-1f2e,0")
    assert [device_index(gpu) for gpu in ("3", "GPU-1f2e", "0")] == [0, 1, 2]
    with pytest.raises(DeviceError, match=r"reserved GPU 1 .*CUDA_VISIBLE_DEVICES"):
        device_index("1")


def test_without_ray_nothing_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    have_gpus(monkeypatch, 0)
    assert worker_device() == torch.device("cpu")
