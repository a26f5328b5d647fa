"""Format detection: the files that a location stands for, and the reader of each.

Refuses a location that mixes formats, rather than reading part of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pyarrow import fs

from sheen.data.readers import jsonl, ljspeech, parquet, webdataset
from sheen.data.schema import FileRows
from sheen.storage import files, uris

Reader = Callable[[str, int | None], FileRows]

LINES_SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True)
class Form:
    """A form of input: how one file of it is read, and the suffix of its files in a folder.

    Without a suffix, `read` gets the folder itself.
    """

    read: Reader
    suffix: str | None = None


FORMS = {
    "ljspeech": Form(ljspeech.read),
    "jsonl": Form(partial(jsonl.read, codes=False), ".jsonl"),
    "parquet": Form(parquet.read, ".parquet"),
    "webdataset": Form(webdataset.read, ".tar"),
    "codes": Form(partial(jsonl.read, codes=True), ".jsonl"),
}
LINES = Form(jsonl.read, ".jsonl")
"""Either form of lines: the first line says which."""

EXPECTED = (
    "an LJSpeech folder (metadata.csv beside wavs/), a .jsonl manifest, Parquet of the Hugging "
    "Face layout, WebDataset .tar shards, .jsonl with snac_codes, or a folder of such files"
)


@dataclass(frozen=True)
class InputFile:
    """One file (or LJSpeech folder) of an input, and how it is read."""

    location: str
    form: Form


def find_files(location: str, form: str | None) -> list[InputFile]:
    """The files of one path or URI without wildcards. Raises ValueError."""
    kind = files.kind(location)
    if kind == fs.FileType.NotFound:
        raise ValueError(f"input {location}: no such file or folder")
    if form is not None:
        return _of_form(location, kind, form)
    if kind != fs.FileType.Directory:
        return [InputFile(location, _form_of_file(location))]
    if files.exists(uris.join(location, ljspeech.METADATA_FILE)):
        return [InputFile(location, FORMS["ljspeech"])]
    below = files.list_below(location)
    held: dict[str, list[InputFile]] = {}
    for each in (FORMS["parquet"], FORMS["webdataset"], LINES):
        found = [InputFile(path, each) for path in below if _ends(path, each.suffix or "")]
        if found:
            held[each.suffix or ""] = found
    if len(held) > 1:
        raise ValueError(
            f"input {location}: it holds {' and '.join(held)} files; name the form that is meant "
            f"({', '.join(FORMS)}) or the files"
        )
    if not held and any(path.startswith(uris.join(location, "wavs/")) for path in below):
        return [InputFile(location, FORMS["ljspeech"])]  # it says what such a folder lacks
    if not held:
        some = ", ".join(uris.name(path) for path in below[:3]) or "nothing"
        more = f" and {len(below) - 3} more files" if len(below) > 3 else ""
        raise ValueError(f"input {location}: expected {EXPECTED}; this folder holds {some}{more}")
    return next(iter(held.values()))


def _of_form(location: str, kind: fs.FileType, form: str) -> list[InputFile]:
    if form not in FORMS:
        raise ValueError(f"form {form!r} is not known; the forms are {', '.join(FORMS)}")
    chosen = FORMS[form]
    if chosen.suffix is None:
        # Over HTTP, nothing tells a folder from a file.
        if kind != fs.FileType.Directory and uris.scheme(location) not in uris.HTTP_SCHEMES:
            raise ValueError(f"input {location}: form {form} is a folder, this is a file")
        return [InputFile(location, chosen)]
    if kind != fs.FileType.Directory:
        return [InputFile(location, chosen)]
    found = [path for path in files.list_below(location) if _ends(path, chosen.suffix)]
    if not found:
        raise ValueError(f"input {location}: form {form}, but the folder has no {chosen.suffix}")
    return [InputFile(path, chosen) for path in found]


def _form_of_file(location: str) -> Form:
    if _ends(location, LINES_SUFFIXES):
        return LINES
    for form in (FORMS["parquet"], FORMS["webdataset"]):
        if _ends(location, form.suffix or ""):
            return form
    raise ValueError(
        f"input {location}: expected {EXPECTED}; this is a file with none of their suffixes (name "
        "its form if it is one)"
    )


def _ends(location: str, suffix: str | tuple[str, ...]) -> bool:
    return uris.name(location).lower().endswith(suffix)
