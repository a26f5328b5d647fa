"""Fields of a request for speech.

Owns the fields, their limits and their defaults, for both the POST and the WebSocket: values have
JSON's types, as in the schema, and null is the default of every field that has one. Knows nothing
about models or Ray.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from sheen.engine.types import Sampling

MAX_INPUT_CHARACTERS = 4096
MAX_UTTERANCE_CHARACTERS = 32_768
"""Longest text of one utterance on a WebSocket: room for one answer of a language model."""
MAX_BATCH_ITEMS = 32
MAX_BATCH_CHARACTERS = 32_768
"""Longest text of a batch: about half an hour of speech."""

AudioFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]

WHOLE = BeforeValidator(lambda n: int(n) if isinstance(n, float) and n.is_integer() else n)
"""JSON has one kind of number: 7.0 is an integer."""


FOREIGN = (
    "reference_id",
    "speaker_embedding",
    "x_vector_only_mode",
    "max_new_tokens",
    "task_type",
)
"""Fields of vLLM-Omni's and Fish's servers that change what is spoken, and that no model here
follows: `sheen.serve.capabilities` reports them. Their other fields tune their own engines."""
MAX_REFERENCE_TEXT = 1000
"""Longest `ref_text`, characters: twice as many as 30 s of fast speech have."""


VoiceName = Annotated[str, Field(max_length=1000)]
"""Long enough for a voice that is described in words."""


class VoiceId(BaseModel):
    id: VoiceName


class Recording(BaseModel, strict=True):
    """A recording and its transcript, as vLLM-Omni and SGLang nest them."""

    audio_path: Annotated[str, Field(min_length=1)]
    text: Annotated[str | None, Field(max_length=MAX_REFERENCE_TEXT)] = None


def _only_recording(
    references: list[Recording] | None, info: ValidationInfo
) -> list[Recording] | None:
    """Refuse `references` next to `ref_audio`: only one voice can be spoken in."""
    if references is not None and info.data.get("ref_audio") is not None:
        raise ValueError("it means the same as ref_audio; send one of the two")
    return references


def _by_our_names(sent: dict[str, Any]) -> dict[str, Any]:
    """The fields with `voice` for `speaker`, and `ref_audio` and `ref_text` for `references`. An
    invalid `references` is left for its own validation."""
    if sent.get("voice") is None and "speaker" in sent:  # vLLM-Omni's other name for it
        sent = {**sent, "voice": sent["speaker"]}
    listed = sent.get("references")
    if sent.get("ref_audio") is None and isinstance(listed, list) and len(listed) == 1:
        try:
            recording = Recording.model_validate(listed[0])
        except ValidationError:
            return sent
        text = sent.get("ref_text") if recording.text is None else recording.text
        sent = {**sent, "ref_audio": recording.audio_path, "ref_text": text, "references": None}
    return sent


ABOUT = ("title", "description", "examples", "default")
"""Keys of a JSON schema that do not concern the type."""


def _nullable(schema: dict[str, Any]) -> None:
    """State in the JSON schema that null is the default of every field that has one."""
    for name, field in schema["properties"].items():
        if "default" in field and {"type": "null"} not in field.get("anyOf", ()):
            about = {key: field.pop(key) for key in ABOUT if key in field}
            kinds = field.get("anyOf", [field])
            schema["properties"][name] = {"anyOf": [*kinds, {"type": "null"}], **about}


class SpeechSettings(BaseModel, strict=True, json_schema_extra=_nullable):
    """Settings of speech. Unknown fields are ignored: clients send many."""

    model: Annotated[
        str | None,
        Field(description="any name, or none: this server has one model", examples=["sheen"]),
    ] = None
    voice: Annotated[
        VoiceName | VoiceId | None,
        Field(
            description="a name or id from /v1/audio/voices, or one of OpenAI's 13 voices; null is "
            "the model's first voice; ignored with `ref_audio`",
            examples=["alloy"],
        ),
    ] = None
    ref_audio: Annotated[
        str | None,
        Field(
            min_length=1,
            description="a recording of the voice to speak in instead: a data URL, the id or name "
            "of an uploaded voice, or a URL of a host that the server allows; off unless the "
            "operator allows it",
        ),
    ] = None
    ref_text: Annotated[
        str | None,
        Field(
            max_length=MAX_REFERENCE_TEXT,
            description="the complete transcript of `ref_audio`, or of the uploaded `voice`",
        ),
    ] = None
    references: Annotated[
        list[Recording] | None,
        Field(
            min_length=1,
            max_length=1,
            description="a list of one object with `audio_path` and `text`: `ref_audio` and "
            "`ref_text`, as other servers nest them",
        ),
        AfterValidator(_only_recording),
    ] = None
    instructions: Annotated[
        str | None,
        Field(
            max_length=4096,
            description="how to say it. A model that was trained without instructions ignores "
            "them, and the header X-Sheen-Ignored reports it; a server may refuse them instead",
        ),
    ] = None
    ssml: Annotated[
        bool,
        Field(
            description="the input is an SSML document, of which break, sub, phoneme, prosody rate "
            "and voice are followed; not on the WebSocket"
        ),
    ] = False
    lexicon: Annotated[
        dict[
            Annotated[str, Field(min_length=1, max_length=100)],
            Annotated[str, Field(min_length=1, max_length=200)],
        ]
        | None,
        Field(
            max_length=200,
            description="words and their pronunciation: a respelling, or phonemes between slashes "
            "for a model that was trained on phonemes",
            examples=[{"SQL": "sequel"}],
        ),
    ] = None
    response_format: Annotated[
        AudioFormat,
        Field(
            description="pcm: 16-bit little-endian mono at the rate in x-sample-rate; "
            "opus: in Ogg; aac: ADTS"
        ),
    ] = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4.0, description="at the same pitch")] = 1.0
    temperature: Annotated[float, Field(ge=0.0, le=5.0, description="0 is greedy")] = (
        Sampling.temperature
    )
    top_p: Annotated[
        float,
        Field(
            gt=0.0,
            le=1.0,
            description="sample from the likeliest tokens of this total probability; 1 is off",
        ),
    ] = Sampling.top_p
    top_k: Annotated[
        int,
        Field(ge=0, lt=2**31, description="sample from so many likeliest tokens; 0 is off"),
        WHOLE,
    ] = Sampling.top_k
    repetition_penalty: Annotated[
        float, Field(ge=0.5, le=5.0, description="for tokens already in the audio; 1 is off")
    ] = Sampling.repetition_penalty
    repetition_window: Annotated[
        Literal["all"] | Annotated[int, Field(ge=1, lt=2**31), WHOLE],
        Field(description="number of latest tokens that the penalty applies to"),
    ] = Sampling.repetition_window
    seed: Annotated[
        int | None,
        Field(
            ge=-1,
            lt=2**63,
            description="the same seed gives the same audio; -1 and null draw a random one",
        ),
        WHOLE,
    ] = None
    language: Annotated[
        str | None,
        Field(
            max_length=35,
            description="language of the text, a code or a name, such as en, en-US or English; "
            "empty and auto are the model's own, and any other is refused",
        ),
    ] = None

    word_timestamps: Annotated[
        bool,
        Field(
            description="return the times of each word: in events, or in the header "
            "X-Word-Timestamps of a whole answer. Needs a server with an aligner"
        ),
    ] = False

    _foreign: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _null_is_the_default(cls, sent: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(sent, dict):
            return validate(sent)
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        settings = validate(
            {
                name: value
                for name, value in _by_our_names(sent).items()
                if value is not None or name not in optional
            }
        )
        settings._foreign = {name: sent[name] for name in FOREIGN if sent.get(name)}
        return settings

    @property
    def foreign(self) -> dict[str, Any]:
        """The fields of `FOREIGN` that the client set, as it sent them."""
        return self._foreign

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling parameters that the request sets; the model's own defaults apply to the rest."""
        names = self.model_fields_set & {
            *("temperature", "top_p", "top_k", "repetition_penalty", "repetition_window")
        }
        return self.model_dump(include=names)

    @property
    def voice_name(self) -> str | None:
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice


