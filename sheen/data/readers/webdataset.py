"""WebDataset shards: tar files in which members with a common key form a sample.

Owns the index of a shard. Reads only headers and texts; a recording becomes a byte range.
"""

import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import Any, cast

from pyarrow import fs

from sheen.data.schema import (
    AUDIO_SUFFIXES,
    PART_KEYS,
    FileRows,
    RowBuilder,
    buffered,
    part_of,
    row_fields,
)
from sheen.storage import uris

LOCAL_BUFFER = 1 << 14
REMOTE_BUFFER = 1 << 20
"""Bytes read at once: a request costs as much as many bytes, a read from a disk does not."""


@dataclass
class Sample:
    """The members of one key; texts are the shard's bytes."""

    key: str
    suffixes: set[str] = field(default_factory=set)
    audio: list[tuple[str, int, int]] = field(default_factory=list)  # suffix, offset, size
    text: bytes | None = None
    json: bytes | None = None

    @property
    def complete(self) -> bool:
        return bool(self.audio) and (self.text is not None or self.json is not None)


def read(location: str, limit: int | None) -> FileRows:
    """A row for each sample; where the shard breaks off, one more for the samples lost there."""
    filesystem, path = uris.open_filesystem(location)
    buffer = LOCAL_BUFFER if isinstance(filesystem, fs.LocalFileSystem) else REMOTE_BUFFER
    with filesystem.open_input_file(path) as raw:
        size = raw.size()
        with buffered(raw, buffer) as stream:
            samples, fault = _index(stream, size, limit)
    rows = RowBuilder(limit)
    name = uris.name(location)
    for sample in samples:
        if rows.full:
            break
        row = {"audio": location, "container": "tar", "source": f"{name}:{sample.key}"}
        # A sample that the break may have cut is lost to it, not faulty by itself.
        cut = fault is not None and not sample.complete
        faulty = {"id": sample.key, "text": "", "reason": "unreadable", "detail": fault}
        rows.add(row | (faulty if cut else _fields(sample, rows)))
    if fault is not None and not rows.full and all(sample.complete for sample in samples):
        row = {"audio": location, "container": "tar", "source": f"{name}:end", "text": ""}
        rows.add(row | {"reason": "unreadable", "detail": fault})
    return rows.finish()


def _index(
    stream: io.BufferedReader, size: int, limit: int | None
) -> tuple[list[Sample], str | None]:
    """The samples in order of their first member, and what ended the shard early, if anything."""
    samples: list[Sample] = []
    open_samples: dict[str, Sample] = {}
    ready = 0  # the number of complete samples, from the first on
    try:
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="replace") as tar:
            while (member := tar.next()) is not None:
                cast(Any, tar).members = []  # tarfile would keep them all
                place = member.offset_data
                if place + member.size > size:
                    return samples, f"the shard ends within {member.name}, at byte {size}"
                folder, slash, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                if not member.isreg() or not stem or not dot:
                    continue
                key = folder + slash + stem
                sample = open_samples.get(key)
                if sample is None or suffix in sample.suffixes:
                    while ready < len(samples) and samples[ready].complete:
                        ready += 1
                    if limit is not None and ready >= limit:
                        return samples, None
                    sample = open_samples[key] = Sample(key)
                    samples.append(sample)
                sample.suffixes.add(suffix)
                if f".{suffix.lower()}".endswith(AUDIO_SUFFIXES):
                    sample.audio.append((suffix, place, member.size))
                elif suffix in ("txt", "json"):
                    stream.seek(place)
                    data = stream.read(member.size)
                    sample.text, sample.json = (
                        (data, sample.json) if suffix == "txt" else (sample.text, data)
                    )
            end = tar.offset
    except tarfile.TarError as error:
        return samples, f"the shard cannot be read on ({error})"
    # tarfile ends quietly at a header that is none: only zeros are the end of an archive.
    stream.seek(end)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return samples, f"the shard ends at byte {size} without the mark of its end"
    if block.count(0) != len(block):
        return samples, f"the shard cannot be read on: no header at byte {end}"
    return samples, None


def _fields(sample: Sample, rows: RowBuilder) -> dict[str, Any]:
    """The fields of a sample, or the reason it cannot be used."""
    row: dict[str, Any] = {"id": sample.key, "text": ""}
    try:
        data = json.loads(sample.json) if sample.json is not None else {}
        if not isinstance(data, dict):
            raise TypeError("its .json must be an object")
        rows.note_keys(data, PART_KEYS)
        if sample.text is not None:
            data["text"] = sample.text.decode("utf-8-sig").strip()
        fields = row_fields(data)
        row |= fields | {"id": fields["id"] or sample.key} | part_of(data)
        if len(sample.audio) > 1:
            raise ValueError(f"it has recordings {', '.join(name for name, *_ in sample.audio)}")
    except (ValueError, TypeError, RecursionError) as error:
        detail = f"sample {sample.key}: {type(error).__name__}: {error}"
        return row | {"reason": "malformed row", "detail": detail}
    if not sample.audio:
        kinds = ", ".join(AUDIO_SUFFIXES)
        return row | {
            "reason": "missing",
            "detail": f"sample {sample.key} has no recording ({kinds})",
        }
    _, offset, size = sample.audio[0]
    return row | {"place": [offset, size]}
