"""What a long text costs: its words beside those of short texts, and the seams between its chunks.

A text of 4,000 characters is cut into chunks, spoken and joined as the server does, and every chunk
is heard by itself; so are as many texts of the same words that are short enough to be one chunk.
Seams: the largest step between two samples around each, beside the largest inside chunks; and the
longest silence, beside the longest pause that is meant.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sheen.engine.engine import Engine
from sheen.engine.joining import FADE_S, SILENCE, Joiner, pause_after
from sheen.engine.longform import SynthesisParams, Synthesized, synthesize_all
from sheen.engine.sampler import Sampling
from sheen.engine.voice import Voice, load_voice
from sheen.scoring.asr import Pocketsphinx
from sheen.scoring.wer import error_rate
from sheen.text.segmentation import TextChunker, split_sentences

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits"
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CHARACTERS = 4000
MAX_SECONDS = 30.0


def long_text(draw: random.Random) -> str:
    """Sentences of 3 to 25 words, some with clauses."""
    sentences: list[str] = []
    while sum(len(sentence) + 1 for sentence in sentences) < CHARACTERS:
        words = [draw.choice(WORDS) for _ in range(draw.randint(3, 25))]
        for place in range(6, len(words) - 2, 7):
            words[place] += draw.choice(["", ",", ";"])
        sentences.append(" ".join(words) + ".")
    return " ".join(sentences)[:CHARACTERS].rsplit(" ", 1)[0]


def cut(text: str, limit: int) -> list[str]:
    cutter = TextChunker(limit)
    chunks = [chunk for part in split_sentences(text, "en") for chunk in cutter.push(part)]
    return chunks + cutter.finish()


def speak(voice: Voice, speaker: str, texts: list[str]) -> list[NDArray[np.float32]]:
    """Each of the texts, which are short enough to be one chunk."""
    params = SynthesisParams(speaker, Sampling(seed=1), MAX_SECONDS)
    engine = Engine(voice.model, voice.codec, slots=8, max_seq_len=voice.max_seq_len(MAX_SECONDS))
    results = synthesize_all(engine, voice, [(text, params) for text in texts])
    engine.close()
    return [result.samples for result in results if isinstance(result, Synthesized)]


def join(
    waveforms: list[NDArray[np.float32]], texts: list[str], rate: int
) -> tuple[NDArray[np.float32], list[int]]:
    """The stream, and where each chunk but the first begins in it."""
    joiner, stream, starts, length = Joiner(rate), [], [], 0
    for number, (waveform, text) in enumerate(zip(waveforms, texts, strict=True)):
        joiner.begin(pause_after(text), last=number == len(texts) - 1)
        for part in (joiner.push(waveform), joiner.end()):
            stream.append(part)
            length += len(part)
        starts.append(length)
    return np.concatenate(stream), starts[:-1]


def longest_silence(stream: NDArray[np.float32]) -> int:
    loud = np.flatnonzero(np.abs(stream) >= SILENCE)
    return int(np.diff(loud).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(DIGITS / "voice"), help="checkpoint folder")
    parser.add_argument("--grammar", default=str(DIGITS / "digits.gram"))
    parser.add_argument("--voice", action="append", help="default: every voice of the model")
    options = parser.parse_args()
    voice, ear = load_voice(options.model), Pocketsphinx(options.grammar)
    rate = voice.codec.sample_rate
    draw = random.Random(0)
    text = long_text(draw)
    print(
        "| voice | characters | chunks | WER of chunks | WER of short texts | "
        "largest step at a seam, inside | longest silence, longest pause meant |"
    )
    print("|---|---|---|---|---|---|---|")
    for speaker in options.voice or voice.info.voices:
        limit = voice.max_chunk_chars(MAX_SECONDS, speaker)
        chunks = cut(text, limit)
        short = [
            " ".join(draw.choice(WORDS) for _ in range(max(1, len(chunk.split()))))
            for chunk in chunks
        ]
        spoken = speak(voice, speaker, chunks)
        rates = [
            error_rate("word", texts, ear.transcribe(waveforms, rate))
            for texts, waveforms in ((chunks, spoken), (short, speak(voice, speaker, short)))
        ]
        stream, starts = join(spoken, chunks, rate)
        steps = np.abs(np.diff(stream))
        near, fade = np.zeros(len(steps), bool), round(FADE_S * rate)
        for start, chunk in zip(starts, chunks, strict=False):
            before = start - round(pause_after(chunk) * rate) - 2 * fade
            near[before : start + 2 * fade] = True
        pauses = max(pause_after(chunk) for chunk in chunks)
        words = " | ".join(f"{r.rate:.1%} ({r.low:.1%} to {r.high:.1%})" for r in rates)
        print(
            f"| {speaker} | {len(text)} | {len(chunks)} | {words} | "
            f"{steps[near].max():.3f}, {steps[~near].max():.3f} | "
            f"{longest_silence(stream) / rate:.2f} s, {pauses:.2f} s |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
