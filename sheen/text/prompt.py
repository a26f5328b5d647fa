"""The prompt template, used by training and serving alike.

Owns the last step of normalization, what a template is (`PromptTemplate`), and Sheen's own: the
places of speaker and instruction, and how they and the text become token ids. A checkpoint records
the template (`PromptInfo`) and the step; changing either behaviour means a new version of it. User
text is encoded with special tokens switched off: `<audio_start>` typed into a text or a speaker's
name stays the letters it is. Other templates are `sheen.text.forms`'.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # transformers takes seconds to import, and encoding workers do without it
    from transformers import PreTrainedTokenizerBase

_WHITE_SPACE = re.compile(r"\s+")

ReferenceForm = Literal["one-turn", "two-turn"]
"""`one-turn`: both texts, then the recording's codes, which the model continues; `two-turn`: the
recording's text and codes as a row of their own, then the text."""


def normalize(text: str) -> str:
    """Unicode NFC; every run of white space becomes one space; none at either end."""
    return _WHITE_SPACE.sub(" ", unicodedata.normalize("NFC", text)).strip()


def with_instruction(text: str, instruction: str | None) -> str:
    """A text, after the line that says how it is to be said, where there is one. No text can hold
    the line break between them. ValueError when nothing is left to say."""
    words = normalize(text)
    if not words:
        raise ValueError("the text is empty")
    how = normalize(instruction) if instruction else ""
    return f"{how}\n{words}" if how else words


def prompt_text(text: str, speaker: str | None, instruction: str | None = None) -> str:
    """The template's text part. ValueError when nothing is left to say."""
    words = with_instruction(text, instruction)
    name = normalize(speaker) if speaker else ""
    return f"{name}: {words}" if name else words


def one_turn_text(reference: str, text: str) -> str:
    """The text of a prompt whose audio begins with a reference: that one's words, then its own."""
    return f"{reference} {text}"


@dataclass(frozen=True)
class PromptTemplate:
    """One tokenizer's: `before`, the words of text, speaker and instruction as `encode` has them,
    `after`."""

    before: tuple[int, ...]
    encode: Callable[[str], list[int]]
    """ValueError for a text that would become a control token."""
    words: Callable[[str, str | None, str | None], str]
    """Text, speaker and instruction as one string. ValueError when nothing is left to say."""
    after: tuple[int, ...]
    """Its last id is `<audio_start>`."""
    tail: tuple[int, ...] = ()
    """Ids of a training row after `<audio_end>`."""
    learned: int = 0
    """How many ids of `after`, from its end, a model without a mask learns to generate."""

    def ids(
        self, text: str, speaker: str | None = None, instruction: str | None = None
    ) -> list[int]:
        """Token ids of a prompt, ending in `<audio_start>`. ValueError for an empty text."""
        words = self.words(text, speaker, instruction)
        return [*self.before, *self.encode(words), *self.after]


def speaker_text(tokenizer: PreTrainedTokenizerBase, start_id: int) -> PromptTemplate:
    """Sheen's template: `{speaker}: {text}` or `{text}`, directly followed by `<audio_start>`; with
    an instruction `{instruction}\\n{text}` is its text.

    A base that was trained with a begin token in front of every text gets it here too.
    """

    def encode(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [int(i) for i in ids]

    before = tuple(_begin(tokenizer, tokenizer.bos_token_id))
    return PromptTemplate(before, encode, prompt_text, (start_id,))


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, start_id: int, text: str, speaker: str | None = None
) -> list[int]:
    """Token ids of a prompt by Sheen's template."""
    return speaker_text(tokenizer, start_id).ids(text, speaker)


@lru_cache(maxsize=4)
def _begin(tokenizer: PreTrainedTokenizerBase, begin_id: int | None) -> list[int]:
    """The begin token, where the tokenizer puts it in front of a text."""
    return (
        [begin_id] if begin_id is not None and tokenizer("")["input_ids"][:1] == [begin_id] else []
    )
