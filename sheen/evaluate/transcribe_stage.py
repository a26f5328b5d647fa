"""The second stage of an evaluation: audio -> transcript and scores of the sound, in actors.

Separate from synthesis, so that a process loads either the speech model or the scoring models.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from sheen.audio.io import decode_audio
from sheen.evaluate.output import ROW_SCHEMA
from sheen.runs.attempts import Attempts
from sheen.runs.device import worker_device
from sheen.scoring.asr.transcribers import open_transcriber
from sheen.scoring.mos import Dnsmos
from sheen.scoring.packaged import UnscorableError
from sheen.scoring.speaker_id import SpeakerEncoder, SpeakerProfiles
from sheen.scoring.wer import normalize_words


class TranscribeWorker:
    """An actor with the ASR model, DNSMOS and the speakers' profiles, as far as requested.

    Fills `transcript`, `dnsmos`, `identified_speaker` and `speaker_similarity`; for a clip that is
    silent or too short to score, `unscored`. `device` of the ASR model: None for the one that Ray
    reserved.
    """

    def __init__(
        self,
        asr: str | None,
        device: str | None,
        profiles: "ray.ObjectRef[SpeakerProfiles | None]",
        sample_rate: int,
        attempts: Attempts | None = None,
        language: str | None = "en",
        dnsmos: bool = False,
    ) -> None:
        torch.set_num_threads(1)
        place = device or str(worker_device())
        self._transcriber = open_transcriber(asr, place, language) if asr else None
        self._dnsmos = Dnsmos() if dnsmos else None
        self._profiles = ray.get(profiles)
        self._encoder = SpeakerEncoder() if self._profiles else None
        self._rate = sample_rate
        self._attempts = attempts

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._attempts is None:
            return self.transcribe(table)
        return self._attempts.guard("transcription", table, self.transcribe)

    def transcribe(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        spoken = [row for row in rows if row["reason"] is None]
        clips = [decode_audio(row["audio"]["bytes"], self._rate) for row in spoken]
        if self._transcriber is not None:
            transcripts = self._transcriber.transcribe(clips, self._rate)
            for row, text in zip(spoken, transcripts, strict=True):
                # The WER of a text without words ("...") is undefined.
                row["transcript"] = text if normalize_words(row["text"]) else None
                row["asr"] = self._transcriber.name
        for row, clip in zip(spoken, clips, strict=True):
            try:
                self._score(row, clip)
            except UnscorableError as error:
                row["unscored"] = str(error)
                row["identified_speaker"] = "" if self._profiles else None
        return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)

    def _score(self, row: dict[str, Any], clip: NDArray[np.float32]) -> None:
        if self._dnsmos is not None:
            row["dnsmos"] = asdict(self._dnsmos.score(clip, self._rate))
        if self._profiles is not None and self._encoder is not None:
            embedding = self._encoder.embed(clip, self._rate)
            row["identified_speaker"] = self._profiles.identify(embedding)
            if row["speaker"] in self._profiles.voices:
                row["speaker_similarity"] = self._profiles.similarity(embedding, row["speaker"])
