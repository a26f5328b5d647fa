"""Profiles of voices from a folder or manifest of their recordings.

Owns which recordings a profile is made of. Knows nothing of the profiles themselves, which are
`sheen.judge.voices`'.
"""

import logging
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheen.core import files
from sheen.core.audio import decode_audio
from sheen.core.manifest import plain_rows
from sheen.judge.voices import VoiceProfiles

logger = logging.getLogger(__name__)

PROFILE_RECORDINGS = 40
"""Recordings of each voice that its profile is made of, spread evenly over its list."""


def fit_recordings(location: str, sample_rate: int) -> VoiceProfiles:
    """Profiles of the voices of an LJSpeech folder or a .jsonl manifest with speakers.

    Rows that cannot be used, and rows without a speaker, are counted in the log. Raises ValueError
    for a manifest that cannot be read, for audio that cannot be decoded, and for a voice with too
    few recordings.
    """
    by_voice: dict[str, list[dict[str, Any]]] = {}
    left_out: Counter[str] = Counter()
    for row in plain_rows(files.absolute(location)):
        if not row["speaker"]:
            left_out["no speaker"] += 1
            continue
        usable = by_voice.setdefault(row["speaker"], [])
        if row["reason"] is not None:
            left_out[row["reason"]] += 1
        else:
            usable.append(row)
    for reason, count in left_out.items():
        logger.warning("%s: %d recordings not used for voices: %s", location, count, reason)
    recordings: dict[str, list[NDArray[np.float32]]] = {}
    for voice, rows in by_voice.items():
        count = min(PROFILE_RECORDINGS, len(rows))
        chosen = [rows[place * len(rows) // count] for place in range(count)]
        recordings[voice] = [_read(row["audio"], sample_rate) for row in chosen]
    return VoiceProfiles.fit(recordings, sample_rate)


def _read(path: str, sample_rate: int) -> NDArray[np.float32]:
    try:
        return decode_audio(files.read_bytes(path), sample_rate)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
