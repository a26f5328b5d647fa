"""A training set as one small file, which may be cut into parts: what a GPU elsewhere trains on.

Owns the format: codes in as few bits as the codebook needs, prompts as token ids, the codebooks,
which new rows of a base follow, and the content of `sheen.json`. Training needs no dataset and no
codec besides it. Lossless.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheen.codec.layout import TokenLayout
from sheen.train.learning.training_set import ReferenceRows, TrainingSet

VERSION = 1
SUFFIX = ".pack"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Pack:
    """`info` is the content of `sheen.json`; `codebooks` one `[codebook_size, d]` per level."""

    data: TrainingSet
    info: dict[str, Any]
    codebooks: list[NDArray[np.float32]]


def squeeze(codes: NDArray[np.int16], bits: int) -> NDArray[np.uint8]:
    """Codes `[n]` below `2**bits` as a string of bits."""
    wide = codes.astype(">u2").view(np.uint8).reshape(-1, 2)
    return np.packbits(np.unpackbits(wide, axis=1)[:, 16 - bits :])


def expand(packed: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.int16]:
    """The inverse of `squeeze`: `[count]`."""
    wide = np.zeros((count, 16), np.uint8)
    wide[:, 16 - bits :] = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    return np.packbits(wide, axis=1).view(">u2").reshape(-1).astype(np.int16)


def to_bytes(pack: Pack) -> bytes:
    data, layout = pack.data, pack.data.layout
    swapped = [data.swapped_prompts.get(i, np.zeros(0, np.int32)) for i in data.evaluation.tolist()]
    header = {
        "version": VERSION,
        "layout": [layout.first_id, layout.codebook_size, layout.strides],
        "frames": len(data.frames),
        "summary": data.summary,
        "info": pack.info,
        "reference_share": rows.share if (rows := data.references) else None,
    }
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "codes": squeeze(data.frames.reshape(-1), _bits(layout)),
        "frame_counts": np.diff(data.frame_offsets).astype(np.int32),
        "prompts": data.prompts,
        "prompt_counts": np.diff(data.prompt_offsets).astype(np.int32),
        "lengths": data.lengths.astype(np.int32),
        "train": data.train.astype(np.int32),
        "evaluation": data.evaluation.astype(np.int32),
        "swapped": np.concatenate([np.zeros(0, np.int32), *swapped]),
        "swapped_counts": np.array([len(prompt) for prompt in swapped], np.int32),
    }
    if rows is not None:
        parts = {"before": rows.before, "spoken": rows.spoken, "rows": rows.rows}
        arrays |= {f"reference_{name}": part.astype(np.int32) for name, part in parts.items()}
    arrays |= {f"codebook_{level}": table for level, table in enumerate(pack.codebooks)}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def from_bytes(content: bytes) -> Pack:
    # Of two archives in one file Python's library reads the last.
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if before := min(member.header_offset for member in archive.infolist()):
            raise ValueError(f"{before} bytes before it")
    with np.load(io.BytesIO(content)) as arrays:
        header = json.loads(arrays["header"].tobytes())
        if header["version"] != VERSION:
            raise ValueError(f"version {header['version']}, this reads {VERSION}: pack it again")
        first_id, codebook_size, strides = header["layout"]
        layout = TokenLayout(first_id, codebook_size, tuple(strides))
        count = header["frames"] * layout.tokens_per_frame
        evaluation = arrays["evaluation"].astype(np.int64)
        swapped = np.split(arrays["swapped"], np.cumsum(arrays["swapped_counts"])[:-1])
        data = TrainingSet(
            layout=layout,
            prompts=arrays["prompts"],
            prompt_offsets=_offsets(arrays["prompt_counts"]),
            frames=expand(arrays["codes"], count, _bits(layout)).reshape(header["frames"], -1),
            frame_offsets=_offsets(arrays["frame_counts"]),
            lengths=arrays["lengths"].astype(np.int64),
            train=arrays["train"].astype(np.int64),
            evaluation=evaluation,
            swapped_prompts={
                index: prompt
                for index, prompt in zip(evaluation.tolist(), swapped, strict=False)
                if len(prompt)
            },
            summary=header["summary"],
            references=_references(header.get("reference_share"), arrays),
        )
        codebooks = [arrays[name] for name in sorted(arrays) if name.startswith("codebook_")]
    return Pack(data, header["info"], codebooks)


def _references(share: float | None, arrays: Mapping[str, Any]) -> ReferenceRows | None:
    if share is None:
        return None
    before, spoken, rows = (
        arrays[f"reference_{name}"].astype(np.int64) for name in ("before", "spoken", "rows")
    )
    return ReferenceRows(share, len(rows), before, spoken, rows)


def _bits(layout: TokenLayout) -> int:
    return max(1, (layout.codebook_size - 1).bit_length())


def _offsets(counts: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def write_parts(content: bytes, folder: Path, name: str, part_bytes: int) -> list[Path]:
    """The content as `NAME-1`, `NAME-2`, ...: files of at most `part_bytes` bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(content), part_bytes)
    paths = []
    for number, start in enumerate(starts, start=1):
        # Padded, so that a shell's NAME* gives them in order.
        path = folder / f"{name}-{number:0{len(str(len(starts)))}}"
        path.write_bytes(content[start : start + part_bytes])
        paths.append(path)
    return paths


def read_parts(paths: Sequence[Path]) -> bytes:
    return b"".join(path.read_bytes() for path in paths)


def read_pack(paths: Sequence[Path]) -> Pack:
    """ValueError naming the files when they are not a whole pack."""
    try:
        return from_bytes(read_parts(paths))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        given = " ".join(map(str, paths))
        raise ValueError(
            f"--codes {given}: no whole pack of codes ({error}). Give all parts that pack_codes.py "
            "wrote of one pack, in order"
        ) from error
