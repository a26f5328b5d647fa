"""The serving application's arguments: `args` in serve_config.yaml."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

import sheen
from sheen.core import checkpoint, files

CHECKOUT = Path(sheen.__file__).resolve().parent.parent


class ServeArgs(BaseModel, extra="forbid"):
    """What one application serves, and how much at a time."""

    model: Annotated[
        str,
        Field(
            description="checkpoint folder: absolute path, URI, or a path relative to the folder "
            "that holds the sheen package"
        ),
    ] = "examples/digits/voice"
    model_id: Annotated[str, Field(description="name shown by /v1/models")] = "sheen"
    default_max_seconds: Annotated[
        float, Field(gt=0.0, description="longest audio of one request, seconds")
    ] = 30.0
    slots: Annotated[
        int,
        Field(ge=1, description="requests that run at once, each with memory of its own"),
    ] = 8
    positions: Annotated[
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
            "(3). Fewer start sooner, and the first 85 ms differ, see docs/decisions/0016",
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
    noise: Annotated[
        bool, Field(description="the codec's own noise, drawn from the request's seed")
    ] = True


def checkpoint_location(model: str) -> str:
    """`args.model` made absolute. ValueError says which command makes a missing checkpoint."""
    if files.is_uri(model):
        return model
    folder = CHECKOUT / Path(model).expanduser()
    if not checkpoint.is_checkpoint(folder):
        raise ValueError(
            f"args.model {model}: no checkpoint in {folder}. `python jobs/train.py --output DIR` "
            "writes one to DIR/checkpoint; examples/digits/voice of a checkout is a small one."
        )
    return str(folder)
