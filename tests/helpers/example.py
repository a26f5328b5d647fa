"""The digits example as tests use it: its folders, its recordings and its scripts."""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from sheen.audio.io import decode_audio
from sheen.scoring.codec import Waveform

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"
CODEC = DIGITS / "codec"
CHECKPOINT = DIGITS / "voice"
"""A voice that is trained, and small: slt, rms and awb say digits."""
VOICES = ("slt", "rms", "awb", "kal16")
HELD_OUT = ("h001", "h010")  # of two and of three digits
RATE = 24_000  # of the small codec, Hz


def load_script(path: Path) -> ModuleType:
    """A script that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(folder: str, voice: str) -> list[list[str]]:
    """What the example's metadata.csv says of one voice's recordings: id, text, ..., voice."""
    lines = (DIGITS / folder / "metadata.csv").read_text("utf-8").splitlines()
    return [line.split("|") for line in lines if line.endswith(f"|{voice}")]


def read_clip(folder: str, name: str, sample_rate: int = RATE) -> Waveform:
    """A recording of the example, `[n]`."""
    return decode_audio((DIGITS / folder / "wavs" / f"{name}.flac").read_bytes(), sample_rate)


def copy_corpus(rows: Sequence[Sequence[str]], folder: Path) -> None:
    """Make `folder` an LJSpeech folder of these rows of the example's corpus."""
    (folder / "wavs").mkdir()
    for name, *_ in rows:
        shutil.copy(DIGITS / "corpus" / "wavs" / f"{name}.flac", folder / "wavs")
    (folder / "metadata.csv").write_text("".join("|".join(row) + "\n" for row in rows), "utf-8")
