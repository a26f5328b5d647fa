"""The steps from a text as it is written to the text that a model is given: `normalizer`.

Owns the steps' names and order, as `dataset.json` and `sheen.json` record them, and `TextPipeline`,
the one way through them for encoding, training, evaluation and every server. Refuses steps in
another order. What a step does is its own module's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from sheen.text import normalization, phonemes
from sheen.text.kept import Piece, between, pieces, said
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
            f"phonemes ({sounds.language}) need texts that were normalized before, in the same "
            "language"
        )
    return steps


NormalizerSteps = Annotated[tuple[NormalizerStep, ...], AfterValidator(_in_order)]
"""What a dataset and a checkpoint record, in the order in which texts take the steps."""


def text_normalization(steps: Sequence[NormalizerStep]) -> NemoStep | None:
    """The step that writes numbers and abbreviations out; None for texts as they are."""
    return next((step for step in steps if isinstance(step, NemoStep)), None)


def phoneme_step(steps: Sequence[NormalizerStep]) -> PhonemeStep | None:
    """The step that turns words into phonemes; None for a model of letters."""
    return next((step for step in steps if isinstance(step, PhonemeStep)), None)


def check_steps(steps: Sequence[NormalizerStep]) -> None:
    """Raise ValueError, which names the package, unless every step can be taken here."""
    if (words := text_normalization(steps)) is not None:
        normalization.check(words)
    if (sounds := phoneme_step(steps)) is not None:
        phonemes.check(sounds)


def _sounds(piece: Piece, phonemizer: Phonemizer) -> str:
    if piece.given is not None:
        return piece.given[1]
    if piece.kept:
        return piece.text
    return between(piece, phonemizer) if has_word(piece.text) else pauses_of(piece.text)


@dataclass(frozen=True)
class TextPipeline:
    """Texts, by way of their words, in the form that a model is taught. Libraries load at first
    use, once for each process; ValueError for one that is missing, see `check_steps`.

    No step changes the `tags`, nor phonemes that were given (`sheen.text.kept`).
    """

    steps: tuple[NormalizerStep, ...]
    tags: tuple[str, ...] = ()

    @property
    def language(self) -> str | None:
        """What texts are normalized as, ISO 639-1; None for texts as they are."""
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
        """One part's words, see `normalization.parts`. Only where there is text normalization."""
        step = text_normalization(self.steps)
        assert step is not None
        return load_normalizer(step).part(part)

    def words(self, sentence: str) -> str:
        """A sentence's words as they are spoken, which is what a transcript is compared with; empty
        when there is nothing to say."""
        step = text_normalization(self.steps)
        if step is None:
            return normalize(sentence)
        spoken = load_normalizer(step).sentence
        found = self.pieces(sentence)
        if len(found) == 1 and not found[0].kept:
            return spoken(sentence)
        return normalize("".join(p.text if p.kept else between(p, spoken) for p in found))

    def pieces(self, sentence: str) -> list[Piece]:
        """A sentence's parts: those that stay as they are, and those between."""
        return pieces(sentence, self.tags)

    def taught(self, words: str) -> str:
        """A whole sentence's words in the form that the model is taught: their phonemes, else the
        words themselves. Empty where nothing has a sound."""
        step = phoneme_step(self.steps)
        if step is None or not words:
            return words
        phonemizer = load_phonemizer(step)
        found = self.pieces(words)
        if len(found) == 1 and not found[0].kept:
            return phonemizer(words)
        return normalize("".join(_sounds(piece, phonemizer) for piece in found))

    def said(self, words: str) -> str:
        """A sentence's words as somebody who listens writes them down."""
        return said(words, self.tags)

    def __call__(self, text: str) -> str:
        """A text of any length in the form that the model is taught, sentence by sentence; empty
        for a text without a word."""
        sentences = split_sentences(text, self.language)
        return join_parts(self.taught(self.words(sentence)) for sentence in sentences)
