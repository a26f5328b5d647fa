"""The ASR models of transformers, by its pipeline.

Owns which models those are, finding them, the language of a multilingual Whisper, and its
confidence. Where transformers and faster-whisper both could open a model, the choice is
`sheen.scoring.asr.transcribers`'s.
"""

from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sheen.scoring.asr.transcript import Transcript, Word
from sheen.scoring.asr.whisper import at_rate, check_language


class AsrPipeline:
    """An ASR model of transformers, by folder or hub id, in float32 with its own settings.

    `language` (such as "en"): a multilingual Whisper transcribes it, and otherwise detects it; of
    other models, which have no such setting, it is taken to be theirs. Raises ValueError if the
    model cannot be opened or does not know the language.
    """

    def __init__(
        self, model: str, *, device: str = "cpu", batch_size: int = 8, language: str | None = None
    ) -> None:
        self._pipeline = _open_pipeline(model, device)
        self._whisper = self._pipeline.type == "seq2seq_whisper"
        self._rate = int(self._pipeline.feature_extractor.sampling_rate)
        # Whisper always pads clips to its window of 30 s. Other models pad to the longest clip of a
        # batch, which may change the transcripts of shorter ones.
        self._batch_size = batch_size if self._whisper else 1
        self._tells_words = _tells_words(self._pipeline)
        self.name = f"{model} (transformers {version('transformers')}, float32)"
        self._language = language
        self._generate: dict[str, str] = {}
        self._codes: dict[str, int] = {}  # of the languages that it can detect, and their tokens
        if self._whisper:
            codes = _languages(self._pipeline.model.generation_config)
            if language is not None and codes:
                check_language(model, language, codes)
            if codes == ENGLISH:
                self._language = "en"
            elif codes:
                self._codes = codes
                if language is not None:
                    self._generate = {"language": language, "task": "transcribe"}
                    self.name += f", language {language}"
            self._pipeline.model.get_encoder().register_forward_hook(self._keep)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        """A hook on Whisper's encoder, whose output also tells of speech and language."""
        self._encoded = output[0]

    def transcribe(self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int) -> list[str]:
        clips = [at_rate(waveform, sample_rate, self._rate) for waveform in waveforms]
        window = self._pipeline.feature_extractor.n_samples if self._whisper else None
        long = [window is not None and len(clip) > window for clip in clips]
        texts = [""] * len(clips)
        for is_long in (False, True):
            # ASR models do not accept an empty clip: its transcript is "".
            mine = [i for i, clip in enumerate(clips) if len(clip) and long[i] == is_long]
            if not mine:
                continue
            outputs = self._pipeline(
                [{"raw": clips[i], "sampling_rate": self._rate} for i in mine],
                batch_size=1 if is_long else self._batch_size,
                generate_kwargs=self._generate,
                # Beyond its window, Whisper continues from its own last timestamp.
                **({"return_timestamps": True} if is_long else {}),
            )
            for i, output in zip(mine, outputs, strict=True):
                texts[i] = output["text"].strip()
        return texts

    def transcribe_words(
        self, waveforms: Sequence[NDArray[np.float32]], sample_rate: int
    ) -> list[Transcript]:
        """With word times for CTC models, and, from cross-attention, for a Whisper with alignment
        heads; without for other models, and if the times are invalid. With Whisper's confidence,
        and the language that it detects. Greedily, one clip at a time."""
        if not (self._tells_words or self._whisper):
            texts = self.transcribe(waveforms, sample_rate)
            return [Transcript(text, language=self._language) for text in texts]
        return [self._words(at_rate(each, sample_rate, self._rate)) for each in waveforms]

    def _words(self, clip: NDArray[np.float32]) -> Transcript:
        if not len(clip):
            return Transcript("", [] if self._tells_words else None)
        options: dict[str, Any] = {"return_timestamps": "word"} if self._tells_words else {}
        generate: dict[str, Any] = dict(self._generate)
        is_long = self._whisper and len(clip) > self._pipeline.feature_extractor.n_samples
        if self._whisper:
            options.setdefault("return_timestamps", is_long)
            generate |= {"num_beams": 1, "logits_processor": [confidence := _Confidence()]}
        output = self._pipeline(
            {"raw": clip, "sampling_rate": self._rate}, generate_kwargs=generate, **options
        )
        text = output["text"].strip()
        words = self._timed(output, len(clip) / self._rate) if self._tells_words else None
        certain = None if self._language is None else 1.0
        if not self._whisper:
            return Transcript(text, words, None, None, self._language, certain)
        no_speech, guess = self._begun(self._encoded)
        language, probability = guess or (None, None)
        if self._language is not None:
            language, probability = self._language, certain
        if is_long:  # what the encoder has kept is the last of several windows
            no_speech = None
            language, probability = self._language, certain
        return Transcript(text, words, confidence.mean, no_speech, language, probability)

    def _timed(self, output: Any, seconds: float) -> list[Word] | None:
        words = []
        for chunk in output["chunks"]:
            start, end = chunk["timestamp"]
            # transformers has no end for a last word that is cut off, and Whisper's window may be
            # longer than the clip.
            end = seconds if end is None else min(end, seconds)
            words.append(Word(chunk["text"].strip(), min(start, end), end))
        spelt = "".join(word.text for word in words) == "".join(output["text"].split())
        rising = all(a.start <= b.start for a, b in pairwise(words))
        return words if spelt and rising else None

    def _begun(self, encoded: torch.Tensor) -> tuple[float | None, tuple[str, float] | None]:
        """What Whisper's decoder expects first, of `encoded` `[1, t, d]`: the probability of no
        speech, and the most likely language with its probability."""
        from transformers.modeling_outputs import BaseModelOutput

        model = self._pipeline.model
        generation = model.generation_config
        first = torch.tensor([[generation.decoder_start_token_id]], device=encoded.device)
        with torch.no_grad():
            logits = model(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                decoder_input_ids=first,
                use_cache=False,
            ).logits[0, -1]
        logits = logits.float().cpu()
        mark = getattr(generation, "no_timestamps_token_id", None)
        # The token before it in every Whisper, whatever it is called, as in transformers.
        no_speech = None if mark is None else float(logits.softmax(-1)[mark - 1])
        if not self._codes:
            return no_speech, None
        probabilities = logits[list(self._codes.values())].softmax(-1)
        best = int(probabilities.argmax())
        return no_speech, (list(self._codes)[best], float(probabilities[best]))

    def guess_language(
        self, waveform: NDArray[np.float32], sample_rate: int
    ) -> tuple[str, float] | None:
        """As `sheen.scoring.asr.transcribers.Transcriber`, of a clip's first window, by a
        multilingual Whisper."""
        if not self._codes or not len(waveform):
            return None
        clip = at_rate(waveform, sample_rate, self._rate)
        model = self._pipeline.model
        features = self._pipeline.feature_extractor(
            clip, sampling_rate=self._rate, return_tensors="pt"
        ).input_features
        with torch.no_grad():
            model.get_encoder()(features.to(model.device))
        _, guess = self._begun(self._encoded)
        return guess


