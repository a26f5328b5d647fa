"""The examples as tests use them: their folders, their scripts and the demo's recordings.

Recordings are those of the English demo, 24 kHz Opus; where a file is to be encoded, its bytes are
FLAC, mostly at another rate, so that encoding them resamples.
"""

import functools
import importlib.util
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile
from numpy.typing import NDArray

from sheen.audio.io import decode_audio

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
ENGLISH = EXAMPLES / "english"
DEMO = ENGLISH / "demo"
PROFILES = ENGLISH / "profiles"
"""Recordings of the demo's voices that no training hears."""
CHECKPOINT = ENGLISH / "voice"
"""A small model that is trained: VOICE speaks English."""
CODEC = CHECKPOINT / "codec"
VOICE = "heart"
RECORDINGS = DEMO / f"{VOICE}.jsonl"
"""Of VOICE, a row each."""
SENTENCES = ENGLISH / "everyday.txt"
"""Everyday ones that CHECKPOINT has not been trained on, a line each."""
VOICES = (VOICE, "am_onyx", "af_aoede", "bf_alice")
"""Of the demo's recordings, and of the checkpoints that tests make."""
NEW_VOICE = "af_bella"
"""The voice that the demo learns. It has 177 recordings, each of the others about 20."""
RATE = 24_000  # of the small codec, Hz
FLAC_RATE = 16_000


@dataclass(frozen=True)
class Clip:
    """A recording of the demo, and what it says."""

    id: str
    text: str
    speaker: str
    seconds: float
    path: Path


def load_script(path: Path) -> ModuleType:
    """A script that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def clips_of(voice: str) -> tuple[Clip, ...]:
    """All recordings of a voice, the shortest first."""
    rows = map(json.loads, (DEMO / f"{voice}.jsonl").read_text("utf-8").splitlines())
    clips = (
        Clip(row["id"], row["text"], voice, row["seconds"], DEMO / row["audio"]) for row in rows
    )
    return tuple(sorted(clips, key=lambda clip: (clip.seconds, clip.id)))


def read_clip(clip: Clip, sample_rate: int = RATE) -> NDArray[np.float32]:
    """Its samples, `[n]`."""
    return decode_audio(clip.path.read_bytes(), sample_rate)


@functools.cache
def flac(clip: Clip, rate: int = FLAC_RATE) -> bytes:
    """The recording as a FLAC file of 16 bits."""
    file = io.BytesIO()
    soundfile.write(file, read_clip(clip, rate), rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def copy_corpus(clips: Sequence[Clip], folder: Path, rate: int = FLAC_RATE) -> Path:
    """Make `folder` an LJSpeech folder of these recordings, as FLAC."""
    (folder / "wavs").mkdir(parents=True)
    for clip in clips:
        (folder / "wavs" / f"{clip.id}.flac").write_bytes(flac(clip, rate))
    lines = (f"{clip.id}|{clip.text}|{clip.text}|{clip.speaker}\n" for clip in clips)
    (folder / "metadata.csv").write_text("".join(lines), "utf-8")
    return folder
