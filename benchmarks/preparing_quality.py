"""The rows of `sheen prepare` compared with what the recordings are known to hold.

    apt-get install asterisk-core-sounds-en-g722 asterisk-core-sounds-en
    python benchmarks/preparing_quality.py --asr WHISPER --clips 120

A person's recordings with published texts, which this repository does not include, joined with
pauses to one long file, and then one by one with their texts, a tenth of them exchanged. Voices of
the English demo: three who take turns in one recording, with pauses between them and without, two
on the channels of a call. A job that is killed while it transcribes and resumed, compared with one
that is not.
"""

import argparse
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import soundfile
from numpy.typing import NDArray

from sheen.audio.io import decode_audio
from sheen.prepare.config import PrepareConfig
from sheen.prepare.cutting.cut import CutSettings
from sheen.prepare.job import run
from sheen.prepare.rejections.reasons import word_at
from sheen.scoring.asr.transcript import Word, refine
from sheen.scoring.asr.whisper import WINDOW_S, FasterWhisper
from sheen.scoring.wer import error_rate, normalize_english

SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "english" / "demo"
RATE = 16_000
LEAST_S = 2.0
EDGE_S = 0.3
"""A row that begins or ends further within a clip holds a part of it."""
EVERY_S = 10.0
ANSWER_S = 0.05, 0.2
"""Shortest and longest pause before somebody who answers."""
SAID = 3
"""Clips of a voice that follow one another before another voice answers."""
LEAK_DB = -25.0
"""How loud a speaker is on the other channel of a call."""

Waveform = NDArray[np.float32]
Row = dict[str, Any]


@dataclass(frozen=True)
class Clip:
    name: str
    text: str
    speaker: str
    samples: Waveform

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


@dataclass(frozen=True)
class Placed:
    clip: Clip
    start: float

    @property
    def end(self) -> float:
        return self.start + self.clip.seconds

    def shared(self, start: float, end: float) -> float:
        """Seconds that lie in a span."""
        return max(0.0, min(self.end, end) - max(self.start, start))


def read_person(count: int) -> list[Clip]:
    """Random clips of at least `LEAST_S`, none with a note such as `[beep]` in its text."""
    clips = []
    for line in gzip.decompress(TEXTS.read_bytes()).decode().splitlines():
        name, colon, text = line.partition(": ")
        path = SOUNDS / f"{name}.g722"
        if colon and not line.startswith(";") and path.is_file() and not re.search(r"[<\[]", text):
            with av.open(str(path), format="g722") as file:
                frames = [frame.to_ndarray()[0] for frame in file.decode(audio=0)]
            samples = np.concatenate(frames).astype(np.float32) / 32768
            clips.append(Clip(name.replace("/", "-"), text.strip(". "), "allison", samples))
    clips = [clip for clip in clips if clip.seconds >= LEAST_S]
    chosen = np.random.default_rng(0).permutation(len(clips))[:count]
    return [clips[place] for place in sorted(chosen)]


def read_voice(voice: str, count: int) -> list[Clip]:
    rows = [json.loads(line) for line in (DEMO / f"{voice}.jsonl").read_text().splitlines()]
    clips = [
        Clip(row["id"], row["text"], voice, decode_audio((DEMO / row["audio"]).read_bytes(), RATE))
        for row in rows[:60]
    ]
    return [clip for clip in clips if clip.seconds >= LEAST_S][:count]


def joined(
    clips: Sequence[Clip],
    channels: Sequence[str] = ("",),
    between: tuple[float, float] = (0.35, 1.2),
) -> tuple[Waveform, list[Placed]]:
    """With pauses of 0.35 to 1.2 s, between voices of `between`, and a little noise, `[n,
    channels]`: a speaker on each."""
    rng = np.random.default_rng(1)
    parts: list[Waveform] = []
    placed: list[Placed] = []
    count = 0
    leak = 10 ** (LEAK_DB / 20)
    for clip in clips:
        same = not placed or placed[-1].clip.speaker == clip.speaker
        count += round(rng.uniform(*((0.35, 1.2) if same else between)) * RATE)
        placed.append(Placed(clip, count / RATE))
        gains = [1.0 if name in ("", clip.speaker) else leak for name in channels]
        parts.append(clip.samples[:, None] * np.array(gains, np.float32))
        count += len(clip.samples)
    whole = 1e-4 * rng.standard_normal((count + RATE, len(channels))).astype(np.float32)
    for part, place in zip(parts, placed, strict=True):
        first = round(place.start * RATE)
        whole[first : first + len(part)] += part
    return whole, placed


def prepare(folder: Path, given: Path, asr: str, **fields: Any) -> tuple[list[Row], list[Row]]:
    """The rows that are kept, and those that are refused."""
    config = {"input": str(given), "output": str(folder), "asr": asr, "language": "en", **fields}
    run(PrepareConfig(**config))
    kept, refused = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("manifest.jsonl", "rejected.jsonl")
    )
    return kept, refused


