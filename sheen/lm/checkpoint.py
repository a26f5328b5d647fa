"""The checkpoint folder: a model that bare transformers opens, plus one small JSON.

Owns `sheen.json`: the token layout, the codec, the sample rate, the prompt's template, the steps
that normalize a text, the voices and how long they speak. Training writes it, serving reads it, and
nothing about tokens is configured twice. Refuses another format version, and every name or key that
this version does not know.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, model_validator

from sheen.codec.info import CodecInfo, describe_codec
from sheen.codec.layout import CONTROLS, Family, Softmax, TokenLayout
from sheen.storage import files, folders, uris
from sheen.text.forms import FORMS, FormName, plain_encoder
from sheen.text.normalization import NemoStep
from sheen.text.prompt import PromptTemplate, ReferenceForm, speaker_text
from sheen.text.steps import NfcSpaceStep, NormalizerSteps, text_normalization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 2
INFO_FILE = "sheen.json"
ENGLISH_VOICE = "examples/english/voice"
"""In a checkout: what speaks where no model is named."""
VOICE_PACKAGE = "sheen-voice-english"
"""The same folder on a package index; its module has underscores. `make wheel` builds it."""
HOW_TO_GET_ONE = (
    "`sheen train --output DIR` writes one to DIR/checkpoint; the English voice is "
    f"{ENGLISH_VOICE} of a checkout, or `pip install {VOICE_PACKAGE}`"
)


class LayoutInfo(BaseModel, extra="forbid"):
    """Token ids by slot, a slot being a position in the frame of codes (24 kHz SNAC: 7)."""

    family: Family = "sheen"
    """How the ids are arranged, see `sheen.codec.layout`. `sheen`: slots of one level share their
    ids; `orpheus`: each has its own."""
    start_id: int
    end_id: int
    slot_bases: tuple[int, ...]
    """The id of code 0 at each slot."""

    @classmethod
    def of(cls, layout: TokenLayout) -> Self:
        return cls(
            family=layout.family,
            start_id=layout.start_id,
            end_id=layout.end_id,
            slot_bases=tuple(layout.slot_bases.tolist()),
        )


class PromptInfo(BaseModel, extra="forbid", frozen=True):
    """The template. `speaker-text`: `{speaker}: {text}` or `{text}`, directly followed by
    `<audio_start>`, see `sheen.text.prompt`; others are the forms of `sheen.text.forms`."""

    name: Literal["speaker-text", FormName] = "speaker-text"
    version: Literal["1"] = "1"

    @property
    def describes(self) -> bool:
        """Whether a speaker is a description in words, of which there is no list."""
        return self.name != "speaker-text" and FORMS[self.name].description is not None

    def template(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        layout: TokenLayout,
        tags: Sequence[str] = (),
    ) -> PromptTemplate:
        """With the tokenizer of a checkpoint. ValueError for one that lacks the form's tokens."""
        if self.name != "speaker-text":
            return FORMS[self.name].template(tokenizer, layout.first_id, tags)
        template = speaker_text(tokenizer, layout.start_id)
        if layout.family == "orpheus":
            return replace(template, encode=plain_encoder(tokenizer, layout.first_id, tags))
        return template


class DurationModel(BaseModel, extra="forbid"):
    """How long texts take in the training data: a straight line through frames over characters of
    normalized text. Frames are the codec's coarse ones."""

    base_frames: float
    frames_per_char: float


