"""Keeps some of what a voice was trained on, as codes in one Parquet file, for later fine-tunings.

Owns which rows: so many of each voice, spread evenly over the encoded datasets. A fine-tuning that
sees them beside a new voice does not forget the old ones, and codes are small: an hour of speech
is half a megabyte. --composed leaves out texts of WordNet's, whose notice must go with them.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import texts

from sheen.data.dataset import ENCODED, UTTERANCE_SCHEMA, read_info


def keep_rows(
    folders: Sequence[Path],
    counts: Mapping[str, int],
    may_stay: Callable[[str], bool] = lambda row_id: True,
) -> pa.Table:
    """`counts[voice]` rows of each voice of these datasets, spread evenly over its ids.

    `may_stay` says by its id which row counts. Raises ValueError for datasets of two codecs or of
    texts in two forms, of which the file keeps no record, and for a voice with fewer rows.
    """
    first, *others = (read_info(str(folder)) for folder in folders)
    for folder, info in zip(folders[1:], others, strict=True):
        if info.codec.sha256 != first.codec.sha256:
            raise ValueError(f"{folder}: not of the codec of {folders[0]}")
        if info.normalizer != first.normalizer:
            raise ValueError(
                f"{folder}: its texts are normalized in other ways than those of {folders[0]}; "
                "encode both with the same --language and --phonemes"
            )
    names = UTTERANCE_SCHEMA.names
    parts = [
        pads.dataset(folder / ENCODED, format="parquet").to_table(names).cast(UTTERANCE_SCHEMA)
        for folder in folders
    ]
    rows = pa.concat_tables(parts)
    ids, speakers = rows["id"].to_pylist(), rows["speaker"].to_pylist()
    kept: list[int] = []
    for voice, count in counts.items():
        own = [
            place
            for place, speaker in enumerate(speakers)
            if speaker == voice and may_stay(ids[place])
        ]
        if len(own) < count:
            raise ValueError(f"voice {voice!r} has {len(own)} rows, asked for {count}")
        own.sort(key=ids.__getitem__)
        kept += [own[place * len(own) // count] for place in range(count)]
    return rows.take(kept)


def is_composed(row_id: str, first: int) -> bool:
    """Whether the text of a row of make_corpus.py, and not one of its first `first`, was composed.

    Its id ends in the text's number; one of a shifted copy then has `~` and a number.
    """
    number = re.search(r"-(\d+)(~\d+)?$", row_id)
    return number is not None and int(number[1]) >= first


def voice_and_count(text: str) -> tuple[str, int]:
    """An argument such as `heart=600`."""
    voice, _, count = text.rpartition("=")
    if not voice or not count.isdecimal() or int(count) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected VOICE=ROWS, such as heart=600")
    return voice, int(count)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; wrong use ends it with a message, status 2."""
    parser = argparse.ArgumentParser(description="Keep some rows of encoded datasets in one file.")
    parser.add_argument("data", type=Path, nargs="+", help="folders of jobs/encode.py")
    parser.add_argument(
        "--rows", type=voice_and_count, nargs="+", required=True, metavar="VOICE=ROWS"
    )
    parser.add_argument(
        "--composed",
        type=int,
        metavar="SEED",
        help="only rows of composed sentences of make_corpus.py's --seed; reads WordNet",
    )
    parser.add_argument("--output", type=Path, required=True, help="Parquet file to write")
    args = parser.parse_args(argv)
    voices = [voice for voice, _ in args.rows]
    if twice := next((voice for voice in voices if voices.count(voice) > 1), None):
        parser.error(f"--rows: voice {twice!r} is named twice")
    which = {}
    try:
        if args.composed is not None:
            which["may_stay"] = partial(is_composed, first=len(texts.from_wordnet(args.composed)))
        rows = keep_rows(args.data, dict(args.rows), **which)
    except ValueError as error:
        parser.error(str(error))
    pq.write_table(rows, args.output, compression="zstd", compression_level=19)
    print(f"{args.output}: {len(rows)} rows, {args.output.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
