"""A tiny Whisper with random weights, saved as transformers and as CTranslate2 have it."""

import shutil
from pathlib import Path
from typing import Any

import torch
from ctranslate2.converters import TransformersConverter
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AddedToken,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)


def save_whisper(folder: Path, multilingual: bool = True, layers: int = 1, window: int = 2) -> None:
    """A Whisper of bytes whose window is 2 s instead of 30; `layers` of its encoder."""
    letters = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = WhisperTokenizer(vocab=letters, merges=[], pad_token="<|endoftext|>")
    names = ("startoftranscript", "en", "fr", "translate", "transcribe", "startofprev")
    special = [f"<|{name}|>" for name in (*names, "startoflm", "nospeech", "notimestamps")]
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special], True)
    tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(50 * window + 1)])
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in (*names, "endoftext")}
    ends: dict[str, Any] = {
        "pad_token_id": ids["endoftext"],
        "bos_token_id": ids["endoftext"],
        "eos_token_id": ids["endoftext"],
        "decoder_start_token_id": ids["startoftranscript"],
    }
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=layers,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_source_positions=50 * window,
        max_target_positions=448 if window == 30 else 64,
        init_std=1.0,
        **ends,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        max_new_tokens=12,
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        prev_sot_token_id=ids["startofprev"],
        is_multilingual=multilingual,
        lang_to_id={f"<|{name}|>": ids[name] for name in ("en", "fr")},
        task_to_id={name: ids[name] for name in ("transcribe", "translate")},
        max_initial_timestamp_index=50,
        **ends,
    )
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(chunk_length=window), tokenizer).save_pretrained(
        folder
    )


def save_encoder(folder: Path, seed: int = 0) -> Path:
    """One whose encoder has three layers and no two weights alike; returns its folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_whisper(folder, layers=3)
        model = WhisperForConditionalGeneration.from_pretrained(folder)
        for weight in model.get_encoder().parameters():
            # Norms are saved as ones and zeros, and some biases as zeros: names could be mixed up.
            weight.data.add_(0.3 * torch.randn_like(weight))
        model.save_pretrained(folder)
    return folder


def convert(folder: Path, output: Path, quantization: str | None = None) -> Path:
    """Convert to a CTranslate2 folder, `output`."""
    TransformersConverter(str(folder)).convert(str(output), quantization=quantization)
    return output


def save_faster_whisper(folder: Path, multilingual: bool = True) -> Path:
    """Save one as faster-whisper opens it, whose window is always 30 s, and return its folder."""
    published = folder.with_name(folder.name + "-transformers")
    save_whisper(published, multilingual, window=30)
    convert(published, folder)
    shutil.copy(published / "tokenizer.json", folder)
    return folder
