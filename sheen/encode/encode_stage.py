"""The second stage of encoding: PCM -> codes, in actors that hold the codec.

Owns the shifts of a recording. Rows without PCM pass through.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from sheen.audio.io import from_pcm16
from sheen.codec.snac import Codec
from sheen.encode.output import ENCODED, ENCODED_SCHEMA, REJECTED, pack, unpack
from sheen.runs.attempts import Attempts

GOLDEN = (5**0.5 - 1) / 2


def shift_samples(count: int, frame_samples: int) -> list[int]:
    """`count` different parts of a frame, in samples, the first 0; spread evenly for any count.

    Multiples of the golden ratio: evenly spread within a latent too, where equal parts of a frame
    would repeat the same few places.
    """
    return [round(frame_samples * (k * GOLDEN % 1.0)) for k in range(count)]


class EncodeWorker:
    """Called with packed blocks of PCM_SCHEMA, answers with such of ENCODED_SCHEMA.

    `codec` is a reference in the object store: the driver loads the codec once, and workers need
    neither its folder nor a hub. Every recording is encoded once for each of `shifts`, with so many
    samples of silence before it; the id of all but the first row of it ends in `~` and a number.
    Codes that a row brings along stay as they are. `budget`: see `Codec.encode`. A recording that
    kills its process is refused after a few attempts.
    """

    def __init__(
        self,
        codec: "ray.ObjectRef[Codec]",
        device: str,
        shifts: Sequence[int],
        budget: int,
        attempts: Attempts,
    ) -> None:
        # Workers fill the cores: more than one thread each would slow all of them down.
        torch.set_num_threads(1)
        self._codec = ray.get(codec).to(device)
        self._shifts = shifts
        self._budget = budget
        self._attempts = attempts
        self._name = str(ray.get_runtime_context().get_actor_id())
        self._free_since: float | None = None

    def __call__(self, packed: pa.Table) -> pa.Table:
        tables = unpack(packed)
        return pack(self._attempts.guard("encoder", table, self.encode) for table in tables)

    def encode(self, table: pa.Table) -> pa.Table:
        started = time.perf_counter()
        idle = 0.0 if self._free_since is None else started - self._free_since
        rows: list[dict[str, Any]] = table.to_pylist()
        good = [row for row in rows if row["pcm"] is not None]
        waveforms = [torch.from_numpy(from_pcm16(np.frombuffer(row["pcm"], "<i2"))) for row in good]
        written = [row | self._kept(row) for row in rows if row["pcm"] is None]
        for place, shift in enumerate(self._shifts):
            moved = [torch.nn.functional.pad(wave, (shift, 0)) for wave in waveforms]
            encoded = self._codec.encode(moved, self._budget)
            for row, wave, codes in zip(good, moved, encoded, strict=True):
                new = {"n_samples": len(wave), "snac_codes": codes, "status": ENCODED}
                new["audio_seconds"] = len(wave) / self._codec.sample_rate
                if place:
                    new |= {"id": f"{row['id']}~{place}", "read_s": 0, "decode_s": 0}
                    new["resample_s"] = 0
                written.append(row | new)
        names = ENCODED_SCHEMA.names
        self._free_since = time.perf_counter()
        for row in written:
            row |= {"worker": self._name, "idle_s": 0.0, "encode_s": 0.0}
        written[0] |= {"idle_s": idle, "encode_s": self._free_since - started}
        return pa.Table.from_pylist(
            [{name: row[name] for name in names} for row in written], schema=ENCODED_SCHEMA
        )

    def _kept(self, row: dict[str, Any]) -> dict[str, Any]:
        """What becomes of a row without PCM: it is rejected, or has its codes."""
        if row["reason"] is not None:
            return {
                "n_samples": 0, "snac_codes": None, "status": REJECTED, "audio_seconds": 0.0
            }  # fmt: skip
        samples = len(row["snac_codes"][0]) * self._codec.frame_samples
        return {"n_samples": samples, "status": ENCODED, "audio_seconds": 0.0}
