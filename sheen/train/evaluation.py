"""Evaluation of a speech LM in training: held-out loss, text gain, samples of fixed prompts.

Owns the evaluation samples, with the same prompts, seeds and sampling settings at every evaluation,
so that only the model differs, in the number format that a server of the checkpoint uses; their EOS
rate, and their WER if an ASR model is given. The model is in training mode again afterwards. Does
not decide when to evaluate. Refuses prompts without words or for an unknown voice.
"""

import copy
import gc
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from sheen.audio.io import encode_audio
from sheen.codec.snac import Codec
from sheen.data import prompts as prompt_list
from sheen.data.prompts import Prompt
from sheen.engine.engine import Engine
from sheen.engine.synthesis import synthesize_all
from sheen.engine.types import RequestError, SynthesisParams
from sheen.engine.voice import Voice
from sheen.lm.checkpoint import CheckpointInfo
from sheen.lm.model import SpeechLM
from sheen.lm.precision import Precision, dtype_of
from sheen.scoring.asr.transcribers import Transcriber
from sheen.scoring.wer import error_rate, normalize_words
from sheen.storage import files, uris
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.held_out import held_out_metrics
from sheen.train.learning.learner import Learner
from sheen.train.learning.training_set import TrainingSet
from sheen.train.tracking import Trackers

BATCH = 8
"""Prompts synthesized at once."""
SAMPLES_FOLDER = "samples"
LONGEST_SPEAKER = 40
"""Characters of a speaker in a sample's name: a file's name has at most 255 bytes."""


@dataclass(frozen=True)
class EvalSample:
    """`waveform` `[n]` at the codec's rate."""

    name: str
    prompt: Prompt
    """The prompt, its text normalized."""
    waveform: NDArray[np.float32]
    ended_with_eos: bool


def eval_prompts(
    location: str, voices: Sequence[str], *, instructions: bool = False, described: bool = False
) -> list[Prompt]:
    """Prompts for a model with these voices, or with a single unnamed voice.
    `instructions`: whether the model was trained with instructions. `described`: whether a speaker
    is a description in words, so that there is no list of voices.

    Raises ValueError naming the prompt.
    """
    try:
        prompts = prompt_list.read_prompts(location)
    except ValueError as error:
        raise ValueError(f"--eval-prompts {error}") from error
    for prompt in prompts:
        if not normalize_words(prompt.text):
            raise ValueError(f"--eval-prompts {location}, {prompt.id}: the text has no words")
        if prompt.instruction and not instructions:
            raise ValueError(
                f"--eval-prompts {location}, {prompt.id}: an instruction, and no row of the data "
                "has one"
            )
        if voices and prompt.speaker not in voices:
            raise ValueError(
                f"--eval-prompts {location}, {prompt.id}: speaker {prompt.speaker!r}, the model's "
                f"voices are {', '.join(voices)}"
            )
    return prompts if voices or described else [replace(prompt, speaker=None) for prompt in prompts]


