"""A codec's report on recordings: a table, JSON, and a page with recordings and reconstructions.

Owns the example's choices: the demo's recordings and Whisper base. All measuring is
`sheen.scoring.codec`'s; DNSMOS and level through a codec are `score_codec.py`'s.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import packages
import torch
from score_codec import named, spread

from sheen.audio.io import decode_audio
from sheen.codec.info import describe_codec
from sheen.codec.snac import load_codec
from sheen.data.corpus import plain_rows
from sheen.report.page import save_png
from sheen.scoring.asr.transcribers import open_transcriber
from sheen.scoring.codec import CodecReport, Recording, Waveform, measure_codec
from sheen.scoring.reports import CODEC_PAGE, codec_clip, codec_rows, write_codec_report
from sheen.scoring.speaker_id import enroll_speakers
from sheen.scoring.wer import wer_normalizer
from sheen.storage import files

HERE = Path(__file__).resolve().parent

logger = logging.getLogger(__name__)


def read_recordings(folder: str, sample_rate: int, per_voice: int) -> list[Recording]:
    """Recordings of a manifest, at most `per_voice` of each voice, spread over its list.

    Raises ValueError naming a row that cannot be used: no clip may be missing from the score.
    """
    rows: dict[str | None, list[dict[str, str]]] = {}
    for row in plain_rows(folder):
        if row["reason"] is not None:
            raise ValueError(f"{folder}, {row['source']}: {row['reason']} ({row['detail']})")
        rows.setdefault(row["speaker"], []).append(row)
    recordings = []
    for voice, members in rows.items():
        for row in spread(members, per_voice):
            try:
                waveform = decode_audio(files.read_bytes(row["audio"]), sample_rate)
            except (OSError, ValueError) as error:
                raise ValueError(f"{folder}, {row['source']}: {row['audio']}: {error}") from error
            recordings.append(Recording(row["id"], waveform, row["text"], voice))
    return recordings


def whole_number(least: int) -> Callable[[str], int]:
    """The type of an argument that must be a whole number of at least `least`."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    return number


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description="Report on a codec by recordings with texts.")
    flags.add_argument("--codec", default=str(HERE / "voice" / "codec"), help="folder or hub id")
    flags.add_argument(
        "--data",
        default=str(HERE / "demo"),
        help="recordings with texts: .jsonl or LJSpeech folder",
    )
    flags.add_argument(
        "--profiles",
        help="other recordings of the same voices, for speaker accuracy (default: none)",
    )
    flags.add_argument(
        "--asr", help="as jobs/evaluate.py takes it (default: Whisper base, of packages.py)"
    )
    flags.add_argument("--output", type=Path, default=Path("runs/english/codec-report"))
    flags.add_argument(
        "--per-voice",
        type=whole_number(1),
        default=20,
        help="recordings of each voice, spread over its list (default: %(default)s)",
    )
    flags.add_argument(
        "--seed", type=whole_number(0), default=0, help="of noise, shuffling and intervals"
    )
    flags.add_argument(
        "--threads", type=whole_number(1), default=1, help="CPU threads of the codec"
    )
    flags.add_argument("--image", type=Path, help="PNG to draw of --clip and its reconstruction")
    flags.add_argument("--clip", default="heart-000000", help="id of the recording of --image")
    return flags


def score(args: argparse.Namespace) -> tuple[CodecReport, list[Recording], list[Waveform]]:
    """The report, and the clips that it is about. Raises ValueError naming the flag.

    Whatever can be wrong is looked at before the minutes of measuring.
    """
    with named("--output"):
        args.output.mkdir(parents=True, exist_ok=True)
    if args.image:
        with named("--image"):
            args.image.parent.mkdir(parents=True, exist_ok=True)
    with named("--codec"):
        codec, info = load_codec(args.codec), describe_codec(args.codec)
    with named("--asr"):
        args.asr = args.asr or str(packages.recogniser("base"))
    asr = open_transcriber(args.asr)
    logger.info("reading %s", args.data)
    with named("--data"):
        recordings = read_recordings(args.data, codec.sample_rate, args.per_voice)
    names = [recording.name for recording in recordings]
    if args.image and args.clip not in names:
        raise ValueError(f"--clip {args.clip}: not among the recordings; {names[0]} is one")
    profiles = None
    if args.profiles:
        logger.info("enrolling the speakers of %s", args.profiles)
        with named("--profiles"):
            profiles = enroll_speakers(args.profiles, codec.sample_rate)
    report, decoded = measure_codec(
        codec,
        f"{Path(args.codec).name} (weights {info.sha256[:12]})",
        recordings,
        asr=asr,
        profiles=profiles,
        normalize=wer_normalizer(args.asr, "en"),
        seed=args.seed,
    )
    if args.image:
        shown = names.index(args.clip)
        save_png(codec_clip(report, shown, recordings[shown].waveform, decoded[shown]), args.image)
    return report, recordings, decoded


def main(argv: list[str] | None = None) -> int:
    """The command line; wrong input ends it with a message, status 2."""
    flags = parser()
    args = flags.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    try:
        report, recordings, decoded = score(args)
    except ValueError as error:
        flags.error(str(error))
    normalize = wer_normalizer(args.asr, "en")
    write_codec_report(args.output, report, recordings, decoded, normalize=normalize)
    header, rows = codec_rows(report)
    widths = [max(len(row[j]) for row in [header, *rows]) for j in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    print(
        f"ASR: {report.asr}; seed {report.seed}; {args.threads} thread(s): encodes at "
        f"{report.encode_realtime}, decodes at {report.decode_realtime} times realtime\n"
        f"codes used: {', '.join(f'{level.used} of {level.size}' for level in report.levels)}\n"
        f"page: {args.output / CODEC_PAGE}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
