"""The serving application's arguments: `args` in serve_config.yaml.

Owns their names, defaults and help, including the limits of what a client may send, which
`sheen.serve.access.limits` enforces.
"""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import BaseModel, Field

from sheen.codec.info import find_codec
from sheen.config import SpeakingFields
from sheen.lm import checkpoint
from sheen.lm.default_voice import CHECKOUT
from sheen.storage import folders, hub, uris
from sheen.text.forms import FormName

KIB = 1024
VOICES, SPEECH = "/v1/audio/voices", "/v1/audio/speech"
BATCH = f"{SPEECH}/batch"
MAX_BODIES = 128
"""Incomplete request bodies in a replica at a time: most arrive at once, so that more of them are
clients that stall. Ray's proxy holds back as many of max_body_bytes."""
BATCH_BODIES = 4
"""Size limit of a batch, in units of max_body_bytes: room for the longest batch with every
character escaped."""
RECORDING_TIMES = 6
"""Time limit of a body that may bring a recording, in units of body_timeout_s: 10 MiB on a slow
uplink."""


class BodyLimit(NamedTuple):
    """Limits of one request's body."""

    size: int
    """Bytes."""
    seconds: float
    """Time from the request's arrival to the body's last byte."""


class ClientLimits(BaseModel):
    """Limits of what a client may send, with their defaults."""

    max_body_bytes: Annotated[
        int,
        Field(
            ge=1024,
            description="a larger body of a request gets 413, where a batch may have four times "
            "as much; a WebSocket with a larger message, decompressed, is closed with 1009",
        ),
    ] = 256 * KIB  # the longest text and instructions, with every character escaped, take 100 kB
    body_timeout_s: Annotated[
        float,
        Field(
            gt=0.0,
            description="a body that is incomplete by then gets 408; six times as long where it "
            "may bring a recording. A WebSocket without `start` by then is closed with 1008",
        ),
    ] = 10.0
    max_messages_per_s: Annotated[
        int,
        Field(ge=1, description="a WebSocket with more messages in a second is closed with 1008"),
    ] = 50

    def body(self, path: str) -> BodyLimit:
        """The limits of a route, `path` within the application."""
        rows = {BATCH: BodyLimit(BATCH_BODIES * self.max_body_bytes, self.body_timeout_s)}
        return rows.get(path, BodyLimit(self.max_body_bytes, self.body_timeout_s))


class ReferenceArgs(BaseModel):
    """Voices from reference recordings, off by default."""

    voices_folder: Annotated[
        str | None,
        Field(
            description="folder for voices that clients upload, absolute path or URI, the same for "
            "all replicas; default: none can be uploaded"
        ),
    ] = None
    ref_audio: Annotated[
        bool,
        Field(description="requests may bring a recording of the voice to speak in, as a data URL"),
    ] = False
    ref_audio_hosts: Annotated[
        list[Annotated[str, Field(pattern=r"^[^/@*\s]+$")]],
        Field(description="hosts, or host:port, whose URLs `ref_audio` may name; default: none"),
    ] = []
    max_recording_bytes: Annotated[
        int, Field(ge=1024, description="largest recording of a voice, as a file")
    ] = 10 * KIB * KIB
    max_voices: Annotated[int, Field(ge=1, description="uploaded voices that are kept")] = 1000

    @property
    def takes_references(self) -> bool:
        """Whether a request can have a reference."""
        return bool(self.voices_folder or self.ref_audio or self.ref_audio_hosts)


