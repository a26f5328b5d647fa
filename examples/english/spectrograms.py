"""One sentence as recorded, as the codec reconstructs it, and as checkpoints speak it: a PNG.

Owns the picture alone; what it shows is judged by `jobs/evaluate.py`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import sheen
from sheen.audio.io import decode_audio
from sheen.codec.info import CODEC_FOLDER
from sheen.codec.snac import load_codec
from sheen.data.corpus import plain_rows
from sheen.report.page import Clip, clip_row, save_png
from sheen.scoring.code_usage import decode_clip


def find_row(recordings: Path, row_id: str) -> tuple[str, bytes]:
    """The text and the file of a recording. ValueError where no row has this id."""
    for row in plain_rows(str(recordings)):
        if row["id"] == row_id and row["reason"] is None:
            return row["text"], Path(row["audio"]).read_bytes()
    raise ValueError(f"--recordings {recordings}: no recording {row_id!r}")


def speaker_and_voice(text: str) -> tuple[Path, str]:
    """An argument such as `runs/demo/train/checkpoint=af_bella`."""
    folder, _, voice = text.rpartition("=")
    if not folder or not voice:
        raise argparse.ArgumentTypeError(f"{text!r}: expected CHECKPOINT=VOICE")
    return Path(folder), voice


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; what is not there ends it with a message, status 2."""
    parser = argparse.ArgumentParser(description="Draw a sentence, recorded and spoken.")
    add = parser.add_argument
    add("--recordings", type=Path, required=True, help="as jobs/encode.py takes them")
    add("--id", required=True, help="of the recording; its text is spoken")
    add(
        "--speakers",
        type=speaker_and_voice,
        nargs="+",
        required=True,
        metavar="CHECKPOINT=VOICE",
        help="the first one's codec is drawn, too",
    )
    add("--output", type=Path, required=True, help="PNG to write")
    args = parser.parse_args(argv)
    try:
        text, file = find_row(args.recordings, args.id)
        codec = load_codec(str(args.speakers[0][0] / CODEC_FOLDER))
        recording = decode_audio(file, codec.sample_rate)
        (codes,) = codec.encode([torch.from_numpy(recording)])
        reconstruction = decode_clip(codec, codes, len(recording), seed=0)
        clips = [
            Clip("recording", recording, codec.sample_rate),
            Clip("codec", reconstruction, codec.sample_rate),
        ]
        for folder, voice in args.speakers:
            with sheen.load(str(folder), device="cpu") as speaker:
                audio = speaker.synthesize(text, voice)
            clips.append(Clip(f"{folder.name}: {voice}", audio.samples, audio.sample_rate))
    except ValueError as error:
        parser.error(str(error))
    save_png(clip_row(clips, text), args.output, stacked=True)
    print(f"{args.output}: {text!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
