"""First values of the audio tokens' rows: of the existing rows' kind, and not all alike."""

import pytest
import torch
from torch import Tensor

from sheen.codec.layout import TokenLayout
from sheen.lm.base_model import draw_noise, initialize_rows

KNOWN, WIDTH, CODES = 300, 6, 16
LAYOUT = TokenLayout(KNOWN, CODES, (2, 1))
ROWS = LAYOUT.size + 4  # a table is padded

both_ways = pytest.mark.parametrize("way", ["independent", "codebook"])


def text_rows() -> Tensor:
    """Rows whose dimensions differ in mean and size and depend on each other."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) * torch.arange(1, WIDTH + 1)
    return torch.randn(KNOWN, WIDTH, generator=generator) @ mixing + torch.arange(WIDTH)


def codebooks(codes: int = CODES) -> list[Tensor]:
    """One codebook a level, as far from white as trained ones are."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(codes, 3, generator=generator) * torch.tensor([5.0, 1.0, 0.2]) + 7
        for _ in range(LAYOUT.levels)
    ]


def new_rows(way: str, seed: int, table: Tensor, layout: TokenLayout = LAYOUT) -> Tensor:
    """The table's rows after those of the text; the table itself is left alone."""
    rows = layout.size + 4
    generator = torch.Generator().manual_seed(seed)
    vectors = codebooks(layout.codebook_size) if way == "codebook" else None
    longer = torch.cat([table, torch.zeros(rows, WIDTH)])
    noise = draw_noise(rows, WIDTH, generator, layout, vectors)
    initialize_rows(longer, KNOWN, noise)
    assert torch.equal(longer[:KNOWN], table), "the text's rows are untouched"
    return longer[KNOWN:]


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@both_ways
def test_new_rows_have_mean_and_covariance_of_the_old(way: str) -> None:
    """Over many draws: those of each level, and the specials and the padding too."""
    table = text_rows()
    draws = torch.stack([new_rows(way, seed, table) for seed in range(600)])
    levels = [draws[:, LAYOUT.blocks[level].base - KNOWN :][:, :CODES] for level in (0, 1)]
    for rows in [*levels, torch.cat([draws[:, :2], draws[:, -4:]], 1)]:
        deviation = (rows.mean((0, 1)) - table.mean(0)) / table.std(0)
        assert deviation.abs().max() < 0.15
        assert off(rows.reshape(-1, WIDTH).T.cov(), table.T.cov()) < 0.15


def test_independent_rows_have_them_in_every_draw() -> None:
    table, large = text_rows(), TokenLayout(KNOWN, 4096, (2, 1))
    rows = new_rows("independent", 0, table, large)
    assert off(rows.T.cov(), table.T.cov()) < 0.1
    assert ((rows.mean(0) - table.mean(0)) / table.std(0)).abs().max() < 0.1


@both_ways
def test_new_rows_are_a_function_of_the_seed_and_no_two_are_equal(way: str) -> None:
    table = text_rows()
    first = new_rows(way, 0, table)
    assert torch.equal(first, new_rows(way, 0, table))
    assert not torch.equal(first, new_rows(way, 1, table))
    assert torch.pdist(first).min() > 0.01 * torch.pdist(table).mean()


def distances(rows: Tensor, level: int) -> Tensor:
    """`[CODES, CODES]` between a level's rows, by the table's own measure of what is far."""
    first = LAYOUT.blocks[level].base - KNOWN
    return torch.cdist(rows[first : first + CODES], rows[first : first + CODES])


def test_codes_that_are_alike_begin_alike_with_the_codebook_only() -> None:
    table = text_rows()
    nearer = {"independent": 0.0, "codebook": 0.0}
    for level, vectors in enumerate(codebooks()):
        white = (vectors - vectors.mean(0)) / vectors.std(0)
        apart = torch.cdist(white, white).fill_diagonal_(torch.inf)
        neighbour = apart.argmin(1)
        for way in nearer:
            ratios = []
            for seed in range(50):
                between = distances(new_rows(way, seed, table), level)
                far = between.sum() / (CODES * (CODES - 1))
                ratios.append(between[torch.arange(CODES), neighbour].mean() / far)
            nearer[way] += float(torch.stack(ratios).mean()) / LAYOUT.levels
    assert nearer["codebook"] < 0.6
    assert 0.9 < nearer["independent"] < 1.1


def test_a_level_has_something_in_common_with_the_codebook_only() -> None:
    """What tells levels apart is there from the start."""
    table = text_rows()
    spread = (table.T.cov().diagonal().sum()) ** 0.5
    gaps = {"independent": 0.0, "codebook": 0.0}
    for way in gaps:
        for seed in range(50):
            rows = new_rows(way, seed, table)
            means = [
                rows[LAYOUT.blocks[level].base - KNOWN :][:CODES].mean(0)
                for level in range(LAYOUT.levels)
            ]
            gaps[way] += float((means[0] - means[1]).norm() / spread) / 50
    assert gaps["codebook"] > 0.7
    assert gaps["independent"] < 0.5


def test_a_table_keeps_its_precision() -> None:
    table = torch.cat([text_rows(), torch.zeros(ROWS, WIDTH)]).bfloat16()
    noise = draw_noise(ROWS, WIDTH, torch.Generator().manual_seed(0), LAYOUT, None)
    initialize_rows(table, KNOWN, noise)
    assert table.dtype == torch.bfloat16
    assert off(table[KNOWN:].float(), new_rows("independent", 0, text_rows())) < 0.02
