"""The acceptance's training part, where one of its ways needs more memory than the device has."""

import sys

import pytest
import torch

from helpers.example import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from acceptance import training
from acceptance.bench import Bench, Ceilings, Row


def test_a_way_that_exceeds_the_memory_is_a_row_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(bench: Bench, way: training.Way) -> float:
        if way.compiles:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB\nand more words")
        return 5.0

    monkeypatch.setattr(training, "_measure", measure)
    rows: list[Row] = []
    training.check(Bench(torch.device("cpu"), True, Ceilings(1, 1, 1, 1), rows.append))
    failed, best = rows
    assert failed.passed is False
    assert failed.details == {"error": "tried to allocate 3 GiB"}
    assert (best.what, best.value) == ("trained on at best", 5.0)
