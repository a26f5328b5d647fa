"""Audible evaluation: fixed prompts spoken by the model as it stands, heard by the judge.

Owns the list of prompts and what is measured of their audio. The same prompts, seeds and sampling
at every evaluation, so that two of them differ by the model alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from sheen.core import prompt_list
from sheen.core.checkpoint import CheckpointInfo
from sheen.core.codec import Codec
from sheen.core.model import SpeechLM
from sheen.core.prompt_list import Prompt
from sheen.core.sampling import Sampling
from sheen.core.synthesis import synthesise_all
from sheen.core.voice import RequestError, Voice
from sheen.judge.errors import error_rate, normalise_words
from sheen.judge.hearing import Transcriber

BATCH = 16
"""Prompts spoken at once."""


@dataclass(frozen=True)
class Spoken:
    """`waveform` `[n]` at the codec's rate; `stopped`: the model ended it, not its budget."""

    name: str
    prompt: Prompt
    """Its text in the spoken form."""
    waveform: NDArray[np.float32]
    stopped: bool


def eval_prompts(location: str, voices: Sequence[str]) -> list[Prompt]:
    """Prompts for a model of these voices, whose one voice has no name where there are none.

    Raises ValueError naming the prompt.
    """
    try:
        prompts = prompt_list.read_prompts(location)
    except ValueError as error:
        raise ValueError(f"--eval-prompts {error}") from error
    for prompt in prompts:
        if not normalise_words(prompt.text):
            raise ValueError(f"--eval-prompts {location}, {prompt.id}: a text without words")
        if voices and prompt.speaker not in voices:
            raise ValueError(
                f"--eval-prompts {location}, {prompt.id}: speaker {prompt.speaker!r}, the model's "
                f"voices are {', '.join(voices)}"
            )
    return prompts if voices else [replace(prompt, speaker=None) for prompt in prompts]


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
        prompts = [replace(prompt, text=voice.spoken(prompt.text)) for prompt in self._prompts]
        requests = []
        for index, prompt in enumerate(prompts):
            sampling = Sampling(seed=index)
            try:
                requests.append(
                    voice.request(prompt.text, prompt.speaker, sampling, self._max_seconds)
                )
            except RequestError as error:
                raise ValueError(f"--eval-prompts, prompt {index + 1}: {error}") from error
        results = synthesise_all(model, self._codec, requests, BATCH)
        return [
            Spoken(_name(index, prompt), prompt, waveform, finished.reason == "stop")
            for index, (prompt, (waveform, finished)) in enumerate(
                zip(prompts, results, strict=True)
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
