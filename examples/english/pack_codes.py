"""Packs encoded speech for train_on_gpu.py: datasets of jobs/encode.py -> one file of codes.

Owns which utterances are taken and what is printed of them. Checks data, codec and base as the
train job does. A pack is for one base's tokenizer: prompts are in it as token ids.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from code_pack import MEGABYTE, SUFFIX, Pack, to_bytes, write_parts
from numpy.typing import NDArray

from sheen.codec.info import CodecInfo
from sheen.codec.snac import open_codec
from sheen.data.dataset import Utterances
from sheen.lm.checkpoint import ReferenceInfo
from sheen.storage import folders
from sheen.train.data import build_training_set, describe
from sheen.train.inputs import codec_of, model_source, normalizer_of, plan_checkpoint


def seconds_per_frame(codec: CodecInfo) -> float:
    samples = int(np.prod(codec.config["encoder_rates"])) * codec.strides[0]
    return samples / codec.sample_rate


def choose(
    frames: NDArray[np.int64], most_frames: float | None, rows: int | None, seed: int
) -> NDArray[np.int64]:
    """Utterances at random, by their frames: as many as asked for, in the order of the data."""
    order = np.random.default_rng(seed).permutation(len(frames))[:rows]
    if most_frames is not None:
        order = order[np.cumsum(frames[order]) <= most_frames]
    return np.sort(order)


def subset(utterances: Utterances, chosen: NDArray[np.int64]) -> Utterances:
    frames = [utterances.codes(index) for index in chosen]
    return Utterances(
        [utterances.texts[index] for index in chosen],
        [utterances.speakers[index] for index in chosen],
        np.concatenate([utterances.frames[:0], *frames]),
        np.cumsum([0, *map(len, frames)]),
        utterances.dropped,
        utterances.examples,
        [utterances.instructions[index] for index in chosen],
    )


def pack_codes(args: argparse.Namespace) -> tuple[Pack, float]:
    """The pack and its hours of speech. Raises ValueError for what does not fit together."""
    base = model_source(args.base)
    codec, codec_files = codec_of(args.data, args.codec, base)
    info, tokenizer, _ = plan_checkpoint(base, codec)
    info.normalizer = normalizer_of(args.data, base, info)
    layout = info.token_layout
    seconds = seconds_per_frame(codec)
    most_frames = None if args.hours is None else args.hours * 3600 / seconds

    def some(utterances: Utterances) -> Utterances:
        chosen = choose(np.diff(utterances.offsets), most_frames, args.rows, args.seed)
        if not len(chosen):
            raise ValueError(f"--hours {args.hours}: no utterance is that short")
        return subset(utterances, chosen)

    data, properties = build_training_set(
        args.data,
        layout,
        tokenizer,
        min(args.max_tokens, info.max_seq_len),
        args.eval_share,
        args.eval_rows,
        args.seed,
        some,
        args.reference_share,
    )
    properties.add_to(info)
    if args.reference_share:
        info.reference = ReferenceInfo(form="one-turn")
    with folders.local_folder(codec_files) as folder:
        quantizers = open_codec(str(folder))[0].quantizer.quantizers
    codebooks = [part.codebook.weight.detach().numpy() for part in quantizers]
    hours = len(data.frames) * seconds / 3600
    return Pack(data, info.model_dump(mode="json"), codebooks), hours


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Pack encoded speech for train_on_gpu.py.")
    add = parser.add_argument
    add("--data", nargs="+", required=True, help="dataset folders of jobs/encode.py")
    add("--base", required=True, help="base model or checkpoint that will be trained")
    add("--output", type=Path, required=True, help=f"parts are written as OUTPUT{SUFFIX}-N")
    add("--codec", help="of a file of codes; a dataset folder names its own")
    add("--hours", type=float, help="of speech, chosen at random (default: all)")
    add("--rows", type=int, help="utterances, chosen at random (default: all)")
    add("--seed", type=int, default=0, help="of the choice and the held-out texts")
    add("--max-tokens", type=int, default=2048, help="longest sequence (default: %(default)s)")
    add("--eval-share", type=float, default=0.02, help="of the texts, held out (%(default)s)")
    add("--eval-rows", type=int, default=256, help="most held-out utterances (%(default)s)")
    add(
        "--reference-share",
        type=float,
        default=0.0,
        help="of the utterances, to begin with another one of their speaker (%(default)s)",
    )
    add("--part-mb", type=float, default=15.0, help="largest file (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        pack, hours = pack_codes(args)
    except ValueError as error:
        print(f"pack_codes.py: {error}", file=sys.stderr)
        return 2
    content = to_bytes(pack)
    target = args.output.with_name(args.output.name + SUFFIX)
    for path in target.parent.glob(f"{target.name}-*"):
        path.unlink()  # of an earlier pack, perhaps of more parts
    parts = write_parts(content, target.parent, target.name, int(args.part_mb * MEGABYTE))
    print(describe(pack.data.summary))
    for path in parts:
        print(f"{path}: {path.stat().st_size / MEGABYTE:.2f} MB")
    fixed = sum(table.nbytes for table in pack.codebooks) / MEGABYTE
    rate = (len(content) / MEGABYTE - fixed) / hours
    fit = (args.part_mb - fixed) / rate
    print(
        f"{hours:.2f} hours, {rate:.3f} MB an hour: a file of {args.part_mb:g} MB holds {fit:.1f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