def words_of(placed: Sequence[Placed], asr: str) -> list[Word]:
    """The words of the known texts, at their times in the whole recording: aligned by a Whisper,
    with the pauses between them given to neither. A clip that is too long for it has none."""
    aligner = FasterWhisper(asr)
    found = []
    for place in placed:
        if place.clip.seconds > WINDOW_S:
            print(
                f"  {place.clip.name}, {place.clip.seconds:.1f} s, is too long to align its words"
            )
            continue
        texts = place.clip.text.split()
        times = aligner.align(place.clip.samples, RATE, texts)
        times = refine(place.clip.samples, RATE, times)
        found += [
            Word(text, place.start + start, place.start + end)
            for text, (start, end) in zip(texts, times, strict=True)
        ]
    return found


def show_joined(folder: Path, clips: Sequence[Clip], asr: str) -> None:
    samples, placed = joined(clips)
    soundfile.write(folder / "joined.flac", samples, RATE)
    rows, refused = prepare(folder / "1", folder / "joined.flac", asr, num_speakers=None)
    speech = sum(clip.seconds for clip in clips)
    kept = sum(place.shared(row["start"], row["end"]) for row in rows for place in placed)
    within, said, transcribed = 0, [], []
    for row in [*rows, *refused]:
        here = [place for place in placed if place.shared(row["start"], row["end"]) > EDGE_S]
        whole = all(
            place.start > row["start"] - EDGE_S and place.end < row["end"] + EDGE_S
            for place in here
        )
        within += not whole
        if whole and row.get("reason") is None:
            said.append(normalize_english(" ".join(place.clip.text for place in here)))
            transcribed.append(normalize_english(row["text"]))
    seconds = len(samples) / RATE
    every = np.arange(EVERY_S, seconds, EVERY_S)
    cuts = sum(any(place.start < at < place.end for place in placed) for at in every)
    words = words_of(placed, asr)
    ends = [row[end] for row in rows for end in ("start", "end")]
    all_ends = ends + [row[end] for row in refused if row["end"] for end in ("start", "end")]
    in_word, all_in_word, every_in_word = (
        _in_words(words, places) for places in (ends, all_ends, every)
    )
    print(f"joined: {len(clips)} clips, {seconds:.0f} s, one recording without a text")
    print(f"  {len(rows)} rows kept, {len(refused)} refused: {reasons(refused)}")
    print(f"  speech kept: {kept / speech:.1%}")
    print(f"  rows with part of a clip: {within}; ends within speech: {_in_speech(rows)}")
    print(f"  within a word of the texts: {len(in_word)} of {len(ends)} ends of kept rows "
          f"{in_word}, {len(all_in_word)} of {len(all_ends)} with refused ones")  # fmt: skip
    print(f"  cut every {EVERY_S:g} s, {cuts} of {len(every)} cuts lie within a clip, "
          f"{len(every_in_word)} within a word")  # fmt: skip
    wer = error_rate("word", said, transcribed)
    print(f"  WER of the transcripts: {wer.rate:.1%} [{wer.low:.1%}, {wer.high:.1%}]")


def _in_words(words: Sequence[Word], places: Sequence[float]) -> list[str]:
    return [
        f"{word.text!r}, {at - word.start:.2f} s into {word.end - word.start:.2f} s"
        for at in places
        for word in words
        if word_at([word], at)
    ]


def _in_speech(rows: Sequence[Row]) -> int:
    return sum(row[end] == "quietest place" for row in rows for end in ("start_at", "end_at"))


def reasons(rows: Sequence[Row]) -> str:
    counted = Counter(row["reason"] for row in rows)
    return ", ".join(f"{count} {reason}" for reason, count in counted.most_common()) or "none"


