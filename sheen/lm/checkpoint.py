"""The checkpoint folder: a model that transformers opens by itself, plus one small JSON file.

Owns `sheen.json`: the token layout, the codec, the sample rate, the prompt template, the text
normalization, the voices and their durations. Training writes it, serving reads it, and nothing
about tokens is configured twice. Refuses another format version, and unknown names and keys.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, model_validator

from sheen.codec.info import CodecInfo
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
"""The default checkpoint, in a checkout."""
VOICE_PACKAGE = "sheen-voice-english"
"""The package with the same folder; its module has underscores. `make wheel` builds it."""
HOW_TO_GET_ONE = (
    "`sheen train --output DIR` writes one to DIR/checkpoint; the English voice is "
    f"{ENGLISH_VOICE} of a checkout, where `make wheel` builds a package of it for elsewhere: "
    f"`pip install dist/{VOICE_PACKAGE.replace('-', '_')}-*.whl`"
)


class LayoutInfo(BaseModel, extra="forbid"):
    """Token ids by slot, a slot being a position in the frame of codes (24 kHz SNAC: 7)."""

    family: Family = "sheen"
    """Arrangement of the ids, see `sheen.codec.layout`. `sheen`: slots of a level share their ids;
    `orpheus`: each slot has its own."""
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
        """Whether a speaker is a description in words, so that there is no list of speakers."""
        return self.name != "speaker-text" and FORMS[self.name].description is not None

    @property
    def min_frames(self) -> int:
        """Shortest speech, frames of the codec."""
        return 1 if self.name == "speaker-text" else FORMS[self.name].min_frames

    def template(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        layout: TokenLayout,
        tags: Sequence[str] = (),
    ) -> PromptTemplate:
        """The template for a checkpoint's tokenizer. ValueError if it lacks the form's tokens."""
        if self.name != "speaker-text":
            return FORMS[self.name].template(tokenizer, layout.first_id, tags)
        template = speaker_text(tokenizer, layout.start_id)
        if layout.family == "orpheus":
            return replace(template, encode=plain_encoder(tokenizer, layout.first_id, tags))
        return template


class DurationModel(BaseModel, extra="forbid"):
    """Expected duration of a text, from the training data: a straight line through frames of the
    codec over characters of normalized text."""

    base_frames: float
    frames_per_char: float


def fit_durations(characters: ArrayLike, frames: ArrayLike) -> DurationModel:
    """The least-squares line through frames `[n]` over characters `[n]`, n at least 1; a line
    through the origin if its slope or its intercept would be negative."""
    x, y = np.asarray(characters, np.float64), np.asarray(frames, np.float64)
    varied = x.var() > 0
    slope = float(((x - x.mean()) * (y - y.mean())).mean() / x.var()) if varied else 0.0
    first = float(y.mean() - slope * x.mean())
    if slope <= 0 or first < 0:
        slope, first = float(y.sum() / x.sum()), 0.0
    return DurationModel(base_frames=round(first, 4), frames_per_char=round(slope, 5))


class SamplingDefaults(BaseModel, extra="forbid"):
    """Sampling settings that the model's makers recommend."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    repetition_window: int | Literal["all"] | None = None
    """Generated tokens."""


class ReferenceInfo(BaseModel, extra="forbid"):
    """Placement of a reference recording in the prompt."""

    form: ReferenceForm


class CheckpointInfo(BaseModel, extra="forbid"):
    """The content of `sheen.json`. New keys will be optional; any other change needs a new format
    version, to which `sheen.convert` converts."""

    format_version: Literal[2] = 2
    layout: LayoutInfo
    softmax: Softmax = "masked"
    """Softmax in training, see `Softmax`."""
    codec: CodecInfo
    sample_rate: int
    """Hz."""
    prompt: PromptInfo = PromptInfo()
    normalizer: NormalizerSteps = (NfcSpaceStep(),)
    """Normalization steps of a text before the prompt, in order."""
    voices: list[str] = []
    """Speakers in the training data, in alphabetical order, or those of an imported checkpoint;
    empty for a single unnamed voice. The first is the default."""
    duration_model: dict[str, DurationModel] = {}
    """Duration models by voice; "" is the unnamed voice."""
    max_chunk_chars: int | None = None
    """Length that 99% of the normalized training texts do not exceed, characters; None if
    unknown."""
    max_seq_len: int
    """Longest sequence, prompt and audio, tokens."""
    tags: list[str] = []
    """Tags that the model was trained to perform, such as `<laugh>`."""
    sampling: SamplingDefaults | None = None
    reference: ReferenceInfo | None = None
    """None for a model that was trained without references."""
    instructions: bool | None = None
    """Whether the model was trained with instructions, see `with_instruction`; None is no."""
    imported: bool | None = None
    """True for a checkpoint that others trained: what they did not record is an assumption."""

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
        """The values in `sampling` that are set."""
        return {} if self.sampling is None else self.sampling.model_dump(exclude_none=True)

    def duration_of(self, voice: str | None) -> DurationModel | None:
        """The duration model of a voice; None if unknown."""
        known = self.duration_model.get(voice or "")
        return self.duration_model.get("") if known is None and self.prompt.describes else known

    @property
    def naming_voices(self) -> str:
        """For the end of an error about an unknown voice."""
        return "; others are named with `sheen inspect --voices`" if self.imported else ""

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
                f"prompt.name is {self.prompt.name!r}, whose control tokens do not exist in the "
                "layout family 'sheen'"
            )
        return self


def _ids(layout: LayoutInfo) -> dict[str, Any]:
    return layout.model_dump(exclude={"family"})


def is_checkpoint(folder: Path) -> bool:
    return (folder / INFO_FILE).is_file()


def write_info(folder: Path, info: CheckpointInfo) -> None:
    (folder / INFO_FILE).write_bytes(folders.dump_record(info))


def read_info(folder: Path | str) -> CheckpointInfo:
    """Read `sheen.json` in a folder, path or URI; ValueError says what is missing or wrong."""
    path = uris.join(str(folder), INFO_FILE)
    if not files.exists(path):
        raise ValueError(f"{path} is missing: {folder} is not a Sheen checkpoint. {HOW_TO_GET_ONE}")
    return folders.read_record(path, CheckpointInfo)
