"""The two stages of encoding, as Ray Data runs them: read and decode, then encode.

Owns the tables between them. Decoding runs in tasks, encoding in actors that hold the codec. A row
that fails gets a reason and travels on to the output: nothing is dropped on the way.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from sheen.core import files
from sheen.core.audio import AudioError, decode_audio, from_pcm16, to_pcm16
from sheen.core.codec import Codec
from sheen.core.dataset import UTTERANCE_SCHEMA
from sheen.core.manifest import MANIFEST_SCHEMA

PCM_SCHEMA = MANIFEST_SCHEMA.append(pa.field("pcm", pa.large_binary()))
"""The manifest with 16-bit mono PCM at the codec's rate: half the bytes of float32."""

GOLDEN = (5**0.5 - 1) / 2

OUTPUT_SCHEMA = pa.unify_schemas(
    [
        UTTERANCE_SCHEMA,
        pa.schema(
            [
                ("source", pa.string()),
                ("reason", pa.string()),
                ("detail", pa.string()),
                ("status", pa.string()),  # partition: "encoded" or "rejected"
            ]
        ),
    ]
)


def read_and_decode(table: pa.Table, *, sample_rate: int, min_seconds: float) -> pa.Table:
    """Manifest rows -> PCM_SCHEMA. A recording that cannot be used gets a reason and no PCM."""
    rows = table.to_pylist()
    for row in rows:
        row["pcm"] = None
        if row["reason"] is not None:
            continue
        try:
            samples = decode_audio(files.read_bytes(row["audio"]), sample_rate)
        except FileNotFoundError:
            row |= {"reason": "missing", "detail": f"no recording {row['audio']}"}
        except AudioError as error:
            row |= {"reason": error.reason, "detail": f"{row['audio']}: {error}"}
        except OSError as error:
            row |= {"reason": "unreadable", "detail": f"{row['audio']}: {error}"}
        else:
            seconds = len(samples) / sample_rate
            if seconds < min_seconds:
                detail = f"{row['audio']}: {seconds:.3f} s, the minimum is {min_seconds} s"
                row |= {"reason": "too short", "detail": detail}
            else:
                row["pcm"] = to_pcm16(samples).tobytes()
    return pa.Table.from_pylist(rows, schema=PCM_SCHEMA)


def shift_samples(count: int, frame_samples: int) -> list[int]:
    """`count` different parts of a frame, in samples, the first 0; spread evenly for any count.

    Multiples of the golden ratio: evenly spread within a latent too, where equal parts of a frame
    would repeat the same few places.
    """
    return [round(frame_samples * (k * GOLDEN % 1.0)) for k in range(count)]


class EncodeWorker:
    """An actor with the codec on its device; called with batches of PCM_SCHEMA.

    `codec` is a reference in the object store: the driver loads the codec once, and workers need
    neither its folder nor a hub. Every recording is encoded once for each of `shifts`, with so many
    samples of silence before it; the id of all but the first row of it ends in `~` and a number.
    """

    def __init__(self, codec: "ray.ObjectRef[Codec]", device: str, shifts: Sequence[int]) -> None:
        # Workers fill the cores: more than one thread each would slow all of them down.
        torch.set_num_threads(1)
        self._codec = ray.get(codec).to(device)
        self._shifts = shifts

    def __call__(self, table: pa.Table) -> pa.Table:
        rows: list[dict[str, Any]] = table.to_pylist()
        good = [row for row in rows if row["pcm"] is not None]
        waveforms = [torch.from_numpy(from_pcm16(np.frombuffer(row["pcm"], "<i2"))) for row in good]
        nothing = {"n_samples": 0, "snac_codes": None, "status": "rejected"}
        written = [row | nothing for row in rows if row["pcm"] is None]
        for place, shift in enumerate(self._shifts):
            moved = [torch.nn.functional.pad(wave, (shift, 0)) for wave in waveforms]
            for row, wave, codes in zip(good, moved, self._codec.encode(moved), strict=True):
                name = f"{row['id']}~{place}" if place else row["id"]
                result = {"n_samples": len(wave), "snac_codes": codes, "status": "encoded"}
                written.append(row | result | {"id": name})
        names = OUTPUT_SCHEMA.names
        return pa.Table.from_pylist(
            [{name: row[name] for name in names} for row in written], schema=OUTPUT_SCHEMA
        )
