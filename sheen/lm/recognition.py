"""Checkpoints that others trained: recognizing a plain transformers folder, and its `sheen.json`.

Owns recognizing checkpoints that follow canopyai/Orpheus-TTS by their tokenizer, and the
assumptions about their other properties. Such a checkpoint does not name its codec; similar ones
with another codec have a different number of custom tokens, and the error names that codec. Several
prompt forms share the same tokens: then the caller must choose one. Reads config and tokenizer, not
weights.
"""

import re
from pathlib import Path
from typing import Any, get_args

from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from sheen.codec.info import DEFAULT_CODEC, CodecInfo, describe_codec
from sheen.codec.layout import CONTROLS, CUSTOM_TOKEN, TokenLayout
from sheen.lm import base_model
from sheen.lm.checkpoint import (
    INFO_FILE,
    CheckpointInfo,
    DurationModel,
    LayoutInfo,
    PromptInfo,
    SamplingDefaults,
    read_info,
)
from sheen.storage import files, folders, uris
from sheen.text.forms import BASE_FRAMES, FORMS, LLAMA, FormName

REPETITION_WINDOW = 64
"""Generated tokens that the repetition penalty of these forms looks back at, as in llama.cpp."""

_CUSTOM = re.compile(re.escape(CUSTOM_TOKEN).replace(r"\{\}", r"(\d+)"))
_BY_COUNT = {
    CONTROLS + 8 * 2048 + 1: "Mimi, 8 x 2,048 codes, as Vyvo's LFM2.5, maya2 and Rumik have",
    CONTROLS + 4 * 4032 + 1: "NeMo's nano codec, 4 x 4,032 codes, as Kani-TTS has",
}
"""Numbers of custom tokens of checkpoints with other codecs."""
_COUNTS_ALIKE = 16
_BY_TOKEN = {
    "<|c1_0|>": "OuteTTS 1.0, whose codec is DAC",
    "<|speech_0|>": "NeuTTS, whose codec is NeuCodec",
}
_KANI = 64400 + CONTROLS + 4 * 4032
"""Vocabulary size of Kani-TTS, whose audio tokens have no names: its base's tokens, control tokens
and codes."""


def recognize(
    source: str, codec: CodecInfo, form: str | None = None, name: str | None = None
) -> CheckpointInfo | None:
    """The description of a folder or hub id without `sheen.json`, with the given codec; None for a
    model without speech tokens. `name`: what errors call it.

    Raises ValueError for speech tokens of another codec, for an unsupported family, and if the form
    is needed or does not fit.
    """
    name = name or source
    vocabulary, config = _open(source, name)
    try:
        return identify(vocabulary, config, codec, form)
    except ValueError as error:
        raise ValueError(f"model {name}: {error}") from error


