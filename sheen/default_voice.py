"""The voice that speaks where no model is named: the English one.

Owns where it is looked for: `examples/english/voice` of a checkout, then the installed package
`sheen-voice-english`, which holds the same folder and no code. Refuses to download one.
"""

import importlib.util
from pathlib import Path

from sheen.lm.checkpoint import ENGLISH_VOICE, HOW_TO_GET_ONE, VOICE_PACKAGE, is_checkpoint

CHECKOUT = Path(__file__).resolve().parent.parent
"""Of a checkout its root, wherever a worker's working directory is; of an installed package the
folder of all packages, which holds no checkpoint."""


def find_default_voice() -> str:
    """Its checkpoint folder. ValueError, which says how to get one, where there is none."""
    for folder in (CHECKOUT / ENGLISH_VOICE, _packaged()):
        if folder is not None and is_checkpoint(folder):
            return str(folder)
    raise ValueError(f"no model was named, and the English voice is not here. {HOW_TO_GET_ONE}")


def _packaged() -> Path | None:
    spec = importlib.util.find_spec(VOICE_PACKAGE.replace("-", "_"))
    locations = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(locations))) / "voice" if locations else None
