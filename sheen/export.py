"""`sheen export MODEL --layout orpheus`: a Sheen checkpoint with the ids of the Orpheus family.

Owns the copy: embedding rows for each slot, the family's control tokens, a config with the family's
end id, and a model card on prompting and decoding. The body's weights are not changed, and Sheen
generates the same codes from the copy. Refuses a checkpoint whose codec has other frames than the
family's. `notes_of` lists the differences from the family's own checkpoints.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sheen.codec.info import CODEC_FOLDER, codec_source
from sheen.codec.layout import TokenLayout
from sheen.config import fail
from sheen.lm import checkpoint
from sheen.lm.card import CARD_FILE, card
from sheen.lm.checkpoint import CheckpointInfo, LayoutInfo
from sheen.lm.model import PAD_TABLE_TO, SpeechLM
from sheen.lm.model_files import load_model, save_model
from sheen.storage import files, folders, uris
from sheen.text.forms import CONTROLS


def export(model: str, output: str) -> list[str]:
    """Write the folder `output`, path or URI, from a checkpoint; returns `notes_of` it.

    Raises ValueError, also for an output that holds files: they would be deleted.
    """
    if not files.is_empty(output):
        raise ValueError(f"--output {output}: it is not empty; give a folder that does not exist")
    info = checkpoint.read_info(model)
    old = info.token_layout
    if old.family != "sheen":
        raise ValueError(f"model {model}: it already has the family's ids; export is not needed")
    if (old.tokens_per_frame, old.codebook_size) != (7, 4096):
        raise ValueError(
            f"model {model}: its codec has {old.tokens_per_frame} x {old.codebook_size} codes per "
            "frame, the family's has 7 x 4096, so that servers of the family cannot decode them"
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
    """The differences from a checkpoint that was trained with the family's ids."""
    softmax = (
        "It was trained with a masked softmax: logits of ids that are not legal at a slot have no "
        "meaning."
        if info.softmax == "masked"
        else "It was trained with a full softmax over ids by level: the ids of a level have the "
        "same logits at all of its slots."
    )
    notes = [
        f"{softmax} A decoder must mask: at slot s only ids of that slot's block are legal, and "
        "<custom_token_2> at slot 0. Without a mask it draws codes of other slots.",
        "The prompt is that of training: `{voice}: {text}` (or `{text}` for one voice), with a "
        "begin token before it if the tokenizer adds one, and then <custom_token_1>. The model "
        "does not know <custom_token_3> to <custom_token_6>, which servers of the family put "
        "around a text.",
        "Fine-tuning with `sheen train --model FOLDER`, whose softmax is full, teaches it to be "
        "decoded without a mask.",
    ]
    if len(info.normalizer) > 1:
        steps = ", ".join(step.name for step in info.normalizer)
        notes.append(f"Training texts were processed by {steps}; a server must do the same.")
    return notes


def _dtype(folder: Path) -> torch.dtype:
    """The number format of the stored weights."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    found = getattr(torch, str(config.get("dtype", config.get("torch_dtype"))), None)
    return found if isinstance(found, torch.dtype) else torch.float32


def _with_custom_tokens(
    tokenizer: PreTrainedTokenizerBase, old: TokenLayout, new: TokenLayout, folder: Path
) -> PreTrainedTokenizerBase:
    """The tokenizer with the family's tokens instead of Sheen's. Writes to `folder`."""
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
            f"the tokenizer does not number the {len(names)} custom tokens from {new.first_id} on"
        )
    exported.pad_token = names[CONTROLS["PAD"]]
    return exported


@torch.no_grad()
def _copy_rows(speech: SpeechLM, old: TokenLayout, new: TokenLayout) -> None:
    """Copy the rows of each level to its slots, in place.

    Control tokens and padding get the row of `<audio_start>`, which a model trained with a full
    softmax never chooses.
    """
    lm, before = speech.lm, [table.clone() for table in speech.tables]
    rows = max(new.first_id + new.size, len(before[0]))
    lm.resize_token_embeddings(rows, pad_to_multiple_of=PAD_TABLE_TO, mean_resizing=False)
    for table, was in zip(speech.tables, before, strict=True):
        table[new.first_id :] = was[old.start_id]
        table[new.end_id] = was[old.end_id]
        for slot, block in enumerate(new.blocks):
            start, size = int(old.slot_bases[slot]), new.codebook_size
            table[block.base : block.base + size] = was[start : start + size]
    lm.config.eos_token_id = new.end_id
    lm.config.pad_token_id = new.first_id + CONTROLS["PAD"]
    if lm.generation_config is not None:
        lm.generation_config.eos_token_id = new.end_id
        lm.generation_config.pad_token_id = lm.config.pad_token_id


def main(argv: list[str], prog: str) -> int:
    parser = argparse.ArgumentParser(
        prog, description="Copy a checkpoint into the token layout of the Orpheus family."
    )
    add = parser.add_argument
    add("model", help="checkpoint folder of `sheen train`: path or URI")
    add("--layout", choices=["orpheus"], required=True, help="token layout of the copy")
    add("--output", required=True, help="folder to write: path or URI")
    options = parser.parse_args(argv)
    try:
        notes = export(uris.absolute(options.model), uris.absolute(options.output))
    except (ValueError, OSError) as error:
        return fail(prog, error)
    print(f"written to {options.output}. Differences from the family's own checkpoints:")
    print("\n".join(f"- {note}" for note in notes))
    return 0
