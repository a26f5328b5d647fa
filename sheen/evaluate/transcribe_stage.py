"""The second stage of an evaluation: audio -> transcript and identified speaker, in actors.

Separate from synthesis because its processes load the ASR model and nothing that speaks.
"""

import pyarrow as pa
import ray
import torch

from sheen.audio.io import decode_audio
from sheen.evaluate.output import ROW_SCHEMA
from sheen.runs.attempts import Attempts
from sheen.scoring.asr import Grammar, open_transcriber
from sheen.scoring.speaker_id import SpeakerProfiles
from sheen.scoring.wer import normalise_words


class TranscribeWorker:
    """An actor with the ASR: fills `transcript`, and with profiles `identified_speaker`."""

    def __init__(
        self,
        asr: str | None,
        grammar: Grammar | None,
        device: str,
        profiles: "ray.ObjectRef[SpeakerProfiles | None]",
        sample_rate: int,
        attempts: Attempts | None = None,
        language: str | None = "en",
    ) -> None:
        torch.set_num_threads(1)
        self._transcriber = open_transcriber(asr, grammar, device, language) if asr else None
        self._profiles = ray.get(profiles)
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
                # A text without words ("...") has no WER.
                row["transcript"] = text if normalise_words(row["text"]) else None
                row["asr"] = self._transcriber.name
        if self._profiles is not None:
            for row, clip in zip(spoken, clips, strict=True):
                try:
                    row["identified_speaker"] = self._profiles.identify(clip, self._rate)
                except ValueError:  # silent or too short: the model's fault, not the caller's
                    row["identified_speaker"] = ""
        return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
