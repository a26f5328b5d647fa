"""The stages of an evaluation, as Ray Data runs them: speak, listen, write.

Owns the table between them and the files of rows. A prompt that cannot be spoken gets a reason and
travels on to the output, so that nothing is dropped on the way and nothing is tried again.
"""

import io
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from sheen.core import files
from sheen.core.audio import decode_audio, encode_audio
from sheen.core.draws import step_seed
from sheen.core.sampling import Sampling
from sheen.core.synthesis import synthesise_all
from sheen.core.voice import RequestError, load_voice
from sheen.judge.errors import normalise_words
from sheen.judge.hearing import Grammar, open_transcriber
from sheen.judge.speech import measure_sound
from sheen.judge.voices import VoiceProfiles

ROWS, AUDIO = "rows", "audio"
"""Folders of an evaluation's output."""

_PROMPT: list[tuple[str, pa.DataType]] = [
    ("key", pa.int64()),  # position in the list: unique, whatever the ids are
    ("id", pa.string()),
    ("text", pa.string()),
    ("speaker", pa.string()),
]
PROMPT_SCHEMA = pa.schema(_PROMPT)

_AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

_RESULT: list[tuple[str, pa.DataType]] = [
    ("reason", pa.string()),  # why it was not spoken, null when it was
    ("detail", pa.string()),
    ("stopped", pa.bool_()),  # by itself, not by its budget
    ("expected_seconds", pa.float64()),
    ("seconds", pa.float64()),
    ("speaking", pa.float64()),
    ("pause", pa.float64()),
    ("clipped", pa.float64()),
    ("listener", pa.string()),
    ("heard", pa.string()),
    ("voice_heard", pa.string()),
    ("audio", _AUDIO),  # FLAC, as the `audio` of Hugging Face datasets
]
ROW_SCHEMA = pa.schema([*_PROMPT, *_RESULT])

REASONS = {"input": "text cannot be spoken", "voice": "voice is unknown"}
"""By the field of a RequestError."""


class SpeakWorker:
    """An actor with the checkpoint on its device: PROMPT_SCHEMA -> ROW_SCHEMA, nothing heard yet.

    A prompt's draws are a function of the seed and its key, so they do not depend on the batch.
    """

    def __init__(
        self,
        model: str,
        device: str,
        untrained_voices: list[str],
        sampling: dict[str, Any],
        seed: int,
        max_seconds: float,
        slots: int,
    ) -> None:
        # Workers fill the cores: more than one thread each would slow all of them down.
        torch.set_num_threads(1)
        voice = load_voice(model, device)
        voices = [*voice.info.voices, *untrained_voices]
        self._voice = replace(voice, info=voice.info.model_copy(update={"voices": voices}))
        self._sampling, self._seed, self._max_seconds = sampling, seed, max_seconds
        self._slots = slots

    def __call__(self, table: pa.Table) -> pa.Table:
        rows: list[dict[str, Any]] = [
            dict.fromkeys(ROW_SCHEMA.names) | row for row in table.to_pylist()
        ]
        spoken, requests = [], []
        for row in rows:
            sampling = Sampling(seed=step_seed(self._seed, row["key"]), **self._sampling)
            try:
                request = self._voice.request(
                    row["text"], row["speaker"], sampling, self._max_seconds
                )
            except RequestError as error:
                row |= {"reason": REASONS[error.field], "detail": str(error)}
            else:
                spoken.append(row)
                requests.append(request)
        codec = self._voice.codec
        results = synthesise_all(self._voice.model, codec, requests, self._slots)
        for row, (waveform, finished) in zip(spoken, results, strict=True):
            sound = measure_sound(waveform, codec.sample_rate)
            audio = encode_audio(waveform, codec.sample_rate, "FLAC")
            row |= {
                "stopped": finished.reason == "stop",
                "expected_seconds": self._voice.expected_seconds(row["text"], row["speaker"]),
                "seconds": sound.seconds,
                "speaking": sound.speaking,
                "pause": sound.pause,
                "clipped": sound.clipped,
                "audio": {"bytes": audio, "path": f"{row['id']}.flac"},
            }
        return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


class ListenWorker:
    """An actor with the judge: fills `heard`, and with profiles `voice_heard`."""

    def __init__(
        self,
        judge: str | None,
        grammar: Grammar | None,
        device: str,
        profiles: "ray.ObjectRef[VoiceProfiles | None]",
        sample_rate: int,
    ) -> None:
        torch.set_num_threads(1)
        self._transcriber = open_transcriber(judge, grammar, device) if judge else None
        self._profiles = ray.get(profiles)
        self._rate = sample_rate

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        spoken = [row for row in rows if row["reason"] is None]
        clips = [decode_audio(row["audio"]["bytes"], self._rate) for row in spoken]
        if self._transcriber is not None:
            heard = self._transcriber.transcribe(clips, self._rate)
            for row, text in zip(spoken, heard, strict=True):
                # Of a text without words ("...") no share of words can be wrong.
                row["heard"] = text if normalise_words(row["text"]) else None
                row["listener"] = self._transcriber.name
        if self._profiles is not None:
            for row, clip in zip(spoken, clips, strict=True):
                try:
                    row["voice_heard"] = self._profiles.hear(clip, self._rate).voice
                except ValueError:  # silent or too short: the model's fault, not the caller's
                    row["voice_heard"] = ""
        return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


def write_rows(table: pa.Table, *, output: str, audio_files: bool) -> pa.Table:
    """Write a block, whole or not at all, as one file named by its first key; returns its keys.

    With `audio_files` the audio goes into files of its own first, and the rows keep their paths.
    """
    if audio_files:
        rows = table.to_pylist()
        for row in rows:
            if row["audio"] is not None:
                name = "/".join([*filter(None, [row["speaker"]]), row["audio"]["path"]])
                files.write_bytes(files.join(output, AUDIO, name), row["audio"]["bytes"])
                row["audio"] = {"bytes": None, "path": name}
        table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
    file = io.BytesIO()
    pq.write_table(table, file)
    name = f"{table['key'][0].as_py():09d}.parquet"
    files.write_bytes(files.join(output, ROWS, name), file.getvalue())
    return table.select(["key"])
