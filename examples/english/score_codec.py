"""Scores a codec on recordings: WER, DNSMOS and level through it, beside the recordings' own.
Where package distillmos is installed, DistillMOS too.

Owns the choice of recordings, the table, `score.json` and `mel.png`.
The same sentences are transcribed twice, from the recording and from what the codec makes of it, so
that the difference is the codec's. WER is after Whisper's English normalizer.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distill_mos import DistillMos
from numpy.typing import NDArray

from sheen.audio.io import decode_audio
from sheen.codec.info import describe_codec
from sheen.codec.layout import Codes
from sheen.codec.snac import Codec, load_codec
from sheen.data.corpus import plain_rows
from sheen.report.page import Clip, clip_row, save_png
from sheen.scoring.asr.transcribers import open_transcriber
from sheen.scoring.code_usage import decode_clip, encode_clips
from sheen.scoring.mos import Dnsmos
from sheen.scoring.packaged import UnscorableError
from sheen.scoring.speaker_id import ALL
from sheen.scoring.wer import (
    ErrorDifference,
    ErrorRate,
    error_rate,
    normalize_english,
    normalize_words,
    word_error_difference,
)
from sheen.storage import files

Waveform = NDArray[np.float32]

JSON_FILE, IMAGE_FILE = "score.json", "mel.png"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """One recording and its reconstruction; `rms` of each is over all its samples. DNSMOS and
    DistillMOS are None for what is silent or too short to score, and the latter without its
    package."""

    id: str
    voice: str | None
    text: str
    seconds: float
    recording_transcript: str
    codec_transcript: str
    recording_dnsmos: float | None
    codec_dnsmos: float | None
    recording_rms: float
    codec_rms: float
    recording_distillmos: float | None = None
    codec_distillmos: float | None = None


@dataclass(frozen=True)
class Scores:
    """Of a voice or all: WER as shares, `rms_ratio` output over input. DNSMOS OVRL and DistillMOS,
    from 1 to 5, are over the clips that have them on both sides; None where no clip has."""

    clips: int
    seconds: float
    recording_wer: ErrorRate
    codec_wer: ErrorRate
    wer_difference: ErrorDifference
    recording_dnsmos: float | None
    codec_dnsmos: float | None
    recording_distillmos: float | None
    codec_distillmos: float | None
    rms_ratio: float


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """At most `count` rows at equal distances over the list."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def read_recordings(manifest: str, count: int, sample_rate: int) -> list[tuple[Any, Waveform]]:
    """Rows with text, and their audio `[n]`. ValueError names a row that cannot be used."""
    chosen = spread(plain_rows(manifest), count)
    for row in chosen:
        if row["reason"] is not None:
            raise ValueError(f"{manifest}, {row['source']}: {row['reason']} ({row['detail']})")
        if not normalize_words(row["text"]):
            raise ValueError(f"{manifest}, {row['source']}: its text has no words to compare")
    found = []
    for row in chosen:
        try:
            waveform = decode_audio(files.read_bytes(row["audio"]), sample_rate)
        except (OSError, ValueError) as error:
            raise ValueError(f"{manifest}, {row['source']}: {row['audio']}: {error}") from error
        found.append((row, waveform))
    return found


def overall(dnsmos: Dnsmos, waveform: Waveform, sample_rate: int) -> float | None:
    """DNSMOS OVRL of a waveform `[n]`; None where it is silent or too short."""
    try:
        return dnsmos.score(waveform, sample_rate).ovrl
    except UnscorableError as error:
        logger.warning("no DNSMOS: %s", error)
        return None


