"""Format detection: the files that a location stands for, and the reader of each.

Owns the list of forms, by which every job recognizes a file or folder. Refuses a location that
mixes formats, rather than reading part of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pyarrow import fs

from sheen.data.readers import jsonl, ljspeech, parquet, webdataset
from sheen.data.readers.ljspeech import METADATA_FILE
from sheen.data.schema import FileRows
from sheen.storage import files, uris

Reader = Callable[[str, int | None], FileRows]

LINES_SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True)
class Form:
    """A form of input: how one file of it is read, what it is called, and the suffix of its files.

    Without a suffix, `read` gets a folder, which is recognized by the file `marker` in it.
    """

    read: Reader
    called: str
    suffix: str | None = None
    marker: str | None = None


FORMS = {
    "ljspeech": Form(
        ljspeech.read, "an LJSpeech folder (metadata.csv beside wavs/)", marker=METADATA_FILE
    ),
    "jsonl": Form(partial(jsonl.read, codes=False), "a .jsonl manifest", ".jsonl"),
    "parquet": Form(parquet.read, "Parquet of the Hugging Face layout", ".parquet"),
    "webdataset": Form(webdataset.read, "WebDataset .tar shards", ".tar"),
    "codes": Form(partial(jsonl.read, codes=True), ".jsonl with snac_codes", ".jsonl"),
}
LINES = Form(jsonl.read, "a .jsonl manifest", ".jsonl")
"""Either form of lines: the first line says which."""
BY_SUFFIX = {form.suffix: form for form in FORMS.values() if form.suffix} | dict.fromkeys(
    LINES_SUFFIXES, LINES
)

EXPECTED = f"{', '.join(form.called for form in FORMS.values())}, or a folder of such files"


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
    if (marked := form_of_folder(location)) is not None:
        return [InputFile(location, marked)]
    below = files.list_below(location)
    held: dict[str, list[InputFile]] = {}
    for suffix, each in BY_SUFFIX.items():
        found = [InputFile(path, each) for path in below if _ends(path, suffix)]
        if found and suffix == each.suffix:
            held[suffix] = found
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


def form_of_folder(location: str) -> Form | None:
    """The form that a folder is of as a whole, by a file in it."""
    marked = (form for form in FORMS.values() if form.marker)
    return next((x for x in marked if files.exists(uris.join(location, x.marker or ""))), None)


def form_of_name(location: str) -> Form | None:
    """The form of a file by its suffix."""
    return next((form for suffix, form in BY_SUFFIX.items() if _ends(location, suffix)), None)


def _form_of_file(location: str) -> Form:
    form = form_of_name(location)
    if form is None:
        raise ValueError(
            f"input {location}: expected {EXPECTED}; this is a file with none of their suffixes "
            "(name its form if it is one)"
        )
    return form


def _ends(location: str, suffix: str) -> bool:
    return uris.name(location).lower().endswith(suffix)
