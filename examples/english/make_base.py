"""Makes an untrained base model small enough to train on a CPU: a plain transformers folder.

Owns the small model's shape and its character tokenizer. It adds no audio tokens: the
train job does that to any base.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sheen.text.phonemes import ALPHABET, STRESS, VOWELS

HEAD_DIM = 64
POSITIONS = 2048  # 24 s of audio tokens at SNAC 24 kHz's 82.03 a second, with some text before


def build_tokenizer(phonemes: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes: one token per UTF-8 byte, then `<eos>` and `<pad>`.

    Every Unicode text has an encoding that decodes to the same text, and one ASCII
    character is one token. Only the names of the two special tokens, met in a text, are
    one token each, unless the caller says `split_special_tokens=True`. With `phonemes`,
    each character of Sheen's phonemes is one token, and so is a vowel with its stress.
    """
    # Sorted, as the library returns the alphabet in no fixed order.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _phoneme_merges() if phonemes else []
    symbols = dict.fromkeys([*alphabet, *(left + right for left, right in merges)])
    tokenizer = Tokenizer(
        models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=merges)
    )
    # All merges are within words: splitting into them first changes no token.
    tokenizer.pre_tokenizer = _bytes()
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        model_max_length=POSITIONS,
        # The clean-up drops spaces before punctuation, and the text would not come back.
        clean_up_tokenization_spaces=False,
    )


def _bytes() -> pre_tokenizers.ByteLevel:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _phoneme_merges() -> list[tuple[str, str]]:
    """The bytes of each character, then each stress with each vowel, as pairs to be merged."""

    def written(character: str) -> str:
        """One symbol of the library's for each byte."""
        ((symbols, _),) = _bytes().pre_tokenize_str(character)
        return symbols

    merges = []
    for symbols in map(written, sorted(ALPHABET)):
        merges += [(symbols[:end], symbols[end]) for end in range(1, len(symbols))]
    merges += [(written(mark), written(vowel)) for mark in STRESS for vowel in VOWELS]
    return list(dict.fromkeys(merges))  # characters share first bytes


def build_model(
    tokenizer: PreTrainedTokenizerFast, hidden_size: int, layers: int, seed: int
) -> Qwen3ForCausalLM:
    """A Qwen3 model with random weights, float32, whose rows are the tokenizer's tokens.

    Raises ValueError unless `hidden_size` is a multiple of 64, one head's width.
    """
    if hidden_size < HEAD_DIM or hidden_size % HEAD_DIM:
        raise ValueError(f"hidden size {hidden_size} is not a multiple of {HEAD_DIM}")
    heads = hidden_size // HEAD_DIM
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        # Two heads share keys and values, as in Qwen3-0.6B.
        num_key_value_heads=heads // 2 if heads % 2 == 0 else heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=POSITIONS,
        # 10,000 serves a context of 2,048; Qwen3's own 1,000,000 is for 32k and more.
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config)


def make_base(
    output: Path, hidden_size: int, layers: int, seed: int, phonemes: bool = False
) -> Qwen3ForCausalLM:
    """Writes model and tokenizer to `output` and returns the model.

    Raises ValueError when `output` holds anything, or for a hidden size that does not fit.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists and is not empty: name another --output or delete it")
    tokenizer = build_tokenizer(phonemes)
    model = build_model(tokenizer, hidden_size, layers, seed)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; wrong use ends it with a message, status 2."""
    parser = argparse.ArgumentParser(description="Make a small untrained base model.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--hidden-size",
        type=int,
        default=256,
        help=f"width, a multiple of {HEAD_DIM} (default: %(default)s)",
    )
    parser.add_argument(
        "--layers", type=int, default=8, help="number of layers (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="the same seed draws the same weights (default: %(default)s)",
    )
    parser.add_argument(
        "--phonemes",
        action="store_true",
        help="tokens for phonemes, for data of `jobs/encode.py --phonemes`",
    )
    args = parser.parse_args(argv)
    try:
        model = make_base(args.output, args.hidden_size, args.layers, args.seed, args.phonemes)
    except ValueError as error:
        parser.error(str(error))
    print(f"{args.output}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
