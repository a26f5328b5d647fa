"""The English voice, which is used if no model is named.

Owns where it is searched: in `examples/english/voice` of a checkout, then in the installed package
`sheen-voice-english`, which contains the same folder. Downloads nothing.
"""

import importlib.util
from pathlib import Path

from sheen.lm.checkpoint import ENGLISH_VOICE, HOW_TO_GET_ONE, VOICE_PACKAGE, is_checkpoint

CHECKOUT = Path(__file__).resolve().parent.parent.parent
"""The root of a checkout, whatever the working directory; for an installed package site-packages,
which contains no checkpoint."""


def find_default_voice() -> str:
    """The checkpoint folder of the English voice. ValueError, which says how to get it, if it is
    not installed."""
    for folder in (CHECKOUT / ENGLISH_VOICE, _packaged()):
        if folder is not None and is_checkpoint(folder):
            return str(folder)
    raise ValueError(f"no model is named, and no English voice is installed. {HOW_TO_GET_ONE}")


def _packaged() -> Path | None:
    spec = importlib.util.find_spec(VOICE_PACKAGE.replace("-", "_"))
    locations = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(locations))) / "voice" if locations else None
