"""A long text spoken as one: WER, pauses, the joins of its chunks, and one voice to the end.

Owns the choice of what is measured. The text goes the way of `sheen.load(...).synthesize`, which
divides it into chunks and joins their samples; here the places of the joins are kept.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import packages
import torch
from numpy.typing import NDArray

from sheen.engine.engine import Engine
from sheen.engine.longform import inline, open_speech
from sheen.engine.types import RequestError, SynthesisParams
from sheen.engine.voice import Voice, load_voice
from sheen.scoring.asr.transcribers import open_transcriber
from sheen.scoring.mos import Dnsmos
from sheen.scoring.speaker_id import SpeakerEncoder, SpeakerProfiles, enroll_speakers
from sheen.scoring.speech import measure_sound
from sheen.scoring.wer import error_rate, normalize_english
from sheen.speaker import Audio

HERE = Path(__file__).resolve().parent
PARTS = 5
NEAR_S = 0.01
"""At most so far from the zeros of a join's pause, samples are the join's: twice the fades."""

Waveform = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prose:
    """`joins`: the first sample of each chunk but the first."""

    audio: Audio
    joins: list[int]


def speak(voice: Voice, text: str, name: str | None, max_seconds: float, seed: int) -> Prose:
    """The text in the voice of that name. Raises RequestError."""
    params = SynthesisParams(name, voice.sampling(seed), max_seconds)
    engine = Engine(voice.model, voice.codec, slots=1, max_seq_len=voice.max_seq_len(max_seconds))

    async def spans() -> Prose:
        spoken: list[Waveform] = []
        starts: list[int] = []
        length = 0
        with closing(open_speech(engine, voice, text, params, inline(voice.model_input))) as speech:
            async for span in speech.spans():
                # A chunk's text is there from its first samples on, and the pause before it is
                # part of the chunk before.
                starts += [length] * (len(speech.texts) - len(starts))
                spoken.append(span.samples)
                length += len(span.samples)
        reason = speech.progress.finish_reason or "stop"
        return Prose(Audio(np.concatenate(spoken), voice.codec.sample_rate, reason), starts[1:])

    with closing(engine):
        return asyncio.run(spans())


def largest_steps(prose: Prose) -> tuple[float, float]:
    """The largest difference of two successive samples at the joins, and elsewhere; NaN where there
    is no join."""
    samples, near = prose.audio.samples, round(NEAR_S * prose.audio.sample_rate)
    steps = np.abs(np.diff(samples))
    sounding = np.flatnonzero(samples)
    at_join = np.zeros(len(steps), bool)
    for join in prose.joins:
        end = sounding[max(0, np.searchsorted(sounding, join) - 1)]  # of the sound before the pause
        at_join[max(0, end - near) : join + near] = True
    if not at_join.any():
        return float("nan"), float(steps.max())
    return float(steps[at_join].max()), float(steps[~at_join].max())


def similarities(
    parts: Sequence[Waveform], rate: int, profiles: SpeakerProfiles | None, name: str | None
) -> list[float]:
    """Of each part: on the scale of the recordings' profiles, or the cosine with the first part."""
    encoder = SpeakerEncoder()
    points = [encoder.embed(part, rate) for part in parts]
    if profiles is None or name is None:
        return [float(point @ points[0]) for point in points]
    return [profiles.similarity(point, name) for point in points]


def report(args: argparse.Namespace) -> list[str]:
    """Speak, measure; the lines to print. ValueError names the flag."""
    text = args.text.read_text("utf-8").strip()
    asr = open_transcriber(args.asr or str(packages.recogniser("base")))
    dnsmos = Dnsmos()
    voice = load_voice(str(args.model))
    name = args.voice or next(iter(voice.info.voices), None)
    profiles = None
    if args.voice_recordings:
        profiles = enroll_speakers(args.voice_recordings, voice.codec.sample_rate)
        if name not in profiles.voices:
            known = ", ".join(profiles.voices)
            raise ValueError(f"--voice-recordings: none of voice {name!r}, only of {known}")
    try:
        prose = speak(voice, text, name, args.max_seconds, args.seed)
    except RequestError as error:
        raise ValueError(f"{error.field}: {error}") from error
    audio = prose.audio
    if args.output:
        audio.save(args.output)
    (heard,) = asr.transcribe([audio.samples], audio.sample_rate)
    wer = error_rate("word", [normalize_english(text)], [normalize_english(heard)])
    parts = np.array_split(audio.samples, PARTS)
    near = similarities(parts, audio.sample_rate, profiles, name)
    at_joins, elsewhere = largest_steps(prose)
    scale = "cosine with the first" if profiles is None else "1: its recordings, 0: the nearest's"
    lines = [
        f"{len(text)} characters, {audio.seconds:.1f} s in {len(prose.joins) + 1} chunks, "
        f"finish reason {audio.finish_reason}",
        f"WER {wer.rate:.1%}: {wer.errors} errors in {wer.units} words; {asr.name}",
        f"longest pause {measure_sound(audio.samples, audio.sample_rate).pause:.2f} s",
        f"largest step at a join {at_joins:.3f}, elsewhere {elsewhere:.3f} of full scale",
        f"speaker similarity ({scale}) and DNSMOS OVRL by fifths:",
    ]
    for part, similarity in zip(parts, near, strict=True):
        lines.append(f"  {similarity:.2f}  {dnsmos.score(part, audio.sample_rate).ovrl:.2f}")
    return [*lines, f"transcript: {heard}"]


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description="Speak a long text and measure the result.")
    flags.add_argument("--model", type=Path, default=HERE / "voice", help="(default: %(default)s)")
    flags.add_argument("--voice", help="(default: the checkpoint's first)")
    flags.add_argument("--text", type=Path, default=HERE / "prose.txt", help="(default: prose.txt)")
    flags.add_argument("--asr", help="as jobs/evaluate.py (default: Whisper base, of packages.py)")
    flags.add_argument(
        "--voice-recordings", help="as jobs/evaluate.py, for similarity with the voice's recordings"
    )
    flags.add_argument("--output", help="audio file to write, in the format of its suffix")
    flags.add_argument("--seed", type=int, default=0, help="of sampling (default: %(default)s)")
    flags.add_argument(
        "--max-seconds", type=float, default=30.0, help="of a chunk (default: %(default)s)"
    )
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; wrong input ends it with a message, status 2."""
    flags = parser()
    torch.set_num_threads(1)
    try:
        print("\n".join(report(flags.parse_args(argv))))
    except (OSError, ValueError) as error:
        flags.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
