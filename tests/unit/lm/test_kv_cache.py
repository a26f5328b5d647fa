"""The memory that slots may take of a device, by what a GPU says of itself."""

import pytest
import torch

from sheen.lm.kv_cache import CacheShape, SlotCache, free_memory

GB = 10**9


def test_memory_that_torch_keeps_unused_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training steps leave it; evaluation samples are made between them."""
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 11 * GB)
    assert free_memory(cuda) == 50 * GB
    shape = CacheShape(layers=28, kv_heads=8, head_dim=128, dtype=torch.bfloat16)
    slot = shape.slot_bytes(3696)
    assert slot == 28 * 2 * 8 * 128 * 3712 * 2
    with pytest.raises(ValueError, match=r"118 slots of 3696 tokens .* 50.00 GB are free"):
        SlotCache(shape, 50 * GB // slot + 1, 3696, cuda)
