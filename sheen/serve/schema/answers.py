"""JSON responses: batches, voices and models.

Owns their keys, OpenAI's and vLLM-Omni's together.
"""

from typing import Literal

from pydantic import BaseModel


class InputTokens(BaseModel):
    """Tokens of the prompts by kind, as in vLLM-Omni."""

    text_tokens: int
    audio_tokens: int
    """Of the reference recording, once for each chunk of the text."""


class Usage(BaseModel):
    """Tokens of the prompts and of the audio."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: InputTokens


class BatchResult(BaseModel):
    """The result of one item, without the keys that it has no value for."""

    index: int
    """Index of the item, from 0."""
    status: Literal["success", "error"]
    audio_data: str | None = None
    """The whole file, base64."""
    media_type: str | None = None
    finish_reason: str | None = None
    word_timestamps: list[dict[str, str | int]] | None = None
    usage: Usage | None = None
    ignored: list[str] | None = None
    """Fields that the model cannot follow."""
    error: str | None = None


class BatchAnswer(BaseModel):
    id: str
    results: list[BatchResult]
    total: int
    succeeded: int
    failed: int


class NamedVoice(BaseModel):
    id: str
    name: str


class UploadedVoice(BaseModel):
    """An uploaded voice, with the keys of vLLM-Omni, and its id."""

    id: str
    name: str
    consent: str
    created_at: int
    mime_type: str
    file_size: int
    ref_text: str
    speaker_description: str | None


class Voices(BaseModel):
    voices: list[NamedVoice]
    """Every voice that a request may name, except by an alias: the model's, then uploaded ones."""
    uploaded_voices: list[UploadedVoice] = []


class CreatedVoice(BaseModel):
    """OpenAI's answer to an upload, and vLLM-Omni's."""

    id: str
    object: Literal["audio.voice"] = "audio.voice"
    name: str
    created_at: int
    success: Literal[True] = True
    voice: UploadedVoice


class DeletedVoice(BaseModel):
    """vLLM-Omni's answer to a deletion."""

    success: Literal[True] = True
    message: str


class NoSuchVoice(BaseModel):
    """vLLM-Omni's answer where there is nothing to delete."""

    success: Literal[False] = False
    error: str


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sheen"
    voices: list[NamedVoice]
    tags: list[str] = []
    """Tags such as `<laugh>` that the model performs, as they are written in a text."""
    instructions: bool = False
    """Whether it was trained to follow `instructions`."""


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class ModelId(BaseModel):
    id: str


class AudioModels(BaseModel):
    models: list[ModelId]
