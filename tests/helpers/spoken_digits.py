"""A few recordings of digits, for an ASR of digits. They leave with the digits' voice.

An LJSpeech folder of Opus files, picked from what `examples/digits/make_corpus.py` makes.
"""

from pathlib import Path

from helpers.example import RATE
from sheen.audio.io import decode_audio
from sheen.scoring.codec import Waveform

RECORDED = Path(__file__).parent / "digits"
VOICES = ("slt", "rms", "awb", "kal16")
HELD_OUT = ("h001", "h010")  # of two and of three digits


def rows_of(voice: str) -> list[list[str]]:
    """Id, text, text and voice of its recordings, those of held-out strings last."""
    lines = (RECORDED / "metadata.csv").read_text("utf-8").splitlines()
    return [line.split("|") for line in lines if line.endswith(f"|{voice}")]


def read_digits(name: str, sample_rate: int = RATE) -> Waveform:
    """A recording, `[n]`."""
    return decode_audio((RECORDED / "wavs" / f"{name}.opus").read_bytes(), sample_rate)