class SpeechRequest(SpeechSettings):
    """Body of `POST /v1/audio/speech`."""

    input: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_INPUT_CHARACTERS,
            description="the text to speak; [pause:1.5s] in it is exactly that much silence",
            examples=["Good morning, the coffee is ready."],
        ),
    ]
    stream_format: Annotated[
        Literal["audio", "sse"],
        Field(description="chunked audio bytes, or OpenAI's events with the same bytes in base64"),
    ] = "audio"
    stream: Annotated[
        bool,
        Field(
            description="false: the whole body at once, with its length. The default with "
            "word_timestamps, which require it unless stream_format is sse"
        ),
    ] = True

    @property
    def whole(self) -> bool:
        """Whether the body is sent at once."""
        chosen = "stream" in self.model_fields_set
        return self.stream_format == "audio" and not (
            self.stream if chosen else not self.word_timestamps
        )


class BatchRequest(SpeechSettings):
    """Body of `POST /v1/audio/speech/batch`: settings are those of every item without its own."""

    items: Annotated[
        list[dict[str, Any]],
        Field(
            min_length=1,
            max_length=MAX_BATCH_ITEMS,
            description="objects with `input` and any other field of `POST /v1/audio/speech`; a "
            "field that is null or missing is taken from the batch",
            examples=[[{"input": "Good morning."}, {"input": "The coffee is ready."}]],
        ),
    ]
    response_format: Annotated[AudioFormat, Field(description="format of the files")] = "wav"

    @property
    def characters(self) -> int:
        """Number of characters of all texts."""
        texts = (item.get("input") for item in self.items)
        return sum(len(text) for text in texts if isinstance(text, str))

    def has_own_voice(self, item: dict[str, Any]) -> bool:
        """Whether an item names a voice, or gives a recording or its text."""
        named = ("voice", "speaker", "ref_audio", "ref_text", "references")
        return any(item.get(name) is not None for name in named)

    def request(self, item: dict[str, Any]) -> SpeechRequest:
        """The request of one item, with the batch's settings where it has none. Raises
        ValidationError."""
        own = {name: value for name, value in _by_our_names(item).items() if value is not None}
        shared = self.model_dump(exclude={"items"}, exclude_unset=True) | self.foreign
        if self.ref_audio is not None and own.keys() & {"voice", "ref_audio", "references"}:
            # The item's own voice: the batch's recording and its text are those of another.
            shared = {key: shared[key] for key in shared.keys() - {"ref_audio", "ref_text"}}
        form = {"response_format": self.response_format}
        return SpeechRequest.model_validate({**form, **shared, **own})