def rms(waveform: Waveform) -> float:
    """Root mean square of a waveform `[n]`."""
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def summarise(clips: Sequence[Scored], seed: int) -> Scores:
    """The scores of clips together. RMS is over all their samples; the others but WER are means
    over clips."""
    texts = [normalize_english(clip.text) for clip in clips]
    recorded = [normalize_english(clip.recording_transcript) for clip in clips]
    coded = [normalize_english(clip.codec_transcript) for clip in clips]
    dnsmos = pair_means([(c.recording_dnsmos, c.codec_dnsmos) for c in clips])
    distillmos = pair_means([(c.recording_distillmos, c.codec_distillmos) for c in clips])
    power = [
        sum(clip.seconds * level**2 for clip, level in zip(clips, levels, strict=True))
        for levels in ([c.recording_rms for c in clips], [c.codec_rms for c in clips])
    ]
    return Scores(
        clips=len(clips),
        seconds=sum(clip.seconds for clip in clips),
        recording_wer=error_rate("word", texts, recorded, seed=seed),
        codec_wer=error_rate("word", texts, coded, seed=seed),
        wer_difference=word_error_difference(texts, recorded, coded, seed=seed),
        recording_dnsmos=dnsmos[0],
        codec_dnsmos=dnsmos[1],
        recording_distillmos=distillmos[0],
        codec_distillmos=distillmos[1],
        rms_ratio=float(np.sqrt(power[1] / power[0])) if power[0] else float("nan"),
    )


def pair_means(
    scored: Sequence[tuple[float | None, float | None]],
) -> tuple[float, float] | tuple[None, None]:
    """The mean of each side over the pairs that have both."""
    pairs = [pair for pair in scored if None not in pair]
    if not pairs:
        return None, None
    first, second = np.array(pairs, np.float64).mean(axis=0)
    return float(first), float(second)


def by_voice(clips: Sequence[Scored], seed: int) -> dict[str, Scores]:
    """Scores of each voice where there are several, and of ALL."""
    voices = sorted({clip.voice for clip in clips if clip.voice is not None})
    groups = {voice: [clip for clip in clips if clip.voice == voice] for voice in voices}
    if len(voices) < 2:
        groups = {}
    return {voice: summarise(members, seed) for voice, members in (groups | {ALL: clips}).items()}