class _Confidence:
    """A logits processor that changes nothing: the mean log probability of the tokens of one
    sequence, each the likeliest."""

    def __init__(self) -> None:
        self._logprobs: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._logprobs.append(float(scores[0].float().log_softmax(-1).max()))
        return scores

    @property
    def mean(self) -> float | None:
        return float(np.mean(self._logprobs)) if self._logprobs else None


ENGLISH = {"en": -1}


def _languages(generation: Any) -> dict[str, int]:
    """The languages that a Whisper knows, by code, and their tokens, from its generation config;
    ENGLISH for one of English alone, {} where it does not say."""
    multilingual = getattr(generation, "is_multilingual", None)
    if multilingual is False:
        return ENGLISH
    tokens = getattr(generation, "lang_to_id", None) if multilingual else None
    return {name.strip("<|>"): token for name, token in (tokens or {}).items()}


def _tells_words(pipeline: Any) -> bool:
    """Whether a transformers pipeline has usable word times."""
    # From its module, because mypy does not know transformers' tokenizers. Slow to import.
    from transformers.models.wav2vec2.tokenization_wav2vec2 import Wav2Vec2CTCTokenizer

    if pipeline.type == "seq2seq_whisper":
        # A Whisper that was fine-tuned without timestamps often has neither.
        generation = pipeline.model.generation_config
        names = ("alignment_heads", "no_timestamps_token_id")
        return all(getattr(generation, name, None) for name in names)
    return pipeline.type == "ctc" and isinstance(pipeline.tokenizer, Wav2Vec2CTCTokenizer)


def check_pipeline(model: str, found: str, language: str | None) -> None:
    from transformers import AutoConfig, GenerationConfig  # takes seconds to import

    try:
        kind = AutoConfig.from_pretrained(found).model_type
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"ASR model {model!r}: {' '.join(str(error).split())}") from error
    if kind not in pipeline_kinds():
        raise ValueError(f"ASR model {model!r}: {kind!r} is a model of another kind than ASR")
    if language is None or kind != "whisper":
        return
    try:
        codes = _languages(GenerationConfig.from_pretrained(found))
    except OSError:  # it has none, and no setting of a language
        return
    if codes:
        check_language(model, language, codes)


def pipeline_kinds() -> set[str]:
    """The `model_type` of every model that transformers' ASR pipeline opens."""
    from transformers.models.auto import modeling_auto as auto

    return {
        *auto.MODEL_FOR_CTC_MAPPING_NAMES,
        *auto.MODEL_FOR_TDT_MAPPING_NAMES,
        *auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    }


def find_model(model: str) -> str:
    """A folder's path, or a hub id as it is."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"ASR model {model!r}: the folder has no model; expected model.bin, "
                "tokenizer.json and a vocabulary (CTranslate2), or config.json and weights "
                "(transformers)"
            )
        return str(folder.resolve())
    if model.startswith(("/", ".", "~")) or model.count("/") != 1:
        raise ValueError(
            f"ASR model {model!r}: no such folder; give a folder, a hub id such as "
            "openai/whisper-base, or the name of a faster-whisper model such as base"
        )
    return model


def _open_pipeline(model: str, device: str) -> Any:
    found = find_model(model)
    from transformers import pipeline  # takes seconds to import

    try:
        return pipeline(
            "automatic-speech-recognition",
            model=found,
            device=device,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"ASR model {model!r} on {device}: {error}") from error
