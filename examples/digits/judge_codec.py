"""Judges a codec on recordings that no training has heard: a table, JSON and a page.

Owns the example's choices (held-out recordings, digits grammar, the four voices' profiles); all
measuring is `sheen.judge.codec_quality`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sheen.core import files
from sheen.core.audio import decode_audio
from sheen.core.codec import describe_codec, load_codec
from sheen.core.manifest import read_manifest
from sheen.judge.codec_quality import Recording, measure_codec
from sheen.judge.codec_report import PAGE_FILE, compare, voice_rows, write_report
from sheen.judge.hearing import POCKETSPHINX, open_transcriber
from sheen.judge.voices import VoiceProfiles
from sheen.report.clips import save_png

HERE = Path(__file__).resolve().parent


def read_recordings(folder: str, sample_rate: int, per_voice: int | None) -> list[Recording]:
    """Recordings of a manifest, at most `per_voice` of each voice, spread over its list.

    Raises ValueError naming a row that cannot be used: a judgement must not leave clips out.
    """
    rows: dict[str | None, list[dict[str, str]]] = {}
    for row in read_manifest(folder).to_pylist():
        if row["reason"] is not None:
            raise ValueError(f"{folder}, {row['source']}: {row['reason']} ({row['detail']})")
        rows.setdefault(row["speaker"], []).append(row)
    recordings = []
    for voice, members in rows.items():
        count = min(per_voice or len(members), len(members))
        for place in range(count):
            row = members[place * len(members) // count]
            waveform = decode_audio(files.read_bytes(row["audio"]), sample_rate)
            recordings.append(Recording(row["id"], waveform, row["text"], voice))
    return recordings


def fit_profiles(folder: str, sample_rate: int) -> VoiceProfiles:
    """Profiles of the voices of a corpus."""
    by_voice: dict[str, list[NDArray[np.float32]]] = {}
    for recording in read_recordings(folder, sample_rate, 40):
        by_voice.setdefault(str(recording.voice), []).append(recording.waveform)
    return VoiceProfiles.fit(by_voice, sample_rate)


def main(argv: list[str] | None = None) -> int:
    """The command line; wrong input ends it with a message, status 2."""
    parser = argparse.ArgumentParser(description="Judge a codec on the held-out recordings.")
    parser.add_argument("--codec", default=str(HERE / "codec"), help="folder or hub id")
    parser.add_argument(
        "--data", default=str(HERE / "heldout"), help="LJSpeech folder or .jsonl with texts"
    )
    parser.add_argument(
        "--profiles",
        default=str(HERE / "corpus"),
        help="recordings of the same voices, for the voice heard; '' leaves it out",
    )
    parser.add_argument("--judge", default=POCKETSPHINX, help="or a transformers ASR id or folder")
    parser.add_argument(
        "--grammar", default=str(HERE / "digits.gram"), help="JSGF of pocketsphinx; '' for none"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/digits/codec-report"))
    parser.add_argument("--per-voice", type=int, help="recordings of each voice (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of noise, shuffling and intervals")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the codec")
    parser.add_argument("--image", type=Path, help="PNG to draw of --clip and its reconstruction")
    parser.add_argument("--clip", default="slt-h050", help="id of the recording of --image")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        codec = load_codec(args.codec)
        info = describe_codec(args.codec)
        grammar = args.grammar if args.judge == POCKETSPHINX else None
        listener = open_transcriber(args.judge, grammar or None)
        recordings = read_recordings(args.data, codec.sample_rate, args.per_voice)
        profiles = fit_profiles(args.profiles, codec.sample_rate) if args.profiles else None
        report, decoded = measure_codec(
            codec,
            f"{Path(args.codec).name} (weights {info.sha256[:12]})",
            recordings,
            listener=listener,
            profiles=profiles,
            seed=args.seed,
        )
    except ValueError as error:
        parser.error(str(error))
    write_report(args.output, report, recordings, decoded)
    if args.image:
        names = [recording.name for recording in recordings]
        if args.clip not in names:
            parser.error(f"--clip {args.clip}: not an id of {args.data}; {names[0]} is one")
        shown = names.index(args.clip)
        save_png(compare(report, shown, recordings[shown].waveform, decoded[shown]), args.image)
    header, rows = voice_rows(report)
    widths = [max(len(row[j]) for row in [header, *rows]) for j in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    print(
        f"judge: {report.listener}; seed {report.seed}; {args.threads} thread(s): encodes at "
        f"{report.encode_realtime}, decodes at {report.decode_realtime} times realtime\n"
        f"codes used: {', '.join(f'{level.used} of {level.size}' for level in report.levels)}\n"
        f"page: {args.output / PAGE_FILE}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
