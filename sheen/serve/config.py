"""The serving application's arguments: `args` in serve_config.yaml."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

import sheen
from sheen.lm import checkpoint
from sheen.serve.access.limits import Limits
from sheen.storage import uris

CHECKOUT = Path(sheen.__file__).resolve().parent.parent
"""Of a checkout its root, wherever a worker's working directory is; of an installed package the
folder of all packages, which holds no checkpoint."""


class ServeArgs(Limits, BaseModel, extra="forbid"):
    """What one application serves, how much at a time, and what it takes of a client."""

    model: Annotated[
        str,
        Field(
            description="checkpoint folder: absolute path, URI, or a path relative to the checkout"
        ),
    ] = "examples/digits/voice"
    model_id: Annotated[str, Field(description="name shown by /v1/models")] = "sheen"
    default_max_seconds: Annotated[
        float,
        Field(
            gt=0.0,
            description="longest audio of one chunk of text, seconds; a longer text is split into "
            "chunks",
        ),
    ] = 30.0
    slots: Annotated[
        int,
        Field(ge=1, description="requests that run at once, each with memory of its own"),
    ] = 8
    max_seq_len: Annotated[
        int | None,
        Field(
            ge=1,
            description="longest request of a slot, text and audio, tokens; default: as many as "
            "default_max_seconds of audio and their text take. The log says what a slot takes",
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
    ramp: Annotated[
        list[Annotated[int, Field(ge=1)]] | None,
        Field(
            min_length=1,
            description="frames of the first chunks of audio, the last one repeats; small first "
            "chunks start soon, and a listener runs dry if the next one takes longer than they "
            "last. Default: 1, 2, 4, 8, 12 on a GPU, 2, 2, 4, 8, 12 on a CPU",
        ),
    ] = None
    trim_silence: Annotated[
        bool, Field(description="leave out the silence before speech, up to a second")
    ] = False
    torch_threads: Annotated[
        int, Field(ge=1, description="threads of one computation, on a CPU")
    ] = 1
    audio_threads: Annotated[
        int, Field(ge=1, description="threads that decode audio beside the one that makes tokens")
    ] = 1
    audio_process: Annotated[
        bool,
        Field(
            description="on a CPU, decode audio in a process for each of the audio threads; in one "
            "process tokens and audio slow each other down, see docs/decisions/0018"
        ),
    ] = True
    text_processes: Annotated[
        int,
        Field(
            ge=1, description="processes that normalise text, for a model that was taught with it"
        ),
    ] = 1
    first_audio_timeout_s: Annotated[
        float,
        Field(
            gt=0.0,
            description="a request whose audio has not begun by then gets 503, before its client "
            "gives up (LiveKit after 30 s); one that has begun is never cut",
        ),
    ] = 25.0
    voice_aliases: Annotated[
        dict[str, str],
        Field(
            description="further names for the model's voices; OpenAI's 13 names go round them "
            "unless they stand here"
        ),
    ] = {}
    auth: Annotated[
        Literal["keys", "none"],
        Field(description="keys: requests bring one of the keys; none: anybody may ask"),
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
    noise: Annotated[
        bool, Field(description="the codec's own noise, drawn from the request's seed")
    ] = True

    @property
    def sockets(self) -> int:
        """WebSockets that may be open at a time: as many as places."""
        return self.slots + self.max_queue


def checkpoint_location(model: str) -> str:
    """`args.model` made absolute. ValueError says which command makes a missing checkpoint."""
    if uris.is_uri(model):
        return model
    folder = CHECKOUT / Path(model).expanduser()
    if checkpoint.is_checkpoint(folder):
        return str(folder)
    raise ValueError(
        f"args.model {model}: no checkpoint in {folder}. "
        "`sheen train --output DIR` writes one to DIR/checkpoint; examples/digits/voice of a "
        "checkout is a small one."
    )