class ServeArgs(ClientLimits, ReferenceArgs, SpeakingFields, extra="forbid"):
    """Arguments of one application: its model, its capacity, and the limits of its clients."""

    model: Annotated[
        str,
        Field(
            description="checkpoint: absolute path, URI, a path relative to the checkout, or a hub "
            "id; also one of the Orpheus family, which has no sheen.json"
        ),
    ] = checkpoint.ENGLISH_VOICE
    model_id: Annotated[str, Field(description="name shown by /v1/models")] = "sheen"
    slots: Annotated[
        int,
        Field(
            ge=1,
            description="chunks of text that are synthesized at once, where the KV cache has room "
            "for them",
        ),
    ] = 8
    kv_cache_gb: Annotated[
        float | None,
        Field(
            gt=0.0,
            description="memory of the KV cache, GB; default: enough for the longest request at "
            "every slot, and on a GPU no more than nine tenths of what is free. The log says how "
            "many requests it has room for; further ones wait",
        ),
    ] = None
    max_queue: Annotated[
        int, Field(ge=1, description="requests that may wait; beyond it clients get 429")
    ] = 64
    look_ahead: Annotated[
        int | None,
        Field(
            ge=0,
            description="frames that the first audio waits for; default: as many as make it exact "
            "(3). Fewer start sooner, and the end of the first chunk differs, see "
            "docs/decisions/0016",
        ),
    ] = None
    trim_silence: Annotated[
        bool, Field(description="remove the silence before speech, up to a second")
    ] = False
    torch_threads: Annotated[
        int, Field(ge=1, description="threads of one computation, on a CPU")
    ] = 1
    aligner: Annotated[
        str | None,
        Field(
            description="Whisper model that aligns words for requests with word_timestamps, which "
            "get 400 without it, and transcribes reference recordings, for a missing ref_text "
            "and against a wrong one: a folder in CTranslate2's format, or a "
            "faster-whisper name such as tiny. It runs on the CPU"
        ),
    ] = None
    first_audio_timeout_s: Annotated[
        float,
        Field(
            gt=0.0,
            description="a request whose audio has not begun by then gets 503, before its client "
            "gives up (LiveKit after 30 s); one that has begun is never cut",
        ),
    ] = 25.0
    unknown_tags: Annotated[
        Literal["text", "refuse"],
        Field(description="a <word> in a text that is not one of the model's tags: text, or 400"),
    ] = "text"
    lexicon: Annotated[
        str | None,
        Field(
            description="JSON file of words and their pronunciation, path or URI, read when the "
            "server starts; a request's own `lexicon` comes first"
        ),
    ] = None
    instructions: Annotated[
        Literal["ignore", "refuse"],
        Field(
            description="instructions of a request, where the model was not trained with them. "
            "ignore: reported in the header X-Sheen-Ignored; refuse: 400"
        ),
    ] = "ignore"
    voice_aliases: Annotated[
        dict[str, str],
        Field(
            description="further names for the model's voices; OpenAI's 13 names are assigned to "
            "them in turn, unless given here"
        ),
    ] = {}
    auth: Annotated[
        Literal["keys", "none"],
        Field(description="keys: requests need one of the keys; none: no key is needed"),
    ] = "keys"
    keys_file: Annotated[
        str | None,
        Field(
            description="file of keys, path or URI, one a line, followed as it changes; default: "
            "the environment variable SHEEN_API_KEYS, with commas between keys, as it is at start"
        ),
    ] = None
    cors_origins: Annotated[
        list[Annotated[str, Field(pattern=r"^(\*|https?://[^/*\s]+)$")]],
        Field(
            description="origins, such as https://app.example, whose pages may use the server from "
            "a browser; * for all. By default only pages of the server's own may"
        ),
    ] = []

    def body(self, path: str) -> BodyLimit:
        rows: dict[str, BodyLimit] = {}
        seconds = RECORDING_TIMES * self.body_timeout_s
        if self.voices_folder is not None:  # besides the recording: fields and headers
            rows[VOICES] = BodyLimit(self.max_recording_bytes + self.max_body_bytes, seconds)
        if self.ref_audio:
            size = self.max_recording_bytes * 4 // 3 + self.max_body_bytes
            rows[SPEECH] = BodyLimit(size, seconds)
            rows[BATCH] = BodyLimit(size + (BATCH_BODIES - 1) * self.max_body_bytes, seconds)
        return rows.get(path, super().body(path))

    @property
    def sockets(self) -> int:
        """Greatest number of open WebSockets: as many as places."""
        return self.slots + self.max_queue


def with_absolute_paths(args: ServeArgs, location: str) -> ServeArgs:
    """`args` with the codec and the file of the model's description as replicas find them, which
    run in another folder. `location` is that of the checkpoint. Raises ValueError naming the
    argument for what is missing, and for a form that is not the model's; reads no weights.
    """
    found: dict[str, str] = {}
    if args.codec is not None:
        try:
            if hub.is_hub_id(args.codec):
                hub.check(args.codec)
            else:
                found["codec"] = uris.absolute(args.codec)
                find_codec(found["codec"])
        except ValueError as error:
            raise ValueError(f"args.codec: {error}") from error
    if args.form is not None and args.form not in (forms := get_args(FormName)):
        raise ValueError(f"args.form {args.form!r}: expected one of {', '.join(forms)}")
    described = None
    if args.info is not None:
        found["info"] = uris.absolute(args.info)
        try:
            described = folders.read_record(found["info"], checkpoint.CheckpointInfo)
        except (OSError, ValueError) as error:
            raise ValueError(f"args.info: {error}") from error
    elif checkpoint.is_checkpoint(Path(location)):
        described = checkpoint.read_info(location)
    if described is not None and args.form not in (None, described.prompt.name):
        raise ValueError(
            f"args.form {args.form}: by {found.get('info', location)}, the checkpoint was trained "
            f"with {described.prompt.name!r}; omit the form"
        )
    return args.model_copy(update=found)


def checkpoint_location(model: str) -> str:
    """`args.model` made absolute; a URI or a hub id unchanged. ValueError for a missing checkpoint,
    with the command that makes one."""
    if uris.is_uri(model):
        return model
    folder = CHECKOUT / Path(model).expanduser()
    if checkpoint.is_checkpoint(folder) or (folder / "config.json").is_file():
        return str(folder)
    if not folder.exists() and hub.is_hub_id(model):
        hub.check(model)
        return model
    raise ValueError(f"args.model {model}: no checkpoint in {folder}. {checkpoint.HOW_TO_GET_ONE}")
