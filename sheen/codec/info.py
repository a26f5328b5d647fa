"""A codec without loading it: the location of its files, and its identity.

Owns the identity (weight hash and config) that datasets and checkpoints record. Imports no torch.
"""

import hashlib
import inspect
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sheen.storage import files, folders, uris

DEFAULT_CODEC = "hubertsiuzdak/snac_24khz"
CODEC_FOLDER = "codec"
"""Folder in a dataset or checkpoint with a copy of its codec."""
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "pytorch_model.bin"
NEEDED = ("sampling_rate", "codebook_size", "vq_strides")
"""Arguments of SNAC that `CodecInfo` reads; in a codec's own file they may be left out."""


class CodecInfo(BaseModel, extra="forbid"):
    """The codec in the record of a dataset or checkpoint.

    `source` is the folder or hub id that the user named. With `embedded`, the folder of this record
    also has a copy of the codec under `codec/`, since a local path is not valid on other machines.
    """

    source: str
    sha256: str
    config: dict[str, Any]
    embedded: bool

    @property
    def sample_rate(self) -> int:
        return int(self.config["sampling_rate"])

    @property
    def codebook_size(self) -> int:
        return int(self.config["codebook_size"])

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.config["vq_strides"])


def find_codec(source: str) -> Path:
    """The local folder of a codec: `source` itself, or the cached files of a hub id.

    Raises ValueError naming the source when it is neither.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if source.startswith(("/", ".", "~")) or source.count("/") != 1:
            raise ValueError(
                f"codec {source!r}: no such folder; give a folder with {CONFIG_FILE} and "
                f"{WEIGHTS_FILE}, or a hub id such as {DEFAULT_CODEC}"
            )
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            path = hf_hub_download(source, CONFIG_FILE)
            hf_hub_download(source, WEIGHTS_FILE)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(
                f"codec {source!r}: not a folder here, and the hub did not give it ({error})"
            ) from error
        folder = Path(path).parent
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"codec {source!r}: {folder / name} is missing")
        files.refuse_pointer(folder / name)
    return folder


def read_config(path: Path) -> dict[str, Any]:
    """SNAC's arguments in a file; of those that are NEEDED, what is left out has SNAC's default.

    Raises ValueError naming the file.
    """
    config = folders.load_record(str(path))
    if absent := [name for name in NEEDED if name not in config]:
        from snac import SNAC  # and with it torch: no published codec needs it

        arguments = inspect.signature(SNAC).parameters
        config |= {name: arguments[name].default for name in absent}
    return config


def describe_codec(source: str) -> CodecInfo:
    """Identity of a codec, for dataset.json and the checkpoint."""
    folder = find_codec(source)
    with (folder / WEIGHTS_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = read_config(folder / CONFIG_FILE)
    embedded = Path(source).expanduser().is_dir()
    return CodecInfo(source=source, sha256=digest, config=config, embedded=embedded)


def codec_source(folder: str, codec: CodecInfo) -> str:
    """Where to load the codec of a dataset or checkpoint from: its own copy, or the hub id."""
    return uris.join(folder, CODEC_FOLDER) if codec.embedded else codec.source