def render_table(scores: dict[str, Scores]) -> str:
    """Lines of text; WER in percent, its difference in points with the 95% interval. DistillMOS
    only where it was measured."""
    second_judge = any(found.codec_distillmos is not None for found in scores.values())
    header = "voice|clips|seconds|WER recordings|WER codec|difference"
    header += "|DNSMOS recordings|codec|difference"
    header += "|DistillMOS recordings|codec|difference" if second_judge else ""
    rows = [f"{header}|RMS out/in".split("|")]
    for voice, found in scores.items():
        distillmos = found.recording_distillmos, found.codec_distillmos
        more = found.wer_difference
        points = [f"{100 * value:+.1f}" for value in (more.difference, more.low, more.high)]
        rows.append(
            [
                voice,
                str(found.clips),
                f"{found.seconds:.0f}",
                f"{100 * found.recording_wer.rate:.1f}%",
                f"{100 * found.codec_wer.rate:.1f}%",
                f"{points[0]} [{points[1]}, {points[2]}]",
                *mos_cells(found.recording_dnsmos, found.codec_dnsmos),
                *(mos_cells(*distillmos) if second_judge else ()),
                f"{found.rms_ratio:.3f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def mos_cells(recordings: float | None, codec: float | None) -> list[str]:
    """Both, and how much higher the codec's is."""
    if recordings is None or codec is None:
        return [""] * 3
    return [f"{recordings:.2f}", f"{codec:.2f}", f"{codec - recordings:+.2f}"]


def open_distillmos() -> DistillMos | None:
    """None where its package is not installed, said in the log."""
    try:
        return DistillMos()
    except ValueError as error:
        logger.warning("no DistillMOS: %s", error)
        return None


def score(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, write the image, and return what `score.json` holds. ValueError names the flag."""
    with named("--output"):
        args.output.mkdir(parents=True, exist_ok=True)
    with named("--codec"):
        codec, info = load_codec(args.codec), describe_codec(args.codec)
    if args.levels is not None and args.levels > len(info.strides):
        raise ValueError(f"--levels {args.levels}: the codec has {len(info.strides)}")
    asr = open_transcriber(args.asr)
    dnsmos, distillmos = Dnsmos(), open_distillmos()
    with named("--recordings"):
        found = read_recordings(args.recordings, args.count, codec.sample_rate)
    logger.info("encoding and decoding %d recordings", len(found))
    decoded = _through(codec, [waveform for _, waveform in found], args.seed, args.levels)
    clips = []
    for (row, waveform), made in zip(found, decoded, strict=True):
        before, after = asr.transcribe([waveform, made], codec.sample_rate)
        second = [
            None if distillmos is None else distillmos.score(side, codec.sample_rate)
            for side in (waveform, made)
        ]
        clips.append(
            Scored(
                id=row["id"],
                voice=row["speaker"],
                text=row["text"],
                seconds=len(waveform) / codec.sample_rate,
                recording_transcript=before,
                codec_transcript=after,
                recording_dnsmos=overall(dnsmos, waveform, codec.sample_rate),
                codec_dnsmos=overall(dnsmos, made, codec.sample_rate),
                recording_rms=rms(waveform),
                codec_rms=rms(made),
                recording_distillmos=second[0],
                codec_distillmos=second[1],
            )
        )
        logger.info("%d of %d: %s", len(clips), len(found), json.dumps(asdict(clips[-1])))
    shown = [
        Clip("recording", found[0][1], codec.sample_rate),
        Clip("codec", decoded[0], codec.sample_rate),
    ]
    save_png(clip_row(shown, clips[0].text), args.output / IMAGE_FILE)
    scores = by_voice(clips, args.seed)
    return {
        "codec": args.codec,
        "codec_sha256": info.sha256,
        "asr": asr.name,
        "recordings": args.recordings,
        "levels": args.levels,
        "seed": args.seed,
        "scores": {voice: asdict(each) for voice, each in scores.items()},
        "clips": [asdict(clip) for clip in clips],
        "table": render_table(scores),
    }


def _through(
    codec: Codec, waveforms: Sequence[Waveform], seed: int, levels: int | None
) -> list[Waveform]:
    codes, _ = encode_clips(codec, waveforms)
    if levels is not None:
        codes = [first_levels(own, other, levels) for own, other in zip_rotated(codes)]
    return [
        decode_clip(codec, clip, len(waveform), seed)
        for clip, waveform in zip(codes, waveforms, strict=True)
    ]


def zip_rotated(codes: Sequence[Codes]) -> Iterator[tuple[Codes, Codes]]:
    """Each with the next, the last with the first."""
    return zip(codes, [*codes[1:], *codes[:1]], strict=True)


def first_levels(own: Codes, other: Codes, levels: int) -> Codes:
    """`own` codes of the first levels, and of the rest those of another recording, repeated to the
    same length: what an LM says that gets only the first levels right."""
    rest = [np.resize(theirs, len(ours)) for ours, theirs in zip(own, other, strict=True)]
    return [*own[:levels], *rest[levels:]]


@contextmanager
def named(flag: str) -> Iterator[None]:
    """Errors inside are about this flag."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{flag}: {error}") from error


def at_least_one(text: str) -> int:
    """The type of --count."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description="Score a codec on recordings with texts.")
    flags.add_argument("--codec", required=True, help="folder or hub id")
    flags.add_argument(
        "--recordings", required=True, help=".jsonl manifest or LJSpeech folder, with texts"
    )
    flags.add_argument("--asr", default="base", help="as jobs/evaluate.py (default: %(default)s)")
    flags.add_argument(
        "--count",
        type=at_least_one,
        default=100,
        help="recordings, spread over the manifest (default: %(default)s)",
    )
    flags.add_argument(
        "--levels",
        type=at_least_one,
        help="so many levels keep their codes, the others get those of another recording: which "
        "levels carry the words (default: all)",
    )
    flags.add_argument("--output", type=Path, required=True, help="folder of the results")
    flags.add_argument("--seed", type=int, default=0, help="of the codec's noise and intervals")
    return flags


def main(argv: list[str] | None = None) -> int:
    """The command line; wrong input ends it with a message, status 2."""
    flags = parser()
    args = flags.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    try:
        result = score(args)
    except ValueError as error:
        flags.error(str(error))
    table = result.pop("table")
    (args.output / JSON_FILE).write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(table)
    print(f"{result['asr']}; {args.output / JSON_FILE}, {args.output / IMAGE_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
