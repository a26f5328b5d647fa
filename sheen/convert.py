"""`sheen convert FOLDER`: upgrade checkpoints and datasets in an older format, in place.

Owns the formats of older versions: the keys of format 1 and their present names. Only JSON files
change, not weights, tokenizers, codecs and rows. A folder is converted with all folders below it,
so that a job's output is converted with its checkpoints and can be resumed. Files are replaced
atomically, and only if all of them can be converted. A codec has no format of Sheen's own.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

from pyarrow import fs

from sheen.codec.info import CONFIG_FILE
from sheen.codec.layout import TokenLayout
from sheen.config import fail
from sheen.data import dataset
from sheen.lm import checkpoint
from sheen.storage import files, folders, uris

Keys = dict[str, Any]

FINGERPRINT_FILE = "run.json"
"""A job's fingerprint, two of whose keys were renamed too."""

PROMPTS = {"speaker-text-1": {"name": "speaker-text", "version": "1"}}
NORMALISERS = {"nfc-space-1": {"name": "nfc-space", "version": "1"}}
SOFTMAX = {"legal rows": "masked", "all rows": "full"}
RENAMED = {
    "template": "prompt",
    "normaliser": "normalizer",
    "normalisation": "normalizer",
    "objective": "softmax",
    "pace": "duration_model",
    "text_characters": "max_chunk_chars",
    "max_positions": "max_seq_len",
}
"""Keys of `sheen.json`, format 1, and their present names."""


def convert(folder: str) -> list[str]:
    """Upgrade a folder, path or URI. Returns a line for each changed file.

    Raises ValueError, and changes nothing, for a folder without a checkpoint, a dataset, a job's
    output or a codec, and for a file with an unknown version, key or value.
    """
    if files.kind(folder) != fs.FileType.Directory:
        raise ValueError(f"{folder}: no such folder")
    found = [path for path in files.list_below(folder) if uris.name(path) in _KINDS]
    if not found and not is_codec(folder):
        raise ValueError(
            f"{folder}: no {checkpoint.INFO_FILE} of a checkpoint, no {dataset.INFO_FILE} of a "
            f"dataset and no {FINGERPRINT_FILE} of a job, here or in a folder below"
        )
    pending: dict[str, bytes] = {}
    changes: list[str] = []
    for path in found:
        old = folders.load_record(path)
        try:
            new = _KINDS[uris.name(path)](path, old)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not a valid file of format 1 ({error!r})") from error
        if new is not None:
            pending[path] = new
            changes.append(f"{path}: {_said(old)}")
    for path, content in pending.items():
        files.write_bytes(path, content)
    return changes


def is_codec(folder: str) -> bool:
    path = uris.join(folder, CONFIG_FILE)
    return files.exists(path) and "vq_strides" in folders.load_record(path)


def _checkpoint(path: str, old: Keys) -> bytes | None:
    if old.get(folders.VERSION_KEY) != 1:
        folders.read_record(path, checkpoint.CheckpointInfo)  # refuses what is not current
        return None
    new = {key: value for key, value in old.items() if key not in RENAMED}
    size, strides = old["codec"]["config"]["codebook_size"], old["codec"]["config"]["vq_strides"]
    layout = old["layout"]
    if (layout["codebook_size"], layout["strides"]) != (size, strides):
        raise ValueError(f"{path}: layout {layout} is not of the codec's {size} codes, {strides}")
    ids = TokenLayout(layout["first_id"], size, tuple(strides))
    steps = [*_steps(old), _known(path, old, "normaliser", NORMALISERS)]
    new |= {
        folders.VERSION_KEY: checkpoint.FORMAT_VERSION,
        "layout": checkpoint.LayoutInfo.of(ids),
        "prompt": _known(path, old, "template", PROMPTS),
        "normalizer": steps,
        "softmax": _known(path, old, "objective", SOFTMAX),
        "duration_model": {
            voice: {
                "base_frames": line["frames"],
                "frames_per_char": line["frames_per_character"],
            }
            for voice, line in old.get("pace", {}).items()
        },
        "max_chunk_chars": old.get("text_characters"),
        "max_seq_len": old["max_positions"],
    }
    return folders.dump_record(folders.parse_record(path, checkpoint.CheckpointInfo, new))


def _dataset(path: str, old: Keys) -> bytes | None:
    if old.get(folders.VERSION_KEY) != 1:
        folders.read_record(path, dataset.DatasetInfo)
        return None
    new = {key: value for key, value in old.items() if key != "normalisation"}
    new |= {folders.VERSION_KEY: dataset.FORMAT_VERSION, "normalizer": _steps(old)}
    return folders.dump_record(folders.parse_record(path, dataset.DatasetInfo, new))


def _fingerprint(path: str, old: Keys) -> bytes | None:
    new = dict(old)
    if "objective" in old:
        new["softmax"] = _known(path, old, "objective", SOFTMAX)
        del new["objective"]
    if "normalisation" in old:
        new["normalizer"] = _steps(old)
        new["format"] = [dataset.FORMAT_VERSION, *old["format"][1:]]
        del new["normalisation"]
    return None if new == old else json.dumps(new, indent=2).encode() + b"\n"


def _known(path: str, old: Keys, key: str, table: Mapping[str, Any]) -> Any:
    """The present form of a value of format 1; the first of the table if the key is missing."""
    value = old.get(key, next(iter(table)))
    if value not in table:
        raise ValueError(f"{path}: {key} is {value!r}, this Sheen knows {', '.join(table)}")
    return table[value]


def _steps(old: Keys) -> list[Keys]:
    """`normalisation` of format 1."""
    step = old.get("normalisation")
    if step is None:
        return []
    new = {key: value for key, value in step.items() if key not in ("library", "parts")}
    return [{"name": step["library"], **new, "segmentation": step.get("parts", "sentences")}]


def _said(old: Keys) -> str:
    version = f"format {old[folders.VERSION_KEY]} to 2, " if folders.VERSION_KEY in old else ""
    renamed = [f"{before} is {now}" for before, now in RENAMED.items() if before in old]
    if "layout" in old:
        renamed.insert(0, "layout has ids by slot")
    return version + ", ".join(renamed or ["no key has another name"])


_KINDS: dict[str, Callable[[str, Keys], bytes | None]] = {
    checkpoint.INFO_FILE: _checkpoint,
    dataset.INFO_FILE: _dataset,
    FINGERPRINT_FILE: _fingerprint,
}


def main(argv: list[str], prog: str) -> int:
    parser = argparse.ArgumentParser(
        prog, description="Upgrade checkpoints and datasets in an older format, in place."
    )
    parser.add_argument(
        "folder", help="checkpoint, dataset, or output folder of a job: path or URI"
    )
    folder = parser.parse_args(argv).folder
    try:
        changes = convert(folder)
        nothing = "a codec's files have no format of Sheen's own" if is_codec(folder) else "current"
    except (ValueError, OSError) as error:
        return fail(prog, error)
    print("\n".join(changes or [f"{folder}: nothing to convert ({nothing})"]))
    return 0