class SamplingDefaults(BaseModel, extra="forbid"):
    """Settings that the model's makers speak it with."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    repetition_window: int | Literal["all"] | None = None
    """Generated tokens."""


class ReferenceInfo(BaseModel, extra="forbid"):
    """How a recording of the voice to speak in is placed before the text."""

    form: ReferenceForm


class CheckpointInfo(BaseModel, extra="forbid"):
    """What `sheen.json` says. Further keys will be optional; everything else that changes comes
    with another format version, which `sheen.convert` leads to."""

    format_version: Literal[2] = 2
    layout: LayoutInfo
    softmax: Softmax = "masked"
    """What the model was trained with, see `Softmax`."""
    codec: CodecInfo
    sample_rate: int
    """Hz."""
    prompt: PromptInfo = PromptInfo()
    normalizer: NormalizerSteps = (NfcSpaceStep(),)
    """What a text goes through before it is put into the prompt, in order."""
    voices: list[str] = []
    """Speakers the model was trained on, in alphabetical order; empty for a single voice."""
    duration_model: dict[str, DurationModel] = {}
    """By voice; "" is the one without a name."""
    max_chunk_chars: int | None = None
    """Longest text that the model was taught, normalized: of 100 training texts, 99 are no longer.
    None where nobody counted."""
    max_seq_len: int
    """Tokens of the longest sequence, prompt and audio, that the model may be given."""
    tags: list[str] = []
    """Words such as `<laugh>` that the model was taught to act, as they stand in a text."""
    sampling: SamplingDefaults | None = None
    reference: ReferenceInfo | None = None
    """None for a model that was taught no references."""
    instructions: bool | None = None
    """Whether the model was trained with instructions, see `with_instruction`; None is no."""

    @property
    def token_layout(self) -> TokenLayout:
        layout, codec = self.layout, self.codec
        first = layout.start_id
        if layout.family == "orpheus":
            first = layout.slot_bases[0] - CONTROLS
        return TokenLayout(first, codec.codebook_size, codec.strides, layout.family)

    @property
    def follows_instructions(self) -> bool:
        """Whether a prompt may have an instruction, which a description is too."""
        return bool(self.instructions) or self.prompt.describes

    @property
    def sampling_settings(self) -> dict[str, Any]:
        """Those of `sampling` that are said."""
        return {} if self.sampling is None else self.sampling.model_dump(exclude_none=True)

    def duration_of(self, voice: str | None) -> DurationModel | None:
        """How long a voice's texts take, as far as it is known."""
        known = self.duration_model.get(voice or "")
        return self.duration_model.get("") if known is None and self.prompt.describes else known

    @property
    def text_normalization(self) -> NemoStep | None:
        return text_normalization(self.normalizer)

    @model_validator(mode="after")
    def _ids_are_the_familys(self) -> Self:
        try:
            expected = LayoutInfo.of(self.token_layout)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"codec.config is not a SNAC codec's ({error!r})") from error
        if self.layout != expected:
            raise ValueError(
                f"layout: ids {_ids(self.layout)} are not those of the family "
                f"{self.layout.family!r} for this codec, {_ids(expected)}"
            )
        if self.layout.family == "sheen" and self.prompt.name != "speaker-text":
            raise ValueError(
                f"prompt.name is {self.prompt.name!r}, whose control tokens the layout's family "
                "'sheen' has not"
            )
        return self


def _ids(layout: LayoutInfo) -> dict[str, Any]:
    return layout.model_dump(exclude={"family"})


def is_checkpoint(folder: Path) -> bool:
    return (folder / INFO_FILE).is_file()


def write_info(folder: Path, info: CheckpointInfo) -> None:
    (folder / INFO_FILE).write_bytes(folders.dump_record(info))


def read_info(folder: Path | str) -> CheckpointInfo:
    """Read `sheen.json` of a path or URI; ValueError says what is missing or wrong."""
    path = uris.join(str(folder), INFO_FILE)
    if not files.exists(path):
        raise ValueError(f"{path} is missing: {folder} is not a Sheen checkpoint. {HOW_TO_GET_ONE}")
    return folders.read_record(path, CheckpointInfo)


def check_codec(info: CheckpointInfo, source: str) -> None:
    """Refuse a codec other than the one whose codes the model was trained on."""
    found = describe_codec(source)
    if found.sha256 != info.codec.sha256:
        raise ValueError(
            f"codec {source!r} has weights {found.sha256[:12]}, the checkpoint was trained on "
            f"codes of {info.codec.source!r} with weights {info.codec.sha256[:12]}: "
            "their codes do not mean the same sounds"
        )
