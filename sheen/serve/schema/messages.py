"""The messages of a client on the WebSocket: Sheen's own and vLLM-Omni's.

Owns their fields and limits. Settings of speech: `sheen.serve.schema.requests`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from sheen.serve.schema.requests import (
    MAX_INPUT_CHARACTERS,
    MAX_UTTERANCE_CHARACTERS,
    AudioFormat,
    SpeechSettings,
)


class Start(SpeechSettings):
    """First message on the WebSocket."""

    type: Literal["start"]


class Text(BaseModel):
    """Text to speak, in parts of up to MAX_INPUT_CHARACTERS."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_INPUT_CHARACTERS)]


class End(BaseModel):
    """No more text will come."""

    type: Literal["end"]


class Cancel(BaseModel):
    """Stop speaking the text that was sent so far."""

    type: Literal["cancel"]


class SessionConfig(SpeechSettings):
    """vLLM-Omni's `start`."""

    type: Literal["session.config"]
    response_format: AudioFormat = "wav"
    stream_audio: bool = False
    """Send audio as it is generated, in binary frames; otherwise each part is one frame, a whole
    file."""
    split_granularity: Literal["none", "sentence", "clause"] = "none"
    """The unit of a part: `none` is an utterance, `sentence` and `clause` are a sentence."""


class InputText(BaseModel):
    """vLLM-Omni's `text`."""

    type: Literal["input.text"]
    text: Annotated[str, Field(max_length=MAX_UTTERANCE_CHARACTERS)]


class InputDone(BaseModel):
    """vLLM-Omni's `end`."""

    type: Literal["input.done"]


class SessionClose(BaseModel):
    """Close the WebSocket after complete utterances have been spoken."""

    type: Literal["session.close"]


ClientMessage = Start | Text | End | Cancel | SessionConfig | InputText | InputDone | SessionClose
MESSAGE: TypeAdapter[ClientMessage] = TypeAdapter(
    Annotated[ClientMessage, Field(discriminator="type")]
)
"""Any message of a client on the WebSocket."""
