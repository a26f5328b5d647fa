"""The JSON record of a folder, `sheen.json` or `dataset.json`: read, checked, refused in one line.

Owns the check of the format version and the words of a refusal: file, key, value and what is known.
The keys themselves belong to the record's own module, as a pydantic model that forbids others.
"""

import json
import shlex
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sheen.storage import files, uris

Record = TypeVar("Record", bound=BaseModel)
VERSION_KEY = "format_version"


def read(location: str, kind: type[Record]) -> Record:
    """The record in a file, path or URI. Raises ValueError."""
    data = load(location)
    found, version = data.get(VERSION_KEY), kind.model_fields[VERSION_KEY].default
    if found != version:
        advice = "use the version of Sheen that wrote it, or a later one"
        if found in range(1, version):
            path, options = uris.split_options(location)
            folder = shlex.quote(path.rpartition("/")[0] + options)
            advice = f"run `sheen convert {folder}` once to bring it up to date"
        raise ValueError(
            f"{location}: {VERSION_KEY} is {found!r}, this Sheen knows {version}; {advice}"
        )
    return parse(location, kind, data)


def load(location: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError naming the file."""
    try:
        data = json.loads(files.read_bytes(location))
    except ValueError as error:
        raise ValueError(f"{location}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{location}: not a JSON object")
    return data


def parse(location: str, kind: type[Record], data: Mapping[str, Any]) -> Record:
    """A record of the current format. Raises ValueError naming every key that is wrong."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(_words(problem) for problem in error.errors(include_url=False))
        raise ValueError(f"{location}: {problems}") from error


def dump(record: BaseModel) -> bytes:
    """As it is written: optional keys without a value are left out."""
    return record.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"


def _words(problem: Any) -> str:
    key = ".".join(map(str, problem["loc"]))
    value = repr(problem["input"])[:100]
    context = problem.get("ctx", {})
    match problem["type"]:
        case "literal_error":
            return f"{key} is {value}, this Sheen knows {context['expected']}"
        case "union_tag_invalid":
            name = context["discriminator"].strip("'")
            return (
                f"{key}.{name} is {context['tag']!r}, this Sheen knows {context['expected_tags']}"
            )
        case "extra_forbidden":
            return f"{key} is {value}, and this Sheen knows no such key"
        case "missing":
            return f"{key} is missing"
        case "value_error":
            return ": ".join(filter(None, [key, str(context["error"])]))
    return f"{key} is {value}: {problem['msg']}"