class EvalSamples:
    """Synthesizes and scores the prompts on one rank; audio goes to `<output>/samples`.

    `dtype` is that of the model while it speaks. Nothing of an evaluation stays until the next one:
    engine and rounded weights would hold memory that training steps are sized for (3 GB for
    Qwen3-0.6B and eight prompts of 15 s), and what they cost anew, one copy of the weights and a
    dozen steps to capture the engine's graphs, is little beside the thousand steps of a sample.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        info: CheckpointInfo,
        tokenizer: PreTrainedTokenizerBase,
        codec: Codec,
        asr: Transcriber | None,
        max_seconds: float,
        normalize: Callable[[str], str] = str,
        output: str = "",
        dtype: Precision = "auto",
    ) -> None:
        self._output = output
        self.sample_rate = codec.sample_rate
        self._prompts = prompts
        self._info, self._tokenizer, self._codec = info, tokenizer, codec
        self._asr = asr
        self._normalize = normalize
        self._max_seconds = max_seconds
        self._dtype = dtype

    def synthesize(self, model: SpeechLM) -> list[EvalSample]:
        """Every prompt, in order; `model` must be in evaluation mode."""
        try:
            return self._speak(in_dtype(model, dtype_of(self._dtype, model.head.device)))
        finally:
            gc.collect()  # an engine's parts know each other: else its memory stays for a while

    def _speak(self, model: SpeechLM) -> list[EvalSample]:
        voice = Voice(self._info, model, self._tokenizer, self._codec)
        texts = [
            (
                prompt.text,
                SynthesisParams(
                    prompt.speaker,
                    voice.sampling(index),
                    self._max_seconds,
                    instruction=prompt.instruction,
                ),
            )
            for index, prompt in enumerate(self._prompts)
        ]
        engine = Engine(
            model,
            self._codec,
            slots=min(BATCH, len(texts)),
            max_seq_len=voice.max_seq_len(self._max_seconds),
        )
        try:
            results = synthesize_all(engine, voice, texts)
        finally:
            engine.close()
        samples = []
        for index, (prompt, result) in enumerate(zip(self._prompts, results, strict=True)):
            if isinstance(result, RequestError):
                raise ValueError(f"--eval-prompts, prompt {index + 1}: {result}") from result
            samples.append(
                EvalSample(
                    sample_name(index, prompt),
                    replace(prompt, text=result.text or prompt.text),
                    result.samples,
                    result.finish_reason == "stop",
                )
            )
        return samples

    def score(self, samples: Sequence[EvalSample]) -> dict[str, Any]:
        """The share that ended with EOS, and the WER if there is an ASR model."""
        ended = sum(sample.ended_with_eos for sample in samples)
        metrics: dict[str, Any] = {"eval_ended_with_eos": round(ended / len(samples), 4)}
        if self._asr is not None:
            found = self._asr.transcribe([s.waveform for s in samples], self.sample_rate)
            texts = [self._normalize(sample.prompt.text) for sample in samples]
            transcripts = [self._normalize(text) for text in found]
            metrics["eval_wer"] = round(error_rate("word", texts, transcripts).rate, 4)
        return metrics

    def write(self, samples: Sequence[EvalSample], step: int, trackers: Trackers) -> None:
        """Write samples as WAV files, and send them to the trackers with a spectrogram."""
        folder = uris.join(self._output, SAMPLES_FOLDER, f"step-{step:06d}")
        for item in samples:
            wav = encode_audio(item.waveform, self.sample_rate, "WAV")
            files.write_bytes(uris.join(folder, f"{item.name}.wav"), wav)
            trackers.audio(step, item.name, item.waveform, self.sample_rate)
            if trackers and len(item.waveform):
                from sheen.report.page import Clip, clip_row, save_png  # here: matplotlib

                image = io.BytesIO()
                clip = Clip(item.prompt.text, item.waveform, self.sample_rate)
                save_png(clip_row([clip]), image)
                trackers.image(step, item.name, image.getvalue())


def in_dtype(model: SpeechLM, dtype: torch.dtype) -> SpeechLM:
    """The model with its weights in a number format, as a checkpoint is loaded in it: the model
    itself, if they are, else a copy of all that is rounded. Buffers stay as they are."""
    if model.head.dtype == dtype:
        return model
    rounded: dict[int, Any] = {
        id(part): nn.Parameter(part.detach().to(dtype), requires_grad=False)
        for part in model.parameters()
    }
    return copy.deepcopy(model, rounded)


def sample_name(index: int, prompt: Prompt) -> str:
    """A file's name; a speaker may be called by a path, or described in many words."""
    speaker = (prompt.speaker or "").replace("/", "-")[:LONGEST_SPEAKER]
    return f"prompt-{index + 1:02d}" + (f"-{speaker}" if speaker else "")


class Evaluation:
    """Evaluation on one rank. Every rank calls a method at the same step and gets the same metrics.

    capacity: tokens of a packed row. samples: only on the rank that synthesizes.
    """

    def __init__(
        self,
        learner: Learner,
        group: Collectives,
        data: TrainingSet,
        samples: EvalSamples | None,
        *,
        capacity: int,
        pad_id: int,
    ) -> None:
        self._learner, self._group, self._data = learner, group, data
        self._samples = samples
        self._capacity, self._pad_id = capacity, pad_id

    def loss(self) -> dict[str, Any]:
        """See `held_out_metrics`."""
        return held_out_metrics(
            self._learner, self._group, self._data, capacity=self._capacity, pad_id=self._pad_id
        )

    def speech(self, step: int, trackers: Trackers) -> dict[str, Any]:
        """One rank synthesizes the prompts and writes the audio; all get the metrics."""
        metrics: dict[str, Any] = {}
        if self._samples is not None:
            model = self._learner.model
            model.eval()
            samples = self._samples.synthesize(model)
            model.train()
            metrics = self._samples.score(samples)
            self._samples.write(samples, step, trackers)
        return self._group.gather(metrics)[0]
