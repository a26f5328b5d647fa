"""The first stage of an evaluation, as Ray Data runs it: prompts -> audio.

A prompt that cannot be synthesized gets a reason and stays in the table, so that no prompt is lost
or tried again. The text of the others is their spoken words, never phonemes, for the comparison
with the transcript.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import torch

from sheen.audio.io import encode_audio
from sheen.engine.engine import Engine
from sheen.engine.reference import LONGEST_S
from sheen.engine.synthesis import synthesize_all
from sheen.engine.types import Reference, RequestError, SynthesisParams
from sheen.engine.voice import Voice, load_voice
from sheen.evaluate.output import ROW_SCHEMA
from sheen.evaluate.prompts import ReferenceRecording
from sheen.lm.precision import Precision
from sheen.rng import step_seed
from sheen.runs.attempts import Attempts
from sheen.runs.device import worker_device
from sheen.scoring.speech import measure_sound
from sheen.text.prompt import ReferenceForm

NO_SOURCE: Mapping[str, str | None] = MappingProxyType({})
REASONS = {
    "input": "text cannot be spoken",
    "voice": "voice is unknown",
    "instructions": "instruction leaves no room",
    "ref_audio": "reference leaves no room",
}
"""Reasons by the field of a RequestError."""


class SpeakWorker:
    """An actor with the checkpoint on its device: PROMPT_SCHEMA -> ROW_SCHEMA, not transcribed yet.

    A prompt that crashes its process is rejected after a few attempts. Random numbers are a
    function of the seed and the prompt's key, and do not depend on the batch. `device`: None for
    the one that Ray reserved. `source`: see `load_voice`.
    """

    def __init__(
        self,
        model: str,
        device: str | None,
        untrained_voices: list[str],
        sampling: dict[str, Any],
        seed: int,
        max_seconds: float,
        slots: int,
        dtype: Precision = "auto",
        attempts: Attempts | None = None,
        references: Mapping[str, ReferenceRecording] = MappingProxyType({}),
        reference_form: ReferenceForm | None = None,
        source: Mapping[str, str | None] = NO_SOURCE,
    ) -> None:
        # Workers fill the cores: more than one thread each would slow all of them down.
        torch.set_num_threads(1)
        voice = load_voice(model, device or worker_device(), dtype, **source)
        voices = [*voice.info.voices, *untrained_voices]
        self._voice = replace(voice, info=voice.info.model_copy(update={"voices": voices}))
        self._sampling, self._seed, self._max_seconds = sampling, seed, max_seconds
        self._engine = Engine(
            voice.model,
            voice.codec,
            slots=slots,
            max_seq_len=voice.max_seq_len(max_seconds, LONGEST_S if references else 0.0),
        )
        self._references = {
            name: _reference(voice, name, recording, reference_form)
            for name, recording in references.items()
        }
        self._attempts = attempts

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._attempts is None:
            return self.speak(table)
        return self._attempts.guard("speaking", table, self.speak)

    def speak(self, table: pa.Table) -> pa.Table:
        rows: list[dict[str, Any]] = [
            dict.fromkeys(ROW_SCHEMA.names) | row for row in table.to_pylist()
        ]
        asked = [row for row in rows if row["reason"] is None]
        texts = [(row["text"], self._params(row)) for row in asked]
        results = synthesize_all(self._engine, self._voice, texts)
        rate = self._voice.codec.sample_rate
        for row, (_, params), result in zip(asked, texts, results, strict=True):
            if isinstance(result, RequestError):
                row |= {"reason": REASONS[result.field], "detail": str(result)}
                continue
            model_input = result.model_input or row["text"]
            row["text"] = result.text or row["text"]
            sound = measure_sound(result.samples, rate)
            audio = encode_audio(result.samples, rate, "FLAC")
            row |= {
                "ended_with_eos": result.finish_reason == "stop",
                "expected_seconds": self._voice.expected_seconds(
                    model_input, params.speaker, params.reference
                ),
                "seconds": sound.seconds,
                "speaking": sound.speaking,
                "pause": sound.pause,
                "clipped": sound.clipped,
                "audio": {"bytes": audio, "path": f"{row['id']}.flac"},
            }
        return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)

    def _params(self, row: dict[str, Any]) -> SynthesisParams:
        sampling = self._voice.sampling(step_seed(self._seed, row["key"]), **self._sampling)
        reference = self._references.get(row["speaker"])
        speaker = None if reference else row["speaker"]
        return SynthesisParams(
            speaker,
            sampling,
            self._max_seconds,
            reference=reference,
            instruction=row["instruction"],
        )


def _reference(
    voice: Voice, name: str, recording: ReferenceRecording, form: ReferenceForm | None
) -> Reference:
    try:
        return voice.read_reference(recording.data, recording.text, form)
    except RequestError as error:
        raise ValueError(f"--references: {name}: {error.field}: {error}") from error
