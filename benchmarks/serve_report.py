"""What a load run found: rows of figures, the table of them, and the machine they are from.

Owns what each figure means. Percentiles are of requests that went well; underruns are counted per
chunk and as the share of such requests that had any.
"""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import av
import numpy as np
from serve_client import Outcome

COLUMNS = (
    "load | requests | ok | refused | errors | TTFA p50, s | p95, s | TTFB p50, s | p95, s | "
    "RTF p50 | underruns | with any | missed, s | audio s/s"
)
HEADER = f"| {COLUMNS} |\n|{'---|' * (COLUMNS.count('|') + 1)}"


@dataclass(frozen=True)
class Row:
    """Figures of one load, over `wall_s` seconds from the first request to the last answer."""

    load: str
    requests: int
    ok: int
    refused: int
    """Answered with 429."""
    errors: dict[str, int]
    """How many of each kind."""
    messages: dict[str, str]
    """The first message of each kind of error."""
    ttfa_s: dict[str, float | None]
    """From sending a request to its first audible sample (see `listener.py`); None without any."""
    ttfb_s: dict[str, float | None]
    """From sending a request to the first bytes of audio."""
    rtf: dict[str, float | None]
    """Seconds from sending a request to its end, per second of its audio."""
    silent: int
    """Requests that went well and were never audible: they have no TTFA."""
    underruns: int
    underrun_share: float
    missed_s: float
    audio_s: float
    audio_per_second: float
    wall_s: float
    client_share: float
    """Of one core that this tool took: near 1 it measured itself."""

    @classmethod
    def of(cls, load: str, outcomes: Sequence[Outcome], wall_s: float, cpu_s: float) -> "Row":
        good = [outcome for outcome in outcomes if outcome.ok]
        bad = [outcome for outcome in outcomes if outcome.error]
        heard = [one.listener.audible - one.asked for one in good if one.listener.audible]
        first = [one.first_byte - one.asked for one in good if one.first_byte]
        audio = sum(one.listener.seconds for one in good)
        return cls(
            load=load,
            requests=len(outcomes),
            ok=len(good),
            refused=sum(one.refused for one in outcomes),
            errors=dict(Counter(one.error for one in bad)),
            messages={one.error: one.message for one in reversed(bad)},
            ttfa_s=percentiles(heard),
            ttfb_s=percentiles(first),
            rtf=percentiles([(one.ended - one.asked) / one.listener.seconds for one in good]),
            silent=len(good) - len(heard),
            underruns=sum(one.listener.underruns for one in good),
            underrun_share=(
                sum(one.listener.underruns > 0 for one in good) / len(good) if good else 0.0
            ),
            missed_s=sum(one.listener.missed_s for one in good),
            audio_s=audio,
            audio_per_second=audio / wall_s,
            wall_s=wall_s,
            client_share=cpu_s / wall_s,
        )

    def held(self, max_ttfa_s: float, max_underruns: float) -> bool:
        """Whether every request was spoken, early enough and without a break."""
        p95 = self.ttfa_s["p95"]
        return (
            self.ok == self.requests
            and not self.silent
            and p95 is not None
            and p95 <= max_ttfa_s
            and self.underrun_share <= max_underruns
        )

    def markdown(self) -> str:
        cells = [
            self.load,
            self.requests,
            self.ok,
            self.refused,
            ", ".join(f"{count} {kind}" for kind, count in self.errors.items()) or 0,
            *(_figure(of[name]) for of in (self.ttfa_s, self.ttfb_s) for name in ("p50", "p95")),
            _figure(self.rtf["p50"]),
            self.underruns,
            f"{self.underrun_share:.0%}",
            f"{self.missed_s:.2f}",
            f"{self.audio_per_second:.2f}",
        ]
        return f"| {' | '.join(map(str, cells))} |"

    def remarks(self) -> list[str]:
        """What the table has no column for."""
        found = [f"{kind}: {message}" for kind, message in self.messages.items() if message]
        if self.silent:
            found.append(f"{self.silent} requests were never audible and have no TTFA")
        if self.client_share > 0.7:
            found.append(f"this tool took {self.client_share:.0%} of a core: it may be the limit")
        return found


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"p50": None, "p95": None}
    p50, p95 = np.percentile(values, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def circumstances() -> dict[str, Any]:
    """Date, and the machine and the versions of this tool; the server may be elsewhere."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.platform(),
            "processor": names[0] if names else platform.processor(),
            "cores": os.cpu_count(),
        },
        "versions": {
            "python": platform.python_version(),
            "aiohttp": aiohttp.__version__,
            "av": av.__version__,
            "numpy": np.__version__,
        },
    }
