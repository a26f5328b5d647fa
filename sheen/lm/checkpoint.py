"""The checkpoint folder: a model that bare transformers opens, plus one small JSON.

Owns `sheen.json`: the token layout, the codec, the sample rate, the versions of prompt template
and text normaliser, how written text becomes spoken, the voices and their pace. Training writes it,
serving reads it, and nothing about tokens is configured twice. Refuses another format, template or
normaliser version by name.
"""

import json
from pathlib import Path

from pydantic import BaseModel, ValidationError

from sheen.codec.info import CodecInfo, describe_codec
from sheen.codec.layout import Softmax, TokenLayout
from sheen.storage import files, uris
from sheen.text import prompt
from sheen.text.normalization import NormalisationInfo

FORMAT_VERSION = 1
INFO_FILE = "sheen.json"


class LayoutInfo(BaseModel, extra="forbid"):
    first_id: int
    codebook_size: int
    strides: tuple[int, ...]


class Pace(BaseModel, extra="forbid"):
    """How long texts take in the training data: a straight line through frames over characters of
    normalised text. Frames are the codec's coarse ones."""

    frames: float
    frames_per_character: float


class CheckpointInfo(BaseModel, extra="forbid"):
    """What `sheen.json` says."""

    format_version: int = FORMAT_VERSION
    layout: LayoutInfo
    codec: CodecInfo
    sample_rate: int
    """Hz."""
    template: str = prompt.TEMPLATE_VERSION
    normaliser: str = prompt.NORMALISER_VERSION
    normalisation: NormalisationInfo | None = None
    """How the training texts got their spoken form; None for texts as they were."""
    softmax: Softmax = "masked"
    """What the model was trained with, see `Softmax`."""
    voices: list[str] = []
    """Speakers the model was trained on, in alphabetical order; empty for a single voice."""
    pace: dict[str, Pace] = {}
    """By voice; "" is the one without a name."""
    text_characters: int | None = None
    """Longest text that the model was taught, in its spoken form: of 100 training texts, 99 are no
    longer. None where nobody counted."""
    max_positions: int
    """Tokens of the longest sequence, prompt and audio, that the model may be given."""

    @property
    def token_layout(self) -> TokenLayout:
        return TokenLayout(self.layout.first_id, self.layout.codebook_size, self.layout.strides)


def is_checkpoint(folder: Path) -> bool:
    return (folder / INFO_FILE).is_file()


def write_info(folder: Path, info: CheckpointInfo) -> None:
    (folder / INFO_FILE).write_text(info.model_dump_json(indent=2) + "\n", "utf-8")


def read_info(folder: Path | str) -> CheckpointInfo:
    """Read `sheen.json` of a path or URI; ValueError says what is missing or wrong."""
    path = uris.join(str(folder), INFO_FILE)
    if not files.exists(path):
        raise ValueError(
            f"{path} is missing: {folder} is not a Sheen checkpoint. "
            "Make one with jobs/train.py; examples/digits/voice of a checkout is a small one."
        )
    try:
        data = dict(json.loads(files.read_bytes(path)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a JSON object ({error})") from error
    known = {
        "format_version": FORMAT_VERSION,
        "template": prompt.TEMPLATE_VERSION,
        "normaliser": prompt.NORMALISER_VERSION,
    }
    for key, expected in known.items():
        if data.get(key) != expected:
            raise ValueError(
                f"{path}: {key} is {data.get(key)!r}, this Sheen knows {expected!r}. "
                "Use the version of Sheen that wrote the checkpoint, or train again."
            )
    try:
        return CheckpointInfo.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{path}: {error}") from error


def check_codec(info: CheckpointInfo, source: str) -> None:
    """Refuse a codec other than the one whose codes the model was trained on."""
    found = describe_codec(source)
    if found.sha256 != info.codec.sha256:
        raise ValueError(
            f"codec {source!r} has weights {found.sha256[:12]}, the checkpoint was trained on "
            f"codes of {info.codec.source!r} with weights {info.codec.sha256[:12]}: "
            "their codes do not mean the same sounds"
        )