def show_exchanged(folder: Path, clips: Sequence[Clip], asr: str) -> None:
    rng = np.random.default_rng(2)
    exchanged = rng.permutation(len(clips))[: max(2, len(clips) // 10)]
    texts = [clip.text for clip in clips]
    for place, other in zip(exchanged, np.roll(exchanged, 1), strict=True):
        texts[place] = clips[other].text
    lines = []
    for clip, text in zip(clips, texts, strict=True):
        soundfile.write(folder / f"{clip.name}.flac", clip.samples, RATE)
        lines.append(json.dumps({"audio": f"{clip.name}.flac", "text": text, "id": clip.name}))
    (folder / "rows.jsonl").write_text("\n".join(lines), "utf-8")
    rows, refused = prepare(folder / "2", folder / "rows.jsonl", asr, num_speakers=None, check=True)
    wrong = {clips[place].name for place in exchanged if texts[place] != clips[place].text}
    caught = {row["id"] for row in refused if row["reason"] == "text and audio differ"}
    doubtful = {row["id"] for row in rows if row["text_doubtful"]}
    print(f"exchanged: {len(clips)} clips with their texts, {len(wrong)} of them exchanged")
    print(f"  exchanged texts refused: {len(wrong & caught)}, kept: {len(wrong - caught)}")
    print(f"  right texts refused: {sorted(caught - wrong)}")
    print(f"  right texts doubtful: {len(doubtful - wrong)}; refused otherwise: "
          f"{reasons([row for row in refused if row['id'] not in caught])}")  # fmt: skip


def show_voices(folder: Path, asr: str, count: int) -> None:
    voices = [read_voice(voice, count) for voice in ("af_aoede", "bf_alice", "heart")]
    clips = [clip for turn in zip(*voices, strict=True) for clip in turn]
    samples, placed = joined(clips)
    soundfile.write(folder / "turns.flac", samples, RATE)
    for pause in (CutSettings.pause_seconds, 0.3):
        output = folder / f"3-{pause}"
        rows, _ = prepare(output, folder / "turns.flac", asr, pause_seconds=pause)
        title = f"voices: {len(voices)} in turns, {len(clips)} clips, --pause-seconds {pause:g}"
        _print_speakers(title, rows, placed)


def show_answers(folder: Path, asr: str, count: int) -> None:
    voices = [read_voice(voice, count) for voice in ("am_onyx", "bf_alice", "heart")]
    clips = [
        clip
        for first in range(0, count, SAID)
        for voice in voices
        for clip in voice[first : first + SAID]
    ]
    samples, placed = joined(clips, between=ANSWER_S)
    soundfile.write(folder / "answers.flac", samples, RATE)
    rows, refused = prepare(folder / "7", folder / "answers.flac", asr)
    _print_speakers(f"answers without a pause: {len(clips)} clips", rows, placed)
    two = [row for row in refused if row["reason"] == "two speakers"]
    right = sum(_both(row, placed) for row in two)
    print(f"  refused as two speakers: {right} of two voices, {len(two) - right} of one; "
          f"otherwise: {reasons([row for row in refused if row not in two])}")  # fmt: skip


def show_call(folder: Path, asr: str, count: int) -> None:
    names = ("am_onyx", "af_bella")
    voices = [read_voice(voice, count) for voice in names]
    clips = [clip for turn in zip(*voices, strict=True) for clip in turn]
    samples, placed = joined(clips, names)
    soundfile.write(folder / "call.flac", samples, RATE)
    rows, refused = prepare(folder / "4", folder / "call.flac", asr, channels="each")
    print(f"call: refused {reasons(refused)}")
    _print_speakers(f"call: {len(names)} channels, {len(clips)} clips", rows, placed)
    wrong = sum(
        names[row["audio_channel"]] != _speaker_of(row, placed).most_common(1)[0][0] for row in rows
    )
    print(f"  rows on the channel of the other speaker: {wrong}")


def show_killed(folder: Path, clips: Sequence[Clip], asr: str) -> None:
    given = folder / "killed.flac"
    soundfile.write(given, joined(clips)[0], RATE)
    output = folder / "5"
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), "--input", str(given)]
    command += ["--output", str(output), "--asr", asr, "--language", "en"]
    job = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while job.poll() is None and not any((output / "transcripts").rglob("*.parquet")):
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    done = sum(len(pq.read_table(path)) for path in (output / "transcripts").rglob("*.parquet"))
    resumed = prepare(output, given, asr)
    print(f"killed: {len(clips)} clips; {done} segments were transcribed when the job was killed")
    print(f"  rows as without: {resumed == prepare(folder / '6', given, asr)} ({len(resumed[0])})")


def _speaker_of(row: Row, placed: Sequence[Placed]) -> Counter[str]:
    """Seconds of each voice in a row."""
    found: Counter[str] = Counter()
    for place in placed:
        if shared := place.shared(row["start"], row["end"]):
            found[place.clip.speaker] += shared
    return found


def _both(row: Row, placed: Sequence[Placed]) -> bool:
    """Whether a second voice has a part in a row."""
    voices = _speaker_of(row, placed)
    return sum(voices.values()) - max(voices.values()) > EDGE_S


def _print_speakers(title: str, rows: Sequence[Row], placed: Sequence[Placed]) -> None:
    """Each speaker that was found stands for the voice that it has most of."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    mixed = 0
    for row in rows:
        voices = _speaker_of(row, placed)
        mixed += _both(row, placed)
        ((name, _),) = voices.most_common(1)
        votes[row["speaker"]][name] += 1
    right = sum(max(counted.values()) for counted in votes.values())
    print(f"{title}: {len(rows)} rows, {len(votes)} speakers found")
    print(f"  rows with another speaker than theirs: {len(rows) - right}; of two voices: {mixed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--asr", required=True, help="as of `sheen prepare`, such as tiny.en")
    parser.add_argument("--clips", type=int, default=120, help="of the person")
    parser.add_argument("--turns", type=int, default=12, help="of each voice")
    names = ("joined", "exchanged", "voices", "answers", "call", "killed")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    clips = read_person(args.clips) if {"joined", "exchanged", "killed"} & {*args.parts} else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "joined" in args.parts:
            show_joined(folder, clips, args.asr)
        if "exchanged" in args.parts:
            show_exchanged(folder, clips, args.asr)
        if "voices" in args.parts:
            show_voices(folder, args.asr, args.turns)
        if "answers" in args.parts:
            show_answers(folder, args.asr, args.turns)
        if "call" in args.parts:
            show_call(folder, args.asr, args.turns)
        if "killed" in args.parts:
            show_killed(folder, clips[: args.turns], args.asr)


if __name__ == "__main__":
    main()
