"""Products with weights laid out beforehand: linear's, and no row depends on the rows beside it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sheen.lm import cpu_kernels
from sheen.lm.cpu_kernels import MIN_ROWS as FEWEST
from sheen.lm.cpu_kernels import (
    MKL_ROWS,
    MOST_ROWS,
    PackedLinear,
    applies,
    fewest_rows,
    pack_linears,
    product,
)

SHAPES = [(256, 704), (4097, 256), (1024, 3072), (1024, 1024), (513, 100)]


@pytest.fixture(autouse=True, params=["the processor's library", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's rows agree on every processor with AVX-512, also where MKL is used."""
    if request.param == "oneDNN":
        monkeypatch.setattr(cpu_kernels, "_of_intel", lambda: False)


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_a_packed_linear_layer_gives_the_product(rows: int, width: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(width, rows).requires_grad_(False)
    x = torch.randn(MKL_ROWS + 12, width)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    torch.testing.assert_close(PackedLinear(layer)(x).double(), exact, rtol=1e-4, atol=1e-5)
    deeper = x.view(2, -1, width)
    torch.testing.assert_close(PackedLinear(layer)(deeper).flatten(0, 1), PackedLinear(layer)(x))


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_a_row_of_a_packed_product_is_the_same_among_any_others(rows: int, width: int) -> None:
    """In the multiples that the decoder computes."""
    torch.manual_seed(1)
    multiply = product(torch.randn(rows, width))
    x = torch.randn(512, width)
    fewest = multiply(x[:FEWEST])
    for count in (*range(2 * FEWEST, 70, FEWEST), 128, 260, 512):
        assert torch.equal(multiply(x[:count])[:FEWEST], fewest), f"among {count}"
        assert torch.equal(multiply(x[:count].flip(0))[-FEWEST:].flip(0), fewest), f"among {count}"


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_as_few_rows_as_were_found_give_the_same_product_as_among_many(
    rows: int, width: int
) -> None:
    torch.manual_seed(2)
    multiply = product(torch.randn(rows, width))
    fewest = fewest_rows([(multiply, width)])
    x = torch.randn(MOST_ROWS, width)
    whole = multiply(x)
    for count in range(fewest, MOST_ROWS, fewest):
        assert torch.equal(multiply(x[:count]), whole[:count]), f"{count} rows"
        assert torch.equal(multiply(x[-count:]), whole[-count:]), f"{count} rows"


def test_rows_that_depend_on_how_many_there_are_are_found() -> None:
    def apart(x: torch.Tensor) -> torch.Tensor:
        return x + (len(x) == 1)

    def in_fours(x: torch.Tensor) -> torch.Tensor:
        return x + len(x) % 4

    assert fewest_rows([(torch.neg, 3)]) == 1
    assert fewest_rows([(torch.neg, 3), (apart, 3)]) == 2
    assert fewest_rows([(apart, 3), (in_fours, 3)]) == FEWEST


def test_only_layers_that_gain_are_packed() -> None:
    base = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8)), nn.LayerNorm(8))
    layers = [base[0], base[1][0]]  # type: ignore[index]
    pack_linears(base)
    assert isinstance(base[2], nn.LayerNorm)
    for old, new in zip(layers, (base[0], base[1][0]), strict=True):  # type: ignore[index]
        assert isinstance(new, PackedLinear) == applies(old.weight)
    halves = nn.Sequential(nn.Linear(4, 8)).bfloat16()
    pack_linears(halves)
    assert type(halves[0]) is nn.Linear
