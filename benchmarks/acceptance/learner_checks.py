"""Part "learner": packed attention, and a training step, are those of a loop in float32.

FlashAttention over variable lengths, forward and gradients, beside one utterance after the other in
float32: 1% of the whole, which is bfloat16's rounding of products of a hundred terms. A step of the
learner on three packed rows: its losses in float32 are a CPU's to 0.1%, in bfloat16 to 1%, compiled
as eager.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from workload import draw_clips, pack_row

from acceptance import references
from acceptance.bench import Bench
from acceptance.models import REFERENCE, reference_lm
from sheen.lm.attention.packed import packed_attention
from sheen.lm.batching import Batch, Segments
from sheen.lm.precision import Precision
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.learner import Learner, take_step
from sheen.train.learning.metrics import MetricsWindow

RATE = 1e-3
"""Of the step that is taken, for all weights."""
ATTENTION, EXACT, ROUNDED = 1e-2, 1e-3, 1e-2
ROWS, CLIPS, LONGEST_S = 3, 6, 1.5
"""Rows of a step, clips of a row, and of a clip."""
SMALL = 2, 2, 0.6


def check(bench: Bench) -> None:
    for window in (None, bench.pick(64, 4)):
        _check_attention(bench, window)
    expected = references.read()[bench.pick("losses", "losses_small")]
    ways: list[tuple[str, Precision, bool, float]] = [
        ("float32", "float32", False, EXACT),
        ("bfloat16", "bfloat16", False, ROUNDED),
        ("bfloat16, compiled", "bfloat16", True, ROUNDED),
    ]
    eager = None
    for text, precision, compiles, most in ways:
        with compiling(bench) as graphs:
            found = losses(bench.device, precision, compiles, bench.small)
            made = graphs()
        error = float(np.abs(found / expected - 1).max())
        bench.row(
            f"losses before and after a step as on a CPU, {text}",
            error,
            "relative, at most",
            expected=f"<= {most:g}",
            passed=error <= most,
        )
        if not compiles:
            eager = found
            continue
        assert eager is not None
        error = float(np.abs(found / eager - 1).max())
        bench.row(
            "compiled as eager",
            error,
            "relative, at most",
            expected=f"<= {EXACT:g}",
            passed=error <= EXACT,
        )
        bench.row(
            "graphs compiled for a step and an evaluation",
            made,
            "graphs",
            expected="1 to 6: training and evaluation, of one shape and of any",
            passed=bench.judged(1 <= made <= 6),
        )


def _check_attention(bench: Bench, window: int | None) -> None:
    heads, kv_heads, width = bench.pick((16, 8, 128), (4, 2, 16))
    lengths = bench.pick([300, 1, 77, 512, 134], [30, 1, 7, 20])
    segments = Segments.of(lengths).to(bench.device)
    generator = torch.Generator(bench.device).manual_seed(0)

    def draw(count: int) -> Tensor:
        shape = 1, count, sum(lengths), width
        return torch.randn(shape, generator=generator, device=bench.device).bfloat16()

    drawn = draw(heads), draw(kv_heads), draw(kv_heads)
    weights = draw(heads).transpose(1, 2)

    def run(dtype: torch.dtype) -> list[Tensor]:
        parts = [part.to(dtype, copy=True).requires_grad_() for part in drawn]
        out, _ = packed_attention(
            nn.Module(), parts[0], parts[1], parts[2], None, segments=segments,
            sliding_window=window,
        )  # fmt: skip
        (out * weights.to(dtype)).sum().backward()
        return [out.detach(), *(part.grad for part in parts if part.grad is not None)]

    errors = [
        float((found.float() - exact).norm() / exact.norm())
        for found, exact in zip(run(torch.bfloat16), run(torch.float32), strict=True)
    ]
    bench.row(
        "packed attention and its gradients" + ("" if window is None else f", window {window}"),
        max(errors),
        "relative, at most",
        expected=f"<= {ATTENTION:g}",
        passed=max(errors) <= ATTENTION,
        by_output=errors,
    )


def rows(small: bool) -> list[Batch]:
    count, each, longest_s = SMALL if small else (ROWS, CLIPS, LONGEST_S)
    clips = draw_clips(count * each, 0.3, longest_s, REFERENCE.layout)
    longest = max(sum(map(len, clips[row * each : (row + 1) * each])) for row in range(count))
    return [
        pack_row(clips[row * each : (row + 1) * each], REFERENCE.layout, longest + 1)
        for row in range(count)
    ]


def losses(
    device: torch.device, precision: Precision, compiles: bool, small: bool = False
) -> NDArray[np.float64]:
    """`[2, rows]`: mean losses in nats before and after a step on all of the rows."""
    group = Collectives(device)
    learner = Learner(
        reference_lm(device),
        group,
        strategy="ddp",
        precision=precision,
        compile_layers=compiles,
        learning_rate=RATE,
    )
    batches = rows(small)

    def measured() -> list[float]:
        learner.model.eval()
        sums = [learner.evaluate(row) for row in batches]
        learner.model.train()
        return [float(found.loss.sum() / found.count.sum()) for found in sums]

    before = measured()
    take_step(
        learner,
        group,
        MetricsWindow(group),
        batches,
        weights=[1.0] * REFERENCE.layout.levels,
        guide_weight=0.0,
        rate=RATE,
        seed=0,
    )
    return np.array([before, measured()])


def answers(device: torch.device) -> dict[str, NDArray[Any]]:
    """Of a CPU, for the references."""
    return {
        "losses": losses(device, "float32", False),
        "losses_small": losses(device, "float32", False, small=True),
    }


@contextmanager
def compiling(bench: Bench) -> Iterator[Any]:
    """Compile anew within; yields a function that counts the graphs. With toy sizes they are
    traced and run as they are: a compiler takes minutes."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    backend = "eager" if bench.small else None
    stance: AbstractContextManager[Any] = torch.compiler.set_stance(
        "default", force_backend=backend
    )
    with stance:
        yield lambda: int(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