def _open(source: str, name: str) -> tuple[dict[str, int], PreTrainedConfig]:
    """The ids of all tokens, and the config."""
    fast = Path(source) / "tokenizer.json"
    try:
        config = AutoConfig.from_pretrained(source)
        # With so many added tokens transformers takes seconds to make a tokenizer of this file.
        if fast.is_file():
            return Tokenizer.from_file(str(fast)).get_vocab(), config
        return AutoTokenizer.from_pretrained(source).get_vocab(), config
    except Exception as error:  # whatever the many readers of foreign files raise
        raise ValueError(
            f"model {name}: neither a Sheen checkpoint nor one that transformers can open "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error


def identify(
    vocabulary: dict[str, int],
    config: PreTrainedConfig,
    codec: CodecInfo,
    form: str | None,
) -> CheckpointInfo | None:
    """As `recognize`, with the tokenizer's vocabulary and the config already read."""
    layout = find_layout(vocabulary, config, codec)
    if layout is None:
        if form is not None:
            raise ValueError(f"form {form}: the tokenizer has no {CUSTOM_TOKEN.format(0)}")
        return None
    if config.model_type.startswith("lfm2"):
        raise ValueError(
            "Vyvo's LFM2 (form vyvo-lfm2) is not supported: its convolutions would need a state in "
            "the KV cache, and isolation of the utterances in packed rows; use a Qwen3 model"
        )
    if int(config.vocab_size) < layout.first_id + layout.size:
        raise ValueError(
            f"config.json says {config.vocab_size} rows, the custom tokens' ids reach to "
            f"{layout.first_id + layout.size - 1}: these files are not of one checkpoint"
        )
    name = choose_form(vocabulary, form)
    positions = base_model.check_config(config)
    own = FORMS[name]
    pace = DurationModel(base_frames=BASE_FRAMES, frames_per_char=own.frames_per_char)
    return CheckpointInfo(
        layout=LayoutInfo.of(layout),
        softmax="full",
        codec=codec,
        sample_rate=codec.sample_rate,
        prompt=PromptInfo(name=name),
        voices=list(own.voices),
        duration_model=dict.fromkeys(own.voices or [""], pace),
        max_chunk_chars=own.chunk_chars,
        max_seq_len=positions,
        tags=list(own.tags),
        sampling=SamplingDefaults(
            temperature=own.temperature,
            top_p=own.top_p,
            repetition_penalty=own.repetition_penalty,
            repetition_window=REPETITION_WINDOW,
        ),
        imported=True,
    )


def find_layout(vocabulary: dict[str, int], config: Any, codec: CodecInfo) -> TokenLayout | None:
    """The layout of the custom tokens; None without any. ValueError for those of other codecs."""
    ids = {
        int(match[1]): number
        for token, number in vocabulary.items()
        if (match := _CUSTOM.fullmatch(token))
    }
    if not ids:
        for token, what in _BY_TOKEN.items():
            if token in vocabulary:
                raise ValueError(f"it is {what}: Sheen decodes only SNAC")
        if config.model_type.startswith("lfm2") and _KANI <= int(config.vocab_size) < _KANI + 64:
            raise ValueError(f"its codec is {_BY_COUNT[CONTROLS + 4 * 4032 + 1]}, not SNAC")
        return None
    layout = TokenLayout(ids.get(0, 0), codec.codebook_size, codec.strides, "orpheus")
    found = len(ids)
    if found != layout.size or set(ids) != set(range(found)):
        for count, what in _BY_COUNT.items():
            if abs(found - count) <= _COUNTS_ALIKE:
                raise ValueError(f"it has {found:,} custom tokens: its codec is {what}, not SNAC")
        raise ValueError(
            f"it has {found:,} custom tokens, numbers {min(ids)} to {max(ids)}; a codec with "
            f"{layout.tokens_per_frame} x {codec.codebook_size:,} codes per frame has "
            f"{layout.size:,}, from 0: it is for another codec, or incomplete"
        )
    if any(number != layout.first_id + i for i, number in ids.items()):
        raise ValueError(f"the ids of its {found:,} custom tokens are not consecutive")
    return layout


def choose_form(vocabulary: dict[str, int], form: str | None) -> FormName:
    """The given form, or the only one that fits the tokenizer. Raises ValueError."""
    names: tuple[FormName, ...] = get_args(FormName)
    if form is not None and form not in names:
        raise ValueError(f"form {form!r}: expected one of {', '.join(names)}")
    llama = all(token in vocabulary for token in (LLAMA["BOS"], LLAMA["EOT"]))
    fits: list[FormName] = [
        name
        for name in names
        if (FORMS[name].tokens is LLAMA) == llama
        and all(token in vocabulary for token in FORMS[name].needs)
    ]
    known = ", ".join(fits) or "none that is known"
    if form is None:
        if len(fits) == 1:
            return fits[0]
        raise ValueError(
            "its tokenizer does not show which prompt form it was trained with; give the form: "
            f"{known}"
        )
    for name in fits:
        if name == form:
            return name
    raise ValueError(f"form {form}: the tokenizer belongs to another base; forms that fit: {known}")


def describe_checkpoint(
    location: str,
    *,
    form: str | None = None,
    codec: str | None = None,
    info: str | None = None,
) -> CheckpointInfo:
    """The description of a checkpoint, path or URI: its `sheen.json`, or the file `info`, or the
    result of `recognize`.

    `codec`: for `recognize`, folder or hub id (default: DEFAULT_CODEC). Raises ValueError.
    """
    if info is not None:
        described = folders.read_record(info, CheckpointInfo)
    elif files.exists(uris.join(location, INFO_FILE)):
        described = read_info(location)
    elif not files.exists(uris.join(location, "config.json")):
        return read_info(location)  # which says what a checkpoint is
    else:
        with folders.local_folder(location, weights=False) as folder:
            apart = describe_separately(codec or DEFAULT_CODEC)
            found = recognize(str(folder), apart, form, location)
        if found is None:
            raise ValueError(
                f"model {location} is not a Sheen checkpoint ({INFO_FILE} is missing), and its "
                "tokenizer has no speech tokens; train it first with `sheen train`"
            )
        return found
    if form is not None and described.prompt.name != form:
        raise ValueError(
            f"form {form}: by {info or location}, the checkpoint was trained with "
            f"{described.prompt.name!r}; omit the form"
        )
    return described


def describe_separately(codec: str) -> CodecInfo:
    """A codec outside the checkpoint's folder, by hub id or absolute path."""
    found = describe_codec(codec)
    if found.embedded:
        path = str(Path(codec).expanduser().resolve())
        found = found.model_copy(update={"embedded": False, "source": path})
    return found
