"""The one prompt template, used by training and serving alike.

Owns the last step of normalisation, the place of the speaker, and how both become token ids. A
checkpoint records the template (`PromptInfo`) and the step; changing either behaviour means a new
version of it. User text is encoded with special tokens switched off: `<audio_start>` typed into a
text or a speaker's name stays the letters it is.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # transformers takes seconds to import, and encoding workers do without it
    from transformers import PreTrainedTokenizerBase

_WHITE_SPACE = re.compile(r"\s+")


def normalise(text: str) -> str:
    """Unicode NFC; every run of white space becomes one space; none at either end."""
    return _WHITE_SPACE.sub(" ", unicodedata.normalize("NFC", text)).strip()


def prompt_text(text: str, speaker: str | None) -> str:
    """The template's text part. ValueError when nothing is left to say."""
    words = normalise(text)
    if not words:
        raise ValueError("the text is empty")
    name = normalise(speaker) if speaker else ""
    return f"{name}: {words}" if name else words


def one_turn_text(reference: str, text: str) -> str:
    """The text of a prompt whose audio begins with a reference: that one's words, then its own."""
    return f"{reference} {text}"


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, start_id: int, text: str, speaker: str | None = None
) -> list[int]:
    """Token ids of a prompt, ending in `<audio_start>`.

    A base that was trained with a begin token in front of every text gets it here too.
    """
    ids = tokenizer(
        prompt_text(text, speaker), add_special_tokens=False, split_special_tokens=True
    )["input_ids"]
    return [*_begin(tokenizer, tokenizer.bos_token_id), *(int(i) for i in ids), start_id]


@lru_cache(maxsize=4)
def _begin(tokenizer: PreTrainedTokenizerBase, begin_id: int | None) -> list[int]:
    """The begin token, where the tokenizer puts it in front of a text."""
    return (
        [begin_id] if begin_id is not None and tokenizer("")["input_ids"][:1] == [begin_id] else []
    )
