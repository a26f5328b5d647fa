"""Keeps some of what a voice was trained on, as codes in one Parquet file, for later fine-tunings.

Owns which rows: as many of each voice, drawn evenly over the encoded dataset. A fine-tuning that
sees them beside a new voice does not forget the old ones, and codes are small: an hour of speech
is about 0.5 MB.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from sheen.core.dataset import ENCODED, UTTERANCE_SCHEMA, read_info


def keep_rows(folders: Sequence[Path], per_voice: int) -> pa.Table:
    """`per_voice` rows of each voice of these datasets, spread evenly over its ids.

    Raises ValueError for datasets of two codecs, and for a voice with fewer rows.
    """
    if len({read_info(str(folder)).codec.sha256 for folder in folders}) > 1:
        raise ValueError(f"{', '.join(map(str, folders))}: not all of one codec")
    parts = [pads.dataset(folder / ENCODED, format="parquet").to_table() for folder in folders]
    rows = pa.concat_tables(parts).select(UTTERANCE_SCHEMA.names).cast(UTTERANCE_SCHEMA)
    places: dict[str, list[int]] = {}
    for place, voice in enumerate(rows["speaker"].to_pylist()):
        places.setdefault(voice, []).append(place)
    ids = rows["id"].to_pylist()
    kept: list[int] = []
    for voice, own in sorted(places.items()):
        if len(own) < per_voice:
            raise ValueError(f"voice {voice!r} has {len(own)} rows, asked for {per_voice}")
        own.sort(key=ids.__getitem__)
        kept += [own[place * len(own) // per_voice] for place in range(per_voice)]
    return rows.take(kept)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Keep some rows of encoded datasets in one file.")
    parser.add_argument("data", type=Path, nargs="+", help="folders of jobs/encode.py")
    parser.add_argument("--per-voice", type=int, required=True, help="rows of each voice")
    parser.add_argument("--output", type=Path, required=True, help="Parquet file to write")
    args = parser.parse_args(argv)
    try:
        rows = keep_rows(args.data, args.per_voice)
    except ValueError as error:
        parser.error(str(error))
    pq.write_table(rows, args.output, compression="zstd", compression_level=19)
    print(f"{args.output}: {len(rows)} rows, {args.output.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
