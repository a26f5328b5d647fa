"""Prompt forms of the Orpheus family: the place of a text among control tokens.

Owns the forms of checkpoints that follow canopyai/Orpheus-TTS, by name: the order of a row, its
control tokens, the speaker's place, and properties that such a checkpoint does not record (voices,
sampling, durations), with the source of each form. Control tokens are inserted as ids: a text is
encoded by a copy of the tokenizer without them (`plain_encoder`). Knows nothing about codes or
models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from sheen.text.prompt import PromptTemplate, normalize, with_instruction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FormName = Literal["orpheus", "maya1", "veena", "svara", "vyvo-qwen3"]
"""Forms that are served and trained."""

CONTROLS = MappingProxyType({"SOS": 1, "EOS": 2, "SOH": 3, "EOH": 4, "SOA": 5, "EOA": 6, "PAD": 7})
"""Start and end of speech, of the human's turn and of the AI's: numbers of custom tokens."""
LLAMA = MappingProxyType({"BOS": "<|begin_of_text|>", "EOT": "<|eot_id|>", "AUDIO": "<|audio|>"})
QWEN = MappingProxyType({"EOT": "<|im_end|>"})
LFM = MappingProxyType({"BOS": "<|startoftext|>", "EOT": "<|im_end|>"})
TEXT = "TEXT"

_CONTROL = re.compile(r"<custom_token_\d+>|<\|.*\|>|<spk_.*>")
"""Control tokens, which no text may contain, even if they were added as ordinary tokens after the
codes, as tags are."""


@dataclass(frozen=True)
class PromptForm:
    """`row`: the parts of a prompt in order, by their names in CONTROLS and `tokens`; the last is
    SOS. `tail`: the parts after the codes and EOS in a training row."""

    row: tuple[str, ...]
    tail: tuple[str, ...]
    tokens: Mapping[str, str]
    """The base's own tokens in the row."""
    text: str = "{speaker}: {text}"
    """Format of the text; without a speaker, the text alone."""
    description: str | None = None
    """For forms whose speaker is a description in words, of which an instruction is a part: the
    default description."""
    voices: tuple[str, ...] = ()
    """Voices of the published checkpoint."""
    tags: tuple[str, ...] = ()
    temperature: float = 0.6
    top_p: float = 0.9
    repetition_penalty: float = 1.1
    chunk_chars: int = 280
    """Longest text of a chunk; 280 in Baseten's server for Orpheus and in Svara's."""
    frames_per_char: float = 0.8
    """English at 14 to 15 characters per second."""
    min_frames: int = 1
    """Shortest speech."""

    @property
    def needs(self) -> list[str]:
        """The base's own tokens that the row needs."""
        return [self.tokens[part] for part in dict.fromkeys(self.row) if part in self.tokens]

    def words(self, text: str, speaker: str | None, instruction: str | None = None) -> str:
        """The text part of a row. A speaker "" is a reference's, whom no default description may
        contradict. ValueError for an empty text."""
        if self.description is None:
            spoken, name = with_instruction(text, instruction), normalize(speaker or "")
        else:
            spoken = with_instruction(text, None)
            # A quotation mark would end the description.
            name = normalize(f"{speaker or ''} {instruction or ''}").replace('"', "'")
            name = name or (self.description if speaker is None else "")
        return self.text.format(speaker=name, text=spoken) if name else spoken

    def template(
        self, tokenizer: PreTrainedTokenizerBase, first_id: int, tags: Sequence[str] = ()
    ) -> PromptTemplate:
        """The template for a tokenizer; `first_id` is the id of `<custom_token_0>`. ValueError for
        a tokenizer without the form's tokens."""
        known = tokenizer.get_vocab()
        ids: dict[str, int] = {name: first_id + number for name, number in CONTROLS.items()}
        for name, token in self.tokens.items():
            if token in known:
                ids[name] = int(known[token])
        if missing := [part for part in (*self.row, *self.tail) if part not in {*ids, TEXT}]:
            raise ValueError(f"the tokenizer has no {self.tokens[missing[0]]}")
        at = self.row.index(TEXT)
        after = self.row[at + 1 :]
        return PromptTemplate(
            before=tuple(ids[part] for part in self.row[:at]),
            encode=plain_encoder(tokenizer, first_id, tags, speakers=self.text.startswith("<spk_")),
            words=self.words,
            after=tuple(ids[part] for part in after),
            tail=tuple(ids[part] for part in self.tail),
            learned=len(after) - after.index("SOA"),
        )


_ORPHEUS_ROW = ("SOH", "BOS", TEXT, "EOT", "EOH", "SOA", "SOS")
_VYVO_ROW = ("SOH", TEXT, "EOT", "EOH", "SOA", "SOS")
_SVARA_LANGUAGES = (
    "Hindi", "Bengali", "Marathi", "Telugu", "Kannada", "Bhojpuri", "Magahi", "Chhattisgarhi",
    "Maithili", "Assamese", "Bodo", "Dogri", "Gujarati", "Malayalam", "Punjabi", "Tamil", "English",
    "Nepali", "Sanskrit",
)  # fmt: skip

