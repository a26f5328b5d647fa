"""The files of a speech model: transformers' config, safetensors and tokenizer.

Owns loading and saving them, adapters merged. Refuses files that are not of one checkpoint. What a
checkpoint says of its model beyond them is `sheen.lm.checkpoint`'s.
"""

import json
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sheen.codec.layout import Softmax, TokenLayout
from sheen.lm.base_model import check_files
from sheen.lm.model import SpeechLM


def load_base(
    source: str, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM and its tokenizer, from a folder or a hub id.

    Loaded in `dtype` instead of cast to it later: a cast would also round the frequencies of rotary
    embeddings, with errors of radians at position 3,000.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        check_files(folder)
    elif source.startswith(("/", ".", "~")):
        raise ValueError(f"model {source!r}: no such folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        opened: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True
        )
        lm, loaded = opened  # whatever its type hint says
    except Exception as error:  # the readers of third-party files may raise anything
        raise ValueError(
            f"model {source!r}: neither a transformers folder nor a model on the hub "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error
    if missing := sorted(loaded["missing_keys"]):  # which transformers fills with random numbers
        raise ValueError(
            f"model {source!r}: its files lack {len(missing)} of the weights that config.json asks "
            f"for, such as {missing[0]}; copy or download the model again"
        )
    return lm, tokenizer


def load_model(
    folder: Path | str,
    layout: TokenLayout,
    softmax: Softmax = "masked",
    dtype: torch.dtype = torch.float32,
) -> tuple[SpeechLM, PreTrainedTokenizerBase]:
    """The model and tokenizer of a checkpoint folder or hub id with this token layout.

    `softmax` only affects `forward`.
    """
    lm, tokenizer = load_base(str(folder), dtype)
    name = layout.token_names()[0]
    found = tokenizer.convert_tokens_to_ids(name)
    if found != layout.first_id:
        raise ValueError(
            f"{folder}: {name} has id {found} in the tokenizer, but {layout.first_id} in the "
            "recorded layout: these files are not of one checkpoint"
        )
    model = SpeechLM(lm, layout, softmax)
    rows = len(model.head)
    if rows < layout.first_id + layout.size:
        raise ValueError(
            f"{folder}: the output embedding has {rows} rows, but audio tokens have ids up to "
            f"{layout.first_id + layout.size - 1}: these files are not of one checkpoint"
        )
    if len(model.tables) > 1:
        # The files decide: a config may declare separately trained tables as tied.
        lm.config.tie_word_embeddings = False
    return model, tokenizer


class TokenizerCopy:
    """A tokenizer as it is now, to be saved many times, also while the original is in use.

    Its files are kept: with thousands of added tokens transformers takes longer to make them than
    to write a small model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = deepcopy(tokenizer)
        self._files: dict[Path, bytes] = {}

    def save_pretrained(self, folder: Path) -> None:
        if not self._files:
            with TemporaryDirectory(dir=folder) as fresh:
                self._tokenizer.save_pretrained(fresh)
                made = [path for path in Path(fresh).rglob("*") if path.is_file()]
                self._files = {path.relative_to(fresh): path.read_bytes() for path in made}
        for name, content in self._files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def save_model(
    model: SpeechLM,
    tokenizer: PreTrainedTokenizerBase | TokenizerCopy,
    folder: Path,
    weights: dict[str, Tensor] | None = None,
    max_file_bytes: int | None = None,
) -> None:
    """Write the files that transformers needs: config, safetensors, tokenizer.

    `weights`: those of a `SpeechLM`, for a model that is sharded or in training; adapters are
    merged. With `max_file_bytes`, several files are written, each at most that large or with a
    single tensor.
    """
    weights = merge_adapters(model, model.state_dict() if weights is None else weights)
    size: dict[str, Any] = {} if max_file_bytes is None else {"max_shard_size": max_file_bytes}
    model.lm.save_pretrained(
        folder,
        state_dict={name.removeprefix("lm."): part for name, part in weights.items()},
        **size,
    )
    tokenizer.save_pretrained(folder)


def merge_adapters(model: SpeechLM, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` of a model with adapters -> those of the plain model that computes the same."""
    if not any("lora_" in name for name in weights):
        return weights
    # Here, and not above: a second of every start, which only adapters need.
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)
    }
    merged = {}
    for name, tensor in weights.items():
        if "lora_" in name:
            continue
        owner, _, kind = name.rpartition(".base_layer.")
        if owner and kind == "weight":
            ((adapter, scaling),) = layers[owner].scaling.items()
            a = weights[f"{owner}.lora_A.{adapter}.weight"]
            b = weights[f"{owner}.lora_B.{adapter}.weight"]
            change = (b @ a) * scaling
            tensor = tensor + (change.T if layers[owner].fan_in_fan_out else change)
        merged[f"{owner}.{kind}" if owner else name] = tensor
    return merged


class ModelFiles:
    """The folder of a model in training, but for its weights.

    `others`: the content of the files that `save_model` does not write, by name.
    """

    def __init__(
        self, model: SpeechLM, tokenizer: PreTrainedTokenizerBase, others: dict[str, bytes]
    ) -> None:
        self._model, self._tokenizer = model, TokenizerCopy(tokenizer)
        self._others = others

    def write(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write the folder with these weights; also while another thread trains the model."""
        save_model(self._model, self._tokenizer, folder, weights)
        for name, content in self._others.items():
            (folder / name).write_bytes(content)


def to_bfloat16(folder: Path) -> None:
    """Turn a saved model's weights into bfloat16, file by file; half the size."""
    for path in sorted(folder.glob("*.safetensors")):
        halves = {name: part.bfloat16() for name, part in load_file(path).items()}
        save_file(halves, path, metadata={"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["dtype"] = "bfloat16"
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
