"""The prompt template, used in training and serving.

Owns the last step of normalization, the interface of a template (`PromptTemplate`), and Sheen's own
template: the places of speaker and instruction, and the token ids. A checkpoint records the
template (`PromptInfo`) and the step; a change of either needs a new version. User text is encoded
without special tokens: `<audio_start>` in a text or a speaker's name is encoded as letters. Other
templates are `sheen.text.forms`'.
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
recording's text and codes as a separate turn, then the text."""


def normalize(text: str) -> str:
    """Unicode NFC; runs of white space become one space; none at either end."""
    return _WHITE_SPACE.sub(" ", unicodedata.normalize("NFC", text)).strip()


def check_characters(text: str, name: str) -> None:
    """Raise ValueError for a text with half of a surrogate pair, which no tokenizer encodes. JSON
    can spell one, and Python makes them of a command's bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise ValueError(
            f"{name} holds half of a surrogate pair, {half}, which is no character; was it UTF-8?"
        ) from error


def with_instruction(text: str, instruction: str | None) -> str:
    """A text after a line with its instruction, if there is one. No text can contain the line break
    between them. ValueError for an empty text."""
    words = normalize(text)
    if not words:
        raise ValueError("the text is empty")
    how = normalize(instruction) if instruction else ""
    return f"{how}\n{words}" if how else words


def prompt_text(text: str, speaker: str | None, instruction: str | None = None) -> str:
    """The template's text part. ValueError for an empty text."""
    words = with_instruction(text, instruction)
    name = normalize(speaker) if speaker else ""
    return f"{name}: {words}" if name else words


def one_turn_text(reference: str, text: str) -> str:
    """The text of a prompt whose audio begins with a reference: its text, then the own one."""
    return f"{reference} {text}"


@dataclass(frozen=True)
class PromptTemplate:
    """A template for one tokenizer: `before`, then text, speaker and instruction encoded, then
    `after`."""

    before: tuple[int, ...]
    encode: Callable[[str], list[int]]
    """ValueError for a text that would be encoded with a control token."""
    words: Callable[[str, str | None, str | None], str]
    """Text, speaker and instruction as one string. ValueError for an empty text."""
    after: tuple[int, ...]
    """The last id is `<audio_start>`."""
    tail: tuple[int, ...] = ()
    """Ids after `<audio_end>` in a training row."""
    learned: int = 0
    """How many of the last ids of `after` are targets with a full softmax."""

    def ids(
        self, text: str, speaker: str | None = None, instruction: str | None = None
    ) -> list[int]:
        """Token ids of a prompt, ending in `<audio_start>`. ValueError for an empty text."""
        words = self.words(text, speaker, instruction)
        return [*self.before, *self.encode(words), *self.after]


def speaker_text(tokenizer: PreTrainedTokenizerBase, start_id: int) -> PromptTemplate:
    """Sheen's template: `{speaker}: {text}` or `{text}`, directly followed by `<audio_start>`; with
    an instruction `{instruction}\\n{text}` is its text.

    A base whose tokenizer puts a begin token before every text gets it here too.
    """

    def encode(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [int(i) for i in ids]

    before = tuple(_begin(tokenizer, tokenizer.bos_token_id))
    return PromptTemplate(before, encode, prompt_text, (start_id,))


@lru_cache(maxsize=4)
def _begin(tokenizer: PreTrainedTokenizerBase, begin_id: int | None) -> list[int]:
    """The begin token, if the tokenizer puts it before a text."""
    return (
        [begin_id] if begin_id is not None and tokenizer("")["input_ids"][:1] == [begin_id] else []
    )
