"""What the scripts of this folder share: their flags, their one line each, and how they fail.

Owns no client: each script imports its own library, inside `main`, so that `--help` needs none.
"""

import argparse
import sys
import time
import wave
from pathlib import Path


class NotSpoken(Exception):
    """The sentence was not heard: says why."""


def parser(description: str, voice: str = "heart") -> argparse.ArgumentParser:
    """The flags that all scripts have."""
    flags = argparse.ArgumentParser(description=description)
    flags.add_argument("--url", default="http://127.0.0.1:8000", help="of the server, without /v1")
    flags.add_argument("--api-key", default="none", help="needed where args.auth is keys")
    flags.add_argument("--model", default="sheen", help="as /v1/models names it")
    flags.add_argument("--voice", default=voice)
    flags.add_argument("--text", default="Good morning, the coffee is ready.")
    flags.add_argument("-o", "--output", type=Path, help="file for what was heard last")
    return flags


class Heard:
    """One spoken sentence: bytes as they came, and when the first of them did."""

    def __init__(self, what: str) -> None:
        self.data = bytearray()
        self._what = what
        self._began = time.perf_counter()
        self._first_s: float | None = None

    def add(self, data: bytes) -> None:
        if data and self._first_s is None:
            self._first_s = time.perf_counter() - self._began
        self.data += data

    def report(self, sample_rate: int | None = None) -> None:
        """Print the line. `sample_rate`, Hz: where the bytes are 16-bit mono samples."""
        if self._first_s is None:
            raise NotSpoken(f"{self._what}: no audio came")
        size = f"{len(self.data)} bytes"
        if sample_rate is not None:
            size = f"{len(self.data) / 2 / sample_rate:.2f} s of audio"
        print(f"{self._what}: {size}, the first after {self._first_s:.2f} s", flush=True)

    def save_wav(self, path: Path | None, sample_rate: int) -> None:
        """The samples as a WAV file, where one was asked for."""
        if path is not None:
            with wave.open(str(path), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(sample_rate)
                file.writeframes(bytes(self.data))


def failed(error: Exception) -> int:
    """Say why, on one line; the exit status."""
    reason = (str(error).splitlines() or ["no reason given"])[0]
    if isinstance(error, ImportError):
        reason += "; the README.md here says what each client needs"
    print(f"{type(error).__name__}: {reason}", file=sys.stderr)
    return 1
