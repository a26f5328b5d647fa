"""`sheen export MODEL --layout orpheus`: a Sheen checkpoint with the ids of the Orpheus family.

Owns the copy: each slot's own rows, the family's control tokens, a config that ends speech at the
family's id, and a model card that says how the result is prompted and decoded. The body's weights
and what the model says stay as they are. Refuses a checkpoint whose codec has other frames than the
family's. What is not the same afterwards is told by `notes`.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sheen.codec.info import CODEC_FOLDER, codec_source
from sheen.codec.layout import TokenLayout
from sheen.config import fail
from sheen.lm import checkpoint
from sheen.lm.card import CARD_FILE, card
from sheen.lm.checkpoint import CheckpointInfo, LayoutInfo
from sheen.lm.model import PAD_TABLE_TO, SpeechLM, load_model, save_model
from sheen.storage import folders, uris
from sheen.text.forms import CONTROLS


def export(model: str, output: str) -> list[str]:
    """Write the folder `output`, path or URI, from a checkpoint; what is to be known of it.

    Raises ValueError.
    """
    info = checkpoint.read_info(model)
    old = info.token_layout
    if old.family != "sheen":
        raise ValueError(f"model {model}: it has the family's ids already")
    if (old.tokens_per_frame, old.codebook_size) != (7, 4096):
        raise ValueError(
            f"model {model}: its codec has {old.tokens_per_frame} x {old.codebook_size} codes a "
            "frame, the family's has 7 x 4096: none of its servers would decode them"
        )
    new = TokenLayout(old.first_id, old.codebook_size, old.strides, "orpheus")
    notes = notes_of(info)
    with folders.local_folder(model) as folder, folders.replacing(output) as target:
        dtype = _dtype(folder)
        speech, tokenizer = load_model(folder, old, info.softmax, dtype)
        tokenizer = _with_custom_tokens(tokenizer, old, new, target)
        _copy_rows(speech, old, new)
        save_model(speech, tokenizer, target)
        described = info.model_copy(update={"layout": LayoutInfo.of(new)})
        checkpoint.write_info(target, described)
        if info.codec.embedded:
            folders.copy_folder(codec_source(str(folder), info.codec), str(target / CODEC_FOLDER))
        (target / CARD_FILE).write_text(card(described, notes), "utf-8")
    return notes


def notes_of(info: CheckpointInfo) -> list[str]:
    """What is not as in a checkpoint that was trained with the family's ids."""
    softmax = (
        "It was trained with a masked softmax: rows that are not legal at a slot have no meaning."
        if info.softmax == "masked"
        else "It was trained with a full softmax over ids by level: the copies of a level's rows "
        "have the same logits at each of its slots."
    )
    notes = [
        f"{softmax} A decoder has to mask: at slot s only ids of that slot's block, and "
        "<custom_token_2> at slot 0. One without a mask draws codes of other slots.",
        "The prompt is that of training: `{voice}: {text}` (or `{text}` for one voice), a begin "
        "token before it where the tokenizer adds one, and then <custom_token_1>. The model does "
        "not know <custom_token_3> to <custom_token_6>, with which servers of the family wrap a "
        "text.",
        "`sheen train --model FOLDER` on recordings, with its full softmax, teaches it to be "
        "decoded without a mask.",
    ]
    if len(info.normalizer) > 1:
        steps = ", ".join(step.name for step in info.normalizer)
        notes.append(f"Texts went through {steps} in training; a server has to do the same.")
    return notes


def _dtype(folder: Path) -> torch.dtype:
    """The one that the weights are stored in."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    found = getattr(torch, str(config.get("dtype", config.get("torch_dtype"))), None)
    return found if isinstance(found, torch.dtype) else torch.float32


def _with_custom_tokens(
    tokenizer: PreTrainedTokenizerBase, old: TokenLayout, new: TokenLayout, folder: Path
) -> PreTrainedTokenizerBase:
    """The tokenizer with the family's tokens in the place of Sheen's. `folder` is written to."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text("utf-8"))
    ours = set(old.token_names())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] not in ours]
    path.write_text(json.dumps(data), "utf-8")
    exported: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    names = new.token_names()
    exported.add_tokens(names)  # ordinary ones, as the family's are
    ids = exported.convert_tokens_to_ids(names)
    if ids != list(range(new.first_id, new.first_id + new.size)):
        raise ValueError(
            f"the tokenizer gives the {len(names)} custom tokens other ids than those from "
            f"{new.first_id} on"
        )
    exported.pad_token = names[CONTROLS["PAD"]]
    return exported


@torch.no_grad()
def _copy_rows(speech: SpeechLM, old: TokenLayout, new: TokenLayout) -> None:
    """Give every slot a copy of its level's rows, in place.

    Controls, and rows of padding, get that of `<audio_start>`: a full softmax has taught the head
    never to choose it.
    """
    lm, before = speech.lm, [table.clone() for table in speech.tables]
    rows = max(new.first_id + new.size, len(before[0]))
    lm.resize_token_embeddings(rows, pad_to_multiple_of=PAD_TABLE_TO, mean_resizing=False)
    for table, was in zip(speech.tables, before, strict=True):
        table[new.first_id :] = was[old.start_id]
        table[new.end_id] = was[old.end_id]
        for slot, block in enumerate(new.blocks):
            _copy(table, block.base, was, int(old.slot_bases[slot]), new.codebook_size)
    lm.config.eos_token_id = new.end_id
    lm.config.pad_token_id = new.first_id + CONTROLS["PAD"]
    if lm.generation_config is not None:
        lm.generation_config.eos_token_id = new.end_id
        lm.generation_config.pad_token_id = lm.config.pad_token_id


def _copy(table: Tensor, to: int, was: Tensor, start: int, count: int) -> None:
    table[to : to + count] = was[start : start + count]


def main(argv: list[str], prog: str) -> int:
    parser = argparse.ArgumentParser(
        prog, description="Copy a checkpoint into the token layout of another family."
    )
    add = parser.add_argument
    add("model", help="checkpoint folder of `sheen train`: path or URI")
    add("--layout", choices=["orpheus"], required=True, help="the family's name")
    add("--output", required=True, help="folder to write: path or URI")
    options = parser.parse_args(argv)
    try:
        notes = export(uris.absolute(options.model), uris.absolute(options.output))
    except (ValueError, OSError) as error:
        return fail(prog, error)
    print(f"written to {options.output}. What is not the same:")
    print("\n".join(f"- {note}" for note in notes))
    return 0
