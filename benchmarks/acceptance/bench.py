"""What a part of the acceptance is given: the device, its ceilings, and where its rows go.

Owns a row's form and the share of its floor, and timing on a device. A floor is what the device
could do at best, by the ceilings that were measured in the same process. Decides nothing about
which part runs when: that is `runner`'s.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ceilings:
    """Of the device, as measured: bytes per second of a copy, read and written together; FLOP/s of
    large matrix products; bytes per second from the device to the host's pinned memory."""

    copy: float
    bfloat16: float
    float32: float
    to_host: float


@dataclass(frozen=True)
class Row:
    """One figure. `floor` is the best value that the device allows, in the same unit, `bound` says
    by what; `passed` is None where nothing was demanded, or where this device cannot show it; a
    `value` of None was not measured, or is infinite."""

    what: str
    value: float | None
    unit: str
    floor: float | None = None
    bound: str = ""
    expected: str = ""
    passed: bool | None = None
    details: dict[str, Any] | None = None

    @property
    def share(self) -> float | None:
        """Of the floor that was reached. Units per time grow towards it, others shrink."""
        if not self.floor or not self.value:
            return None
        return self.value / self.floor if "/" in self.unit else self.floor / self.value

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share}


class Bench:
    """`small`: toy sizes, to try every line out; what depends on speed is then not judged."""

    def __init__(
        self, device: torch.device, small: bool, ceilings: Ceilings, give: Callable[[Row], object]
    ) -> None:
        self.device = device
        self.small = small
        self.ceilings = ceilings
        self._give = give
        self.ends = float("inf")
        """When the part at hand is stopped, of `time.monotonic`: parts that measure as much as
        there is time for look at it."""

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds until the part is stopped."""
        return self.ends - time.monotonic()

    def row(
        self,
        what: str,
        value: float,
        unit: str,
        *,
        floor: float | None = None,
        bound: str = "",
        expected: str = "",
        passed: bool | None = None,
        **details: Any,
    ) -> None:
        """Report a figure, at once."""
        finite = float(value) if math.isfinite(value) else None
        self._give(Row(what, finite, unit, floor, bound, expected, passed, details or None))

    def skip(self, what: str, why: str) -> None:
        """Report a figure that was not measured."""
        self._give(Row(what, None, "", expected=why))

    def judged(self, passed: bool, on: str = "") -> bool | None:
        """A verdict about speed or a GPU's arithmetic, which only a GPU at full size can give, and
        one whose name has `on` in it."""
        if not self.on_gpu or self.small or on not in torch.cuda.get_device_name(self.device):
            return None
        return passed

    def pick(self, full: Item, small: Item) -> Item:
        return small if self.small else full

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], object], repeats: int = 1) -> float:
        """Of one call, over `repeats` of them, with all that they started on the device."""
        self.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            function()
        self.synchronize()
        return (time.perf_counter() - started) / repeats

    def release(self) -> None:
        """Give back the memory of what is no longer in use, and measure its peak anew."""
        import gc

        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self) -> int | None:
        """Bytes since `release`."""
        return torch.cuda.max_memory_allocated(self.device) if self.on_gpu else None


def measure_ceilings(device: torch.device, small: bool) -> Ceilings:
    bench = Bench(device, small, Ceilings(0, 0, 0, 0), lambda row: None)
    size = bench.pick(1 << 30, 1 << 22)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    host = torch.empty(size // 4, dtype=torch.uint8, pin_memory=bench.on_gpu)
    return Ceilings(
        copy=2 * size / _best(bench, lambda: target.copy_(source)),
        bfloat16=_product_rate(bench, torch.bfloat16, bench.pick(8192, 128)),
        float32=_product_rate(bench, torch.float32, bench.pick(4096, 128)),
        to_host=len(host) / _best(bench, lambda: host.copy_(source[: len(host)])),
    )


def _product_rate(bench: Bench, dtype: torch.dtype, width: int) -> float:
    matrix = torch.randn(width, width, device=bench.device).to(dtype)
    return 2.0 * width**3 / _best(bench, lambda: matrix @ matrix)


def _best(bench: Bench, function: Callable[[], object]) -> float:
    """Seconds of a call, the first of which is not counted."""
    function()
    return min(bench.seconds(function, bench.pick(10, 1)) for _ in range(2))


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(100 * share) * len(ordered) // 100) - 1)]
