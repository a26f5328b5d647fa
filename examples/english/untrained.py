"""The control of the voice's tables: the shipped checkpoint with weights that no training made.

Shape, tokenizer, codec and settings stay; the model's weights are drawn anew from a seed, as
transformers draws those of its config.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

CHECKPOINT = Path(__file__).resolve().parent / "voice"


def write_untrained(checkpoint: Path, output: Path, seed: int) -> None:
    """Write `checkpoint` with redrawn weights, in bfloat16, to `output`.

    Raises ValueError when `output` exists.
    """
    if output.exists():
        raise ValueError(f"--output {output} exists: name another or delete it")
    shutil.copytree(checkpoint, output, ignore=shutil.ignore_patterns("README.md"))
    for path in output.glob("*.safetensors*"):
        path.unlink()
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(output)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    lm.to(torch.bfloat16).save_pretrained(output)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; wrong use ends it with a message, status 2."""
    parser = argparse.ArgumentParser(description="Write a checkpoint that no training made.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT, help="of this shape (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        write_untrained(args.checkpoint, args.output, args.seed)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
