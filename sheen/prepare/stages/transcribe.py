"""The second stage, as Ray Data runs it: a segment -> PCM, its measures and embeddings, in tasks;
PCM -> its transcript, in actors, so that a GPU waits for nothing but the ASR.

Every segment is transcribed separately and greedily, so that its text depends only on its samples,
the ASR and the device. A segment that fails gets a reason and stays in the table. What is played on
the pages is read here too.

Shapes: n samples.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from sheen.audio.io import from_pcm16, resampled, to_pcm16
from sheen.audio.samples import NO_SAMPLES, Samples
from sheen.data.clips import ClipError, ClipReader
from sheen.data.recordings import in_recording_order
from sheen.prepare.changes import note_files
from sheen.prepare.cutting.analysis import WHOLE
from sheen.prepare.cutting.cut import QUIETEST
from sheen.prepare.cutting.vad import RATE
from sheen.prepare.output import PCM_SCHEMA, TRANSCRIPT_SCHEMA
from sheen.prepare.rejections.quality import between, measure
from sheen.prepare.rejections.reasons import word_at
from sheen.prepare.speakers.embedding import COLUMNS as EMBEDDINGS
from sheen.prepare.speakers.embedding import embed_parts
from sheen.runs.attempts import Attempts, is_crash
from sheen.runs.device import worker_device
from sheen.scoring.mos import Dnsmos
from sheen.scoring.overlap import OverlapDetector
from sheen.scoring.speaker_id import SpeakerEncoder

Row = dict[str, Any]

AROUND_S = 1.5
"""Context on either side of a cut within speech, which the ASR needs for its word times."""


def read_segments(
    table: pa.Table,
    *,
    dnsmos: bool,
    overlap: bool,
    speakers: bool,
    attempts: Attempts,
    limit_s: float,
) -> pa.Table:
    """SEGMENT_SCHEMA -> PCM_SCHEMA. Measures the quality too, before resampling, and embeds the
    voice. A segment that takes longer than `limit_s` seconds is rejected."""

    def do(rows: pa.Table) -> pa.Table:
        reader = _reader()
        reader.forget()
        networks = {
            "dnsmos": _dnsmos() if dnsmos else None,
            "overlap": _overlap() if overlap else None,
        }
        segments = rows.to_pylist()
        note_files(segments, limit_s)
        found = _read_all(
            reader,
            segments,
            networks,
            _encoder() if speakers else None,
            partial(attempts.limit, seconds=limit_s),
        )
        return pa.Table.from_pylist(found, schema=PCM_SCHEMA)

    return attempts.guard("decoder", table, do)


@cache
def _reader() -> ClipReader:
    """One for each process: its next block often lies in the same recording."""
    return ClipReader()


@cache
def _dnsmos() -> Dnsmos:
    return Dnsmos()


@cache
def _overlap() -> OverlapDetector:
    return OverlapDetector()


@cache
def _encoder() -> SpeakerEncoder:
    return SpeakerEncoder()


def _read_all(
    reader: ClipReader,
    rows: Sequence[Row],
    networks: Mapping[str, Any],
    encoder: SpeakerEncoder | None,
    limit: Callable[[Hashable], AbstractContextManager[None]],
) -> list[Row]:
    """The rows with their samples, in the order given; each is read within `limit(key)`."""
    found = dict.fromkeys(range(len(rows)), Row())
    for place in in_recording_order(rows):  # rows of two channels alternate
        with limit(rows[place]["key"]):
            found[place] = _read(reader, rows[place], networks, encoder)
    return list(found.values())


def _read(
    reader: ClipReader, row: Row, networks: Mapping[str, Any], encoder: SpeakerEncoder | None
) -> Row:
    row |= {"pcm": None, "cuts": [], "seconds": None, "quality": None} | dict.fromkeys(EMBEDDINGS)
    if row["reason"] is None:
        try:
            # In the order in which they begin: see `sheen.audio.stream.AudioFile`.
            before = _window(reader, row, row["start_at"], row["start"])
            samples, rate = reader.read(row)
            after = _window(reader, row, row["end_at"], row["end"])
            pcm = _pcm(resampled(samples, rate, RATE))
            row |= {"pcm": pcm, "cuts": before + after}
            row["seconds"] = len(samples) / rate
            speech = row["regions"] or [(0.0, row["seconds"])]
            pauses = between(samples, rate, speech)
            quality = measure(samples, rate, speech, pauses, peak=row["peak"], **networks)
            row["quality"] = vars(quality)
            if encoder is not None:
                row |= embed_parts(encoder, _samples(pcm), RATE)
        except ClipError as error:
            row |= {"reason": error.reason, "detail": f"{row['audio']}: {error}"}
    return row


def _window(reader: ClipReader, row: Row, kind: str | None, place: float) -> list[Row]:
    """The samples around a row's beginning or end, if it is a cut within speech."""
    if kind != QUIETEST:
        return []
    start = max(0.0, place - AROUND_S)
    span = {**row, "start": start, "end": place + AROUND_S}
    return [{"at": place - start, "pcm": _pcm(read_part(reader, span, RATE))}]


