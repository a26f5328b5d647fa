"""The steps from a written text to the model's input text, recorded as `normalizer`.

Owns the steps' names and order in `dataset.json` and `sheen.json`, and `TextPipeline`, which runs
them in encoding, training, evaluation and serving. Refuses steps in another order. Each step is
implemented in its own module.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from sheen.text import normalization, phonemes
from sheen.text.kept import Fragment, between, expected_transcript, fragments
from sheen.text.normalization import NemoStep, Part, join_parts, load_normalizer
from sheen.text.phonemes import PhonemeStep, Phonemizer, load_phonemizer, pauses_of
from sheen.text.prompt import normalize
from sheen.text.segmentation import has_word, split_sentences


class NfcSpaceStep(BaseModel, extra="forbid", frozen=True):
    """Unicode NFC; every run of white space becomes one space, none at either end: `normalize`."""

    name: Literal["nfc-space"] = "nfc-space"
    version: Literal["1"] = "1"


NormalizerStep = Annotated[NemoStep | PhonemeStep | NfcSpaceStep, Field(discriminator="name")]
ORDER = ("nemo_text_processing", "phonemes", "nfc-space")


def _in_order(steps: tuple[NormalizerStep, ...]) -> tuple[NormalizerStep, ...]:
    names = [step.name for step in steps]
    if names != [name for name in ORDER if name in names]:
        raise ValueError(
            f"the steps are {', '.join(names)}; expected each at most once, in the order "
            f"{', '.join(ORDER)}"
        )
    sounds, words = phoneme_step(steps), text_normalization(steps)
    if sounds is not None and (words is None or words.language != sounds.language):
        raise ValueError(
            f"the step phonemes ({sounds.language}) needs text normalization in the same language "
            "before it"
        )
    return steps


NormalizerSteps = Annotated[tuple[NormalizerStep, ...], AfterValidator(_in_order)]
"""The record in a dataset or checkpoint, in the order of processing."""


def text_normalization(steps: Sequence[NormalizerStep]) -> NemoStep | None:
    """The step that writes numbers and abbreviations out; None if there is none."""
    return next((step for step in steps if isinstance(step, NemoStep)), None)


def phoneme_step(steps: Sequence[NormalizerStep]) -> PhonemeStep | None:
    """The step that converts words to phonemes; None if there is none."""
    return next((step for step in steps if isinstance(step, PhonemeStep)), None)


def check_steps(steps: Sequence[NormalizerStep]) -> None:
    """Raise ValueError, which names the package, unless every step can run here."""
    if (words := text_normalization(steps)) is not None:
        normalization.check(words)
    if (sounds := phoneme_step(steps)) is not None:
        phonemes.check(sounds)


def _sounds(fragment: Fragment, phonemizer: Phonemizer) -> str:
    if fragment.given is not None:
        return fragment.given[1]
    if fragment.kept:
        return fragment.text
    return between(fragment, phonemizer) if has_word(fragment.text) else pauses_of(fragment.text)


@dataclass(frozen=True)
class TextPipeline:
    """Converts texts to spoken words and then to the model's input form. Libraries load at first
    use, once per process; ValueError for a missing one, see `check_steps`.

    No step changes `tags` or given phonemes (`sheen.text.kept`).
    """

    steps: tuple[NormalizerStep, ...]
    tags: tuple[str, ...] = ()

    @property
    def language(self) -> str | None:
        """Language of text normalization, ISO 639-1; None without normalization."""
        step = text_normalization(self.steps)
        return None if step is None else step.language

    @property
    def has_phonemes(self) -> bool:
        return phoneme_step(self.steps) is not None

    def load(self) -> None:
        """Load every step's library."""
        if (words := text_normalization(self.steps)) is not None:
            load_normalizer(words)
        if (sounds := phoneme_step(self.steps)) is not None:
            load_phonemizer(sounds)

    def part(self, part: Part) -> str:
        """The words of one part, see `normalization.parts`. Requires text normalization."""
        step = text_normalization(self.steps)
        assert step is not None
        return load_normalizer(step).part(part)

    def words(self, sentence: str) -> str:
        """The spoken words of a sentence, with which a transcript is compared; may be empty."""
        step = text_normalization(self.steps)
        if step is None:
            return normalize(sentence)
        spoken = load_normalizer(step).sentence
        found = self.fragments(sentence)
        if len(found) == 1 and not found[0].kept:
            return spoken(sentence)
        return normalize("".join(p.text if p.kept else between(p, spoken) for p in found))

    def fragments(self, sentence: str) -> list[Fragment]:
        """Split a sentence into kept parts and the parts between them."""
        return fragments(sentence, self.tags)

    def model_input(self, words: str) -> str:
        """The spoken words of a sentence in the model's input form: phonemes, or the words
        themselves. Empty for words without phonemes."""
        step = phoneme_step(self.steps)
        if step is None or not words:
            return words
        phonemizer = load_phonemizer(step)
        found = self.fragments(words)
        if len(found) == 1 and not found[0].kept:
            return phonemizer(words)
        return normalize("".join(_sounds(fragment, phonemizer) for fragment in found))

    def expected_transcript(self, words: str) -> str:
        """The words that a transcript of a sentence should have, see `sheen.text.kept`."""
        return expected_transcript(words, self.tags)

    def __call__(self, text: str) -> str:
        """A text of any length in the model's input form; empty for a text without a word."""
        sentences = split_sentences(text, self.language)
        return join_parts(self.model_input(self.words(sentence)) for sentence in sentences)
