"""The demo's requests: the `openai` client asks for strings alone and all at once.

Owns the requests, their times, and the check that nobody sounds otherwise in company.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openai
import soundfile


@dataclass(frozen=True)
class Spoken:
    """One request: what was asked for, its answer, and when the client had what."""

    text: str
    voice: str
    wav: Path
    first_byte_s: float
    total_s: float


def speak_all(
    url: str, folder: Path, texts: Sequence[tuple[str, str]]
) -> tuple[list[Spoken], list[Spoken]]:
    """Each (text, voice) alone, then all at once; the WAVs land in `folder`."""
    folder.mkdir()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120, max_retries=0)

    def speak(index: int, name: str) -> Spoken:
        text, voice = texts[index]
        wav = folder / f"{index:02d}-{voice}-{name}.wav"
        started = time.monotonic()
        first = 0.0
        with (
            client.audio.speech.with_streaming_response.create(
                model="sheen",
                input=text,
                voice=voice,
                response_format="wav",
                extra_body={"seed": index},
            ) as response,
            wav.open("wb") as file,
        ):
            for chunk in response.iter_bytes():
                first = first or time.monotonic() - started
                file.write(chunk)
        return Spoken(text, voice, wav, first, time.monotonic() - started)

    alone = [speak(index, "alone") for index in range(len(texts))]
    with ThreadPoolExecutor(len(texts)) as pool:
        together = list(pool.map(lambda index: speak(index, "together"), range(len(texts))))
    for one, many in zip(alone, together, strict=True):
        _check_same_speech(one.wav, many.wav)
        print(f"   {many.voice}: {many.text!r}, first bytes after {many.first_byte_s:.2f} s")
    longest, all_at_once = (max(s.total_s for s in group) for group in (alone, together))
    print(
        f"   the longest alone: {longest:.2f} s; all {len(together)} at once: {all_at_once:.2f} s, "
        f"{all_at_once / longest:.2f} times as long"
    )
    return alone, together


def _check_same_speech(alone: Path, together: Path) -> None:
    """A request must not sound otherwise because others ran beside it."""
    one, many = (soundfile.read(path, dtype="int16")[0].astype(int) for path in (alone, together))
    # Batched matrix products round differently: one step of 16-bit PCM, not another token.
    if len(one) != len(many) or np.abs(one - many).max(initial=0) > 1:
        raise RuntimeError(f"{together} is not what the same request gave alone ({alone})")