def read_part(reader: ClipReader, row: Mapping[str, Any], rate: int) -> Samples:
    """The samples of a row with `audio`, `start` and `end`; fewer if the recording ends before.
    Raises ClipError."""
    samples, source_rate = reader.read({**WHOLE, **row}, strict=False)
    return resampled(samples, source_rate, rate)


def read_rows(rows: Sequence[Mapping[str, Any]], rate: int) -> list[Samples]:
    """The samples of rows, in the order given; empty for a row that can no longer be read, and for
    one that ended a worker: this may be the driver's process."""
    reader = ClipReader()
    found: dict[int, Samples] = {}
    for place in in_recording_order([{**WHOLE, **row} for row in rows]):
        if is_crash(rows[place].get("reason")):
            found[place] = NO_SAMPLES
            continue
        try:
            found[place] = read_part(reader, rows[place], rate)
        except ClipError:
            found[place] = NO_SAMPLES
    return [found[place] for place in range(len(rows))]


def _pcm(samples: Samples) -> bytes:
    return to_pcm16(samples).tobytes()


class TranscribeWorker:
    """An actor with the ASR: PCM_SCHEMA -> TRANSCRIPT_SCHEMA. `device`: None for the one that Ray
    reserved."""

    def __init__(
        self,
        asr: str,
        language: str | None,
        device: str | None,
        attempts: Attempts,
    ) -> None:
        import torch

        from sheen.scoring.asr.transcribers import open_transcriber

        # Workers fill the cores: more than one thread each would slow all of them down.
        torch.set_num_threads(1)
        self._asr = open_transcriber(asr, device or str(worker_device()), language)
        self._guess = language is not None
        self._attempts = attempts

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._attempts.guard("transcription", table, self.transcribe)

    def transcribe(self, table: pa.Table) -> pa.Table:
        rows: list[dict[str, Any]] = [
            dict.fromkeys(TRANSCRIPT_SCHEMA.names) | row for row in table.to_pylist()
        ]
        for row in rows:
            pcm, cuts = row.pop("pcm"), row.pop("cuts")
            if pcm is not None:
                row |= self._transcript(_samples(pcm), row["check_language"])
                row |= self._check_cuts(cuts)
        return pa.Table.from_pylist(rows, schema=TRANSCRIPT_SCHEMA)

    def _transcript(self, samples: Samples, check_language: bool) -> dict[str, Any]:
        (found,) = self._asr.transcribe_words([samples], RATE)
        language, probability = found.language, found.language_probability
        if self._guess:
            guess = self._asr.guess_language(samples, RATE) if check_language else None
            language, probability = guess or (None, None)
        asr = {"asr": self._asr.name}
        return asdict(found) | asr | {"heard_language": language, "heard_probability": probability}

    def _check_cuts(self, cuts: list[dict[str, Any]]) -> dict[str, Any]:
        """`cut_word`: the word that a cut falls into, that of the first such cut, None if there is
        none. `cuts_unchecked`: how many the ASR gave no word times for."""
        unchecked = 0
        for cut in cuts:
            (found,) = self._asr.transcribe_words([_samples(cut["pcm"])], RATE)
            unchecked += found.words is None
            if word := word_at(found.words or (), cut["at"]):
                return {"cut_word": word, "cuts_unchecked": unchecked}
        return {"cut_word": None, "cuts_unchecked": unchecked}


def _samples(pcm: bytes) -> Samples:
    return from_pcm16(np.frombuffer(pcm, "<i2"))
