"""The second stage, as Ray Data runs it: a segment -> PCM, in tasks; PCM -> its transcript, in
actors.

Every segment is transcribed on its own, greedily, so its text depends on nothing but its samples,
the ASR and the device. A segment that fails gets a reason and travels on.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from sheen import blocks
from sheen.audio.io import AudioError, from_pcm16, to_pcm16
from sheen.audio.samples import Samples
from sheen.prepare.decoding import AudioStream
from sheen.prepare.output import PCM_SCHEMA, TRANSCRIPT_SCHEMA
from sheen.prepare.vad import RATE
from sheen.runs.attempts import Attempts
from sheen.runs.device import worker_device
from sheen.storage import uris


def read_segments(table: pa.Table, *, attempts: Attempts) -> pa.Table:
    """SEGMENT_SCHEMA -> PCM_SCHEMA, each source read once from its first segment to its last."""

    def do(rows: pa.Table) -> pa.Table:
        found: list[dict[str, Any]] = []
        for audio, group in groupby(rows.to_pylist(), key=lambda row: row["audio"]):
            found += _read(audio, list(group))
        return pa.Table.from_pylist(found, schema=PCM_SCHEMA)

    return attempts.guard("decoder", table, do)


def _read(audio: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [row | {"pcm": None} for row in rows]
    wanted = [row for row in rows if row["reason"] is None]
    try:
        spans = [(row["start"], row["end"]) for row in wanted]
        for row, samples in zip(wanted, _read_spans(audio, spans), strict=True):
            row["pcm"] = to_pcm16(samples).tobytes()
    except OSError as error:
        for row in wanted:
            row |= {"reason": "not read", "detail": f"{audio}: {error}", "pcm": None}
    except AudioError as error:
        for row in wanted:
            row |= {"reason": error.reason, "detail": f"{audio}: {error}", "pcm": None}
    return rows


def _read_spans(location: str, spans: Sequence[tuple[float, float]]) -> list[Samples]:
    """Samples at RATE of spans in order."""
    if not spans:
        return []
    filesystem, path = uris.open_filesystem(location)
    parts: list[Samples] = []
    with uris.network_errors(location), filesystem.open_input_file(path) as file:
        for samples in AudioStream(file, RATE):
            parts.append(samples)
    whole = np.concatenate(parts)
    return [whole[round(start * RATE) : round(end * RATE)] for start, end in spans]


class TranscribeWorker:
    """An actor with the ASR: PCM_SCHEMA -> TRANSCRIPT_SCHEMA. `device`: None for the one that Ray
    reserved."""

    def __init__(
        self, asr: str, language: str | None, device: str | None, attempts: Attempts
    ) -> None:
        import torch

        from sheen.scoring.asr import open_transcriber

        # Workers fill the cores: more than one thread each would slow all of them down.
        torch.set_num_threads(1)
        self._asr = open_transcriber(asr, None, device or str(worker_device()), language)
        self._attempts = attempts

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._attempts.guard("transcription", table, self.transcribe)

    def transcribe(self, table: pa.Table) -> pa.Table:
        rows = [dict.fromkeys(TRANSCRIPT_SCHEMA.names) | row for row in table.to_pylist()]
        for row in rows:
            pcm = row.pop("pcm")
            if pcm is None:
                continue
            samples = from_pcm16(np.frombuffer(pcm, "<i2"))
            (found,) = self._asr.transcribe_words([samples], RATE)
            row |= asdict(found) | {"asr": self._asr.name}
        return pa.Table.from_pylist(rows, schema=TRANSCRIPT_SCHEMA)


def write_transcripts(table: pa.Table, *, output: str) -> pa.Table:
    fault = blocks.commit(output, table)
    return pa.table({"rows": [len(table)], "fault": pa.array([fault], pa.string())})
