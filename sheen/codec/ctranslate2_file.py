"""Weights in CTranslate2's `model.bin`, read without CTranslate2.

Owns the file's layout: that of `ModelSpec._serialize` in ctranslate2/specs/model_spec.py, little
endian. Knows nothing of what the weights are for.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

MODEL_FILE = "model.bin"
BINARY_VERSION = 6
_DTYPES = (
    torch.float32,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.float16,
    torch.bfloat16,
)
"""Types by their number in the file (`_dtype_to_type_id`)."""


@dataclass(frozen=True)
class _Variable:
    """Where a variable lies in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    size: int


def read_variables(path: Path, spec: str, prefix: str = "") -> dict[str, Tensor]:
    """The variables whose names begin with `prefix`, in the types in which they are stored.

    `spec` is the kind of model expected, such as "WhisperSpec". Raises ValueError naming the file
    when it is cut off, of another format version or of another kind of model.
    """
    with path.open("rb") as file:
        try:
            index = _read_index(file, spec)
            return {
                name: _read_tensor(file, variable)
                for name, variable in index.items()
                if name.startswith(prefix)
            }
        except (EOFError, LookupError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a whole CTranslate2 model ({error})") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _read_index(file: BinaryIO, spec: str) -> dict[str, _Variable]:
    (version,) = _unpack(file, "I")
    if version != BINARY_VERSION:
        raise ValueError(
            f"CTranslate2 format version {version}, expected {BINARY_VERSION}; convert the model "
            "again with ctranslate2 4"
        )
    found = _read_string(file)
    if found != spec:
        raise ValueError(f"a CTranslate2 model of kind {found!r}, expected {spec!r}")
    _, count = _unpack(file, "II")  # the spec's revision, and how many variables
    index: dict[str, _Variable] = {}
    for _ in range(count):
        name = _read_string(file)
        (rank,) = _unpack(file, "B")
        shape = _unpack(file, f"{rank}I")
        kind, size = _unpack(file, "BI")
        dtype = _DTYPES[kind]
        if size != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"variable {name!r} of shape {shape} and {dtype} has {size} bytes")
        index[name] = _Variable(dtype, shape, file.tell(), size)
        file.seek(size, 1)
    # Equal variables are stored once: every zero bias of one shape is an alias of the first.
    (aliases,) = _unpack(file, "I")
    for _ in range(aliases):
        alias = _read_string(file)
        index[alias] = index[_read_string(file)]
    return index


def _read_tensor(file: BinaryIO, variable: _Variable) -> Tensor:
    file.seek(variable.offset)
    stored = bytearray(_read(file, variable.size))
    return torch.frombuffer(stored, dtype=variable.dtype).reshape(variable.shape)


def _read_string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "H")
    return _read(file, length)[:-1].decode()  # without its zero byte


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    packed = struct.Struct("<" + layout)
    return packed.unpack(_read(file, packed.size))


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError(f"it ends after {file.tell()} bytes")
    return data
