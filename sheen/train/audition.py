"""Audible evaluation: fixed prompts spoken by the model as it stands, heard by the judge.

Owns the list of prompts and what is measured of their audio. The same prompts, seeds and sampling
at every evaluation, so that two of them differ by the model alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from sheen.core import files
from sheen.core.checkpoint import CheckpointInfo
from sheen.core.codec import Codec
from sheen.core.engine import Engine, synthesise
from sheen.core.model import SpeechLM
from sheen.core.sampling import Sampling
from sheen.core.voice import RequestError, Voice
from sheen.judge.errors import error_rate
from sheen.judge.hearing import Transcriber

BATCH = 16
"""Prompts spoken at once."""


@dataclass(frozen=True)
class Prompt:
    text: str
    speaker: str | None


@dataclass(frozen=True)
class Spoken:
    """`waveform` `[n]` at the codec's rate; `stopped`: the model ended it, not its budget."""

    name: str
    prompt: Prompt
    waveform: NDArray[np.float32]
    stopped: bool


def read_prompts(location: str, voices: Sequence[str]) -> list[Prompt]:
    """A .jsonl file of `text` and, for a model of several voices, `speaker`.

    Raises ValueError naming the line.
    """
    prompts = []
    lines = files.read_bytes(location).decode("utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"--eval-prompts {location}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ValueError(f'{where}: expected an object with a "text", got {line[:80]}')
        speaker = row.get("speaker")
        if voices and speaker not in voices:
            raise ValueError(
                f"{where}: speaker {speaker!r}, the model's voices are {', '.join(voices)}"
            )
        prompts.append(Prompt(row["text"], speaker if voices else None))
    if not prompts:
        raise ValueError(f"--eval-prompts {location}: no prompts in this file")
    return prompts


class Audition:
    """Speaks and measures on one rank."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        info: CheckpointInfo,
        tokenizer: PreTrainedTokenizerBase,
        codec: Codec,
        judge: Transcriber | None,
        max_seconds: float,
    ) -> None:
        self.sample_rate = codec.sample_rate
        self._prompts = prompts
        self._info, self._tokenizer, self._codec = info, tokenizer, codec
        self._judge = judge
        self._max_seconds = max_seconds

    def speak(self, model: SpeechLM) -> list[Spoken]:
        """Every prompt, in order; `model` must be in evaluation mode."""
        voice = Voice(self._info, model, self._tokenizer, self._codec)
        requests = []
        for index, prompt in enumerate(self._prompts):
            sampling = Sampling(seed=index)
            try:
                requests.append(
                    voice.request(prompt.text, prompt.speaker, sampling, self._max_seconds)
                )
            except RequestError as error:
                raise ValueError(f"--eval-prompts, prompt {index + 1}: {error}") from error
        engine = Engine(model, self._codec, max_batch=BATCH, max_queue=len(requests) + 1)
        try:
            results = synthesise(engine, requests)
        finally:
            engine.close()
        return [
            Spoken(_name(index, prompt), prompt, waveform, finished.reason == "stop")
            for index, (prompt, (waveform, finished)) in enumerate(
                zip(self._prompts, results, strict=True)
            )
        ]

    def measure(self, spoken: Sequence[Spoken]) -> dict[str, Any]:
        """Share that stopped, and the error rates where a judge listens."""
        metrics: dict[str, Any] = {
            "eval_stopped": round(sum(s.stopped for s in spoken) / len(spoken), 4)
        }
        if self._judge is not None:
            heard = self._judge.transcribe([s.waveform for s in spoken], self.sample_rate)
            texts = [s.prompt.text for s in spoken]
            metrics["eval_wer"] = round(error_rate("word", texts, heard).rate, 4)
        return metrics


def _name(index: int, prompt: Prompt) -> str:
    return f"prompt-{index + 1:02d}" + (f"-{prompt.speaker}" if prompt.speaker else "")
