"""How near word times are to the truth: flite's words and phrases, joined with pauses.

Where a joined word begins and ends is known to the sample. Prints the errors of the aligner alone
(`Whisper`, in which a pause belongs to a word beside it) and of what a server gives (`at pauses`):

    python benchmarks/word_times.py --aligner FOLDER        # needs flite (apt-get install flite)
"""

import argparse
import random
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from sheen.scoring.asr.transcript import Times, refine
from sheen.scoring.asr.whisper import FasterWhisper

VOICES = ("slt", "rms", "awb", "kal16")
WORDS = (
    "hello people water seven quickly garden mother between paper summer morning question evening "
    "window yellow music friend strange breakfast picture under mountain animal doctor street "
    "number answer kitchen purple silver"
)
PHRASES = (
    "good morning",
    "the red house",
    "how are you today",
    "it was raining",
    "in the garden",
    "please come back soon",
    "I like the music",
    "a cup of tea",
)
PAUSES_S = {"words, 0 to 50 ms apart": (0.0, 0.05), "words, 100 to 400 ms apart": (0.1, 0.2, 0.4)}
PHRASES_APART_S = (0.15, 0.3, 0.5)
SOUND = 0.02
"""Of the peak: where a recording's first and last sound is."""


@dataclass
class Clip:
    kind: str
    samples: NDArray[np.float32]
    rate: int
    words: list[str] = field(default_factory=list)
    spans: list[tuple[int, int, float, float]] = field(default_factory=list)
    """Of each part its first and last word, and when it begins and ends."""


def speak(voice: str, text: str) -> tuple[NDArray[np.float32], int]:
    """Without silence at its ends."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speech.wav"
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(file)], check=True)
        samples, rate = soundfile.read(file, dtype="float32")
    loud = np.flatnonzero(np.abs(samples) > SOUND * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1], rate


def join(kind: str, voice: str, texts: list[str], pauses_s: tuple[float, ...], seed: int) -> Clip:
    draw = random.Random(seed)
    parts: list[NDArray[np.float32]] = []
    clip, at = Clip(kind, np.zeros(0, np.float32), 0), 0
    for text in texts:
        samples, clip.rate = speak(voice, text)
        if not parts:
            at = round(draw.uniform(0, 0.4) * clip.rate)
            parts.append(np.zeros(at, np.float32))
        first = len(clip.words)
        clip.words += text.split()
        end = at + len(samples)
        clip.spans.append((first, len(clip.words) - 1, at / clip.rate, end / clip.rate))
        pause = round(draw.choice(pauses_s) * clip.rate)
        parts += [samples, np.zeros(pause, np.float32)]
        at = end + pause
    clip.samples = np.concatenate(parts)
    return clip


def make_clips(count: int) -> list[Clip]:
    draw = random.Random(0)
    clips = []
    for seed in range(count):
        voice = VOICES[seed % len(VOICES)]
        for kind, pauses_s in PAUSES_S.items():
            clips.append(join(kind, voice, draw.sample(WORDS.split(), 6), pauses_s, seed))
        phrases = draw.sample(PHRASES, 4)
        clips.append(join("phrases, 150 to 500 ms apart", voice, phrases, PHRASES_APART_S, seed))
    return clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--aligner", required=True, help="as args.aligner of a server")
    parser.add_argument("--clips", type=int, default=8, help="of each of three kinds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = FasterWhisper(options.aligner)
    errors: dict[tuple[str, str], list[float]] = {}
    took = heard = 0.0

    def enter(clip: Clip, how: str, times: Times) -> None:
        for first, last, start, end in clip.spans:
            found = [times[first][0] - start, times[last][1] - end]
            errors.setdefault((clip.kind, how), []).extend(found)

    for clip in make_clips(options.clips):
        begun = time.perf_counter()
        times = model.align(clip.samples, clip.rate, clip.words)
        refined = refine(clip.samples, clip.rate, times)
        took += time.perf_counter() - begun
        heard += len(clip.samples) / clip.rate
        enter(clip, "Whisper", times)
        enter(clip, "at pauses", refined)
    print("| clips | times of | edges | median error | 90% within | largest |")
    print("|---|---|---|---|---|---|")
    for (kind, how), found in errors.items():
        size = 1000 * np.abs(found)
        print(
            f"| {kind} | {how} | {len(found)} | {np.median(size):.0f} ms "
            f"| {np.quantile(size, 0.9):.0f} ms | {size.max():.0f} ms |"
        )
    print(f"{took:.1f} s of computing for {heard:.1f} s of audio, on one thread")


if __name__ == "__main__":
    main()