FORMS: Mapping[FormName, PromptForm] = MappingProxyType(
    {
        # canopyai/Orpheus-TTS: rows of the fine-tuning notebook, prompts of engine_class.py, voices
        # of -3b-0.1-ft; sampling of Orpheus-FastAPI, whose penalty "is the only value that produces
        # stable, high-quality output".
        "orpheus": PromptForm(
            _ORPHEUS_ROW,
            ("EOA",),
            LLAMA,
            voices=("tara", "leah", "jess", "leo", "dan", "mia", "zac", "zoe"),
            tags=(
                "<laugh>",
                "<chuckle>",
                "<sigh>",
                "<cough>",
                "<sniffle>",
                "<groan>",
                "<yawn>",
                "<gasp>",
            ),
        ),
        # maya-research/maya1: its Space. The tokenizer adds a second begin token to its string.
        "maya1": PromptForm(
            ("BOS", *_ORPHEUS_ROW),
            ("EOA",),
            LLAMA,
            text='<description="{speaker}"> {text}',
            description="Realistic male voice in the 30s age with american accent. Normal pitch, "
            "warm timbre, conversational pacing.",
            tags=(
                "<laugh>",
                "<laugh_harder>",
                "<giggle>",
                "<chuckle>",
                "<cry>",
                "<sigh>",
                "<gasp>",
                "<whisper>",
                "<angry>",
                "<scream>",
                "<snort>",
            ),
            temperature=0.4,
            min_frames=4,  # its `min_new_tokens` 28
        ),
        # maya-research/Veena: its card, which gives a text of n characters 1.3 n frames and three,
        # and at most 700 tokens, 74 characters.
        "veena": PromptForm(
            ("SOH", TEXT, "EOH", "SOA", "SOS"),
            ("EOA",),
            LLAMA,
            text="<spk_{speaker}> {text}",
            voices=("kavya", "agastya", "maitri", "vinaya"),
            temperature=0.4,
            repetition_penalty=1.05,
            chunk_chars=74,
            frames_per_char=1.3,
        ),
        # kenpath/svara-tts-v1: tts_engine/constants.py and utils.py.
        "svara": PromptForm(
            ("BOS", "SOH", "AUDIO", TEXT, "EOH", "EOT", "SOA", "SOS"),
            ("EOA", "EOT"),
            LLAMA,
            voices=tuple(
                f"{language} ({kind})"
                for language in _SVARA_LANGUAGES
                for kind in ("Male", "Female")
            ),
            temperature=0.75,
        ),
        # Vyvo-Labs/VyvoTTS: configs/inference/qwen3.yaml.
        "vyvo-qwen3": PromptForm(_VYVO_ROW, ("EOA",), QWEN, top_p=0.95),
    }
)
VYVO_LFM2 = PromptForm(("SOH", "BOS", *_VYVO_ROW[1:]), ("EOA",), LFM, top_p=0.95)
"""Known and tested, but not served: `sheen.lm.recognition` refuses its checkpoints by name."""
BASE_FRAMES = 3.0
"""Frames of audio in addition to those of a text's characters, from Veena's card."""


def plain_encoder(
    tokenizer: PreTrainedTokenizerBase,
    first_id: int,
    tags: Sequence[str] = (),
    *,
    speakers: bool = False,
) -> Callable[[str], list[int]]:
    """An encoder of texts that never produces control tokens, nor other tokens added to the base.

    `split_special_tokens` does not suffice: the custom tokens, from `first_id` on, are not special.
    `tags` that are tokens are kept, and so are ordinary tokens that were added after the custom
    ones, which are taken for tags of the checkpoint. `speakers`: texts begin with
    `<spk_NAME> `, which is one token if the tokenizer has it. ValueError for a tokenizer without
    a backend of the `tokenizers` library.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"the tokenizer ({type(tokenizer).__name__}) has no tokenizer.json, which is needed to "
            "keep control tokens out of texts"
        )
    data: dict[str, Any] = json.loads(backend.to_str())
    added = {token["content"]: token for token in data["added_tokens"]}
    kept, begins = {}, {}
    for name, token in added.items():
        if speakers and name.startswith("<spk_"):
            begins[name] = int(token["id"])
        elif token["special"] or _CONTROL.fullmatch(name):
            continue
        elif token["id"] > first_id or name in tags:
            kept[name] = int(token["id"])
    data["added_tokens"] = []
    data["post_processor"] = data["truncation"] = data["padding"] = None
    vocabulary = data["model"].get("vocab")
    if isinstance(vocabulary, dict):
        data["model"]["vocab"] = {k: v for k, v in vocabulary.items() if k not in added}
    plain = Tokenizer.from_str(json.dumps(data))
    forbidden = {int(token["id"]) for token in added.values()}
    tag = re.compile("|".join(map(re.escape, sorted(kept, key=len, reverse=True))) or "(?!)")

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        name, gap, rest = text.partition("> ")
        if gap and f"{name}>" in begins:
            ids, text = [begins[f"{name}>"]], f" {rest}"
        last = 0
        for match in tag.finditer(text):
            ids += [*letters(text[last : match.start()]), kept[match[0]]]
            last = match.end()
        return ids + letters(text[last:])

    def letters(text: str) -> list[int]:
        ids: list[int] = plain.encode(text).ids
        if wrong := [i for i in ids if i >= first_id or i in forbidden]:
            raise ValueError(
                f"the tokenizer encodes the text {text[:100]!r} with the control token {wrong[0]}"
            )
        return ids

    return encode
