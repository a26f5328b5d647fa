"""What a reference costs: time to first audio with what was computed of it before, and without.

    python benchmarks/reference.py [--model FOLDER] [--seconds 10] [--repeat 5]

A voice of the model speaks the recording. Then, in each form, a request is the first with it, one
has another text, and one the same text: seconds from the request to its first samples, medians.
Each round has a new engine, and each audio is compared with that of an engine that has computed
nothing before: it has to be equal to the bit. What a model says that was taught no references does
not matter here.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
from numpy.typing import NDArray

import sheen
from sheen.lm.checkpoint import ENGLISH_VOICE
from sheen.text.prompt import ReferenceForm

WORDS = ["the", "train", "was", "late", "but", "we", "made", "it", "in", "time"]
TEXTS = "I left my umbrella on the bus.", "The water was very cold."
CASES = "first", "another text", "the same text"


def recorded(speaker: sheen.Speaker, seconds: float, path: Path) -> str:
    """Write speech of about so many seconds; its words."""
    count = 1
    while True:
        text = " ".join(WORDS[number % len(WORDS)] for number in range(count))
        audio = speaker.synthesize(text, speaker.voices[0] if speaker.voices else None)
        if audio.seconds >= seconds or count >= 200:
            audio.save(path)
            return text
        count += max(1, round(count * (seconds / audio.seconds - 1) / 2))


def asked(
    speaker: sheen.Speaker, text: str, reference: sheen.Reference
) -> tuple[float, NDArray[np.float32]]:
    """Seconds to the first samples, and all of them."""
    started = time.perf_counter()
    stream = speaker.stream(text, reference=reference, temperature=1.0, top_p=1.0)
    chunks = [next(stream)]
    took = time.perf_counter() - started
    return took, np.concatenate([*chunks, *stream])


def measure(model: str, seconds: float, repeat: int, form: ReferenceForm) -> None:
    took: dict[str, list[float]] = {case: [] for case in CASES}
    encoding: list[float] = []
    equal, tokens = True, 0
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reference.wav"
        with sheen.load(model) as speaker:
            text = recorded(speaker, seconds, path)
        for _ in range(repeat):
            audio: dict[str, NDArray[np.float32]] = {}
            with sheen.load(model) as speaker:
                speaker.synthesize("one", speaker.voices[0] if speaker.voices else None)
                started = time.perf_counter()
                reference = speaker.reference(path, text, form=form)
                encoding.append(time.perf_counter() - started)
                tokens = reference.frames.size
                for case, words in zip(CASES, (*TEXTS, TEXTS[0]), strict=True):
                    seconds_taken, audio[case] = asked(speaker, words, reference)
                    took[case].append(seconds_taken)
            with sheen.load(model) as speaker:
                _, other = asked(speaker, TEXTS[1], reference)
            equal &= np.array_equal(other, audio["another text"])
            equal &= np.array_equal(audio["first"], audio["the same text"])
    first = statistics.median(took["first"])
    print(f"{form}: {tokens} tokens of codes, encoded in {statistics.median(encoding):.3f} s")
    for case, times in took.items():
        median = statistics.median(times)
        print(
            f"  {case:14} {1000 * median:7.1f} ms ({1000 * min(times):.1f} to "
            f"{1000 * max(times):.1f}), {median / first:.2f} of the first"
        )
    print(f"  audio equal to that without anything computed before: {'yes' if equal else 'NO'}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a reference costs, first and again.")
    parser.add_argument("--model", default=ENGLISH_VOICE, help="checkpoint")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the recording")
    parser.add_argument("--repeat", type=int, default=5, help="engines")
    options = parser.parse_args(argv)
    for form in get_args(ReferenceForm):
        measure(options.model, options.seconds, options.repeat, form)


if __name__ == "__main__":
    main()
