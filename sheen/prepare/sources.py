"""The files of an input of raw recordings: which are recordings, and which text is whose.

An input is files, folders, globs and URIs. Texts lie next to recordings: chapter-1.txt, .srt or
.vtt for chapter-1.mp3, talk.en.vtt for talk.mkv, and book.txt in a folder of chapters.

Owns the prefix of the recordings' rows' ids, the count of skipped files, and reading a text as one.
Opens no recording. What of subtitles is spoken is `sheen.prepare.subtitles`'s, and dividing a text
among segments `sheen.prepare.alignment`'s.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyarrow import fs

from sheen.data.schema import AUDIO_SUFFIXES, iter_lines
from sheen.prepare.subtitles import joined_text, read_subtitles
from sheen.storage import files, uris
from sheen.text.normalization import language_code

RECORDING_SUFFIXES = (
    *AUDIO_SUFFIXES,
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".ogv", ".wmv",
)  # fmt: skip
"""Suffixes of recordings in a folder. A file that is named directly may have any suffix, and one
that a glob matches any but that of a text."""
SUBTITLE_SUFFIXES = (".srt", ".vtt")
TEXT_SUFFIXES = (".txt", *SUBTITLE_SUFFIXES)

_LANGUAGE = re.compile(r"(.+)\.([a-z]{2,3})(?:-[A-Za-z0-9-]+)?", re.DOTALL)
"""The name of subtitles in a language, without suffix: talk.en, talk.eng, or talk.en-orig of
yt-dlp."""
_LANGUAGES = """\
af afr|am amh|ar ara|as asm|az aze|ba bak|be bel|bg bul|bn ben|bo bod tib|br bre|bs bos
ca cat|cs ces cze|cy cym wel|da dan|el ell gre|et est
eu eus baq|fa fas per|fi fin|fo fao|gl glg|gu guj|ha hau|he heb|hi hin|hr hrv
ht hat|hy hye arm|id ind|is isl ice|ja jpn|jw jav|ka kat geo|kk kaz|km khm
kn kan|ko kor|la lat|lb ltz|ln lin|lo lao|lt lit|lv lav|mg mlg|mi mri mao|mk mkd mac
ml mal|mn mon|mr mar|ms msa may|mt mlt|my mya bur|ne nep|nl nld dut|nn nno|no nor nob
oc oci|pa pan|pl pol|ps pus|pt por|ro ron rum|ru rus|sa san|sd snd|si sin|sk slk slo
sl slv|sn sna|so som|sq sqi alb|sr srp|su sun|sw swa|ta tam|te tel|tg tgk|th tha
tk tuk|tl tgl fil|tr tur|tt tat|uk ukr|ur urd|uz uzb|vi vie|yi yid|yo yor|zh zho chi cmn"""
_TWO_LETTERS = {
    three: two
    for two, *others in map(str.split, re.split(r"[|\n]", _LANGUAGES))
    for three in others
}
"""The other languages of Whisper than those of `language_code`: codes of ISO 639-2, also the
bibliographic ones that video tools write (talk.jpn.srt), and the codes that --language takes."""


@dataclass(frozen=True)
class Source:
    """A file with a recording. `name` is unique among all sources."""

    location: str
    name: str


@dataclass(frozen=True)
class Sources:
    """All sources, in the order of the input, and the other files in its folders."""

    sources: list[Source]
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of skipped files by suffix."""


def find_sources(locations: Sequence[str]) -> Sources:
    """The recordings at paths, URIs and globs. Raises ValueError for an input without any."""
    found: list[str] = []
    skipped: Counter[str] = Counter()
    for location in locations:
        matches = files.glob(location)
        named = matches == [location]
        before = len(found)
        for match in map(uris.absolute, matches):
            kind = files.kind(match)
            if kind == fs.FileType.NotFound and named:  # else it is a link, see `files.entries`
                raise ValueError(f"--input {match}: no such file or folder")
            if kind != fs.FileType.Directory:
                if named or not _is_text(match):
                    found.append(match)
                else:  # talks/* matches the texts of recordings too
                    skipped[suffix_of(match)] += 1
                continue
            for path in files.list_below(match):
                name = uris.name(path).lower()
                if name.endswith(RECORDING_SUFFIXES):
                    found.append(path)
                else:
                    skipped[suffix_of(path)] += 1
        if len(found) == before:
            held = ", ".join(f"{count} {suffix}" for suffix, count in skipped.most_common(3))
            raise ValueError(
                f"--input {location}: expected a recording, or a folder or glob of files with one "
                f"of the suffixes {' '.join(RECORDING_SUFFIXES)}; found {held or 'no files'}"
            )
    seen: set[str] = set()
    for location in found:
        if (where := uris.real(location)) in seen:
            raise ValueError(f"--input {location}: it is named twice; name each recording once")
        seen.add(where)
    return Sources([Source(*pair) for pair in zip(found, _names(found), strict=True)], skipped)


def suffix_of(location: str) -> str:
    """The suffix in lower case; the whole name of a file without one."""
    name = uris.name(location).lower()
    return f".{name.rpartition('.')[2]}" if "." in name else name


def _names(locations: Sequence[str]) -> list[str]:
    """File names without suffix; if two are equal, paths relative to the common folder, if those
    differ only in their suffix, with it, and if only in a URI's options, with those."""
    parts = [uris.split_options(location)[0].split("/") for location in locations]
    depth = 0
    while len({tuple(path[: depth + 1]) for path in parts}) == 1 and depth + 1 < len(parts[0]):
        depth += 1
    last = [uris.name(location) for location in locations]
    whole = ["/".join([*path[depth:-1], name]) for path, name in zip(parts, last, strict=True)]
    options = [uris.split_options(location)[1] for location in locations]
    for names in ([_bare(name) for name in last], [_bare(name) for name in whole], whole):
        if len(set(names)) == len(names):
            return names
    return [name + rest for name, rest in zip(whole, options, strict=True)]


def _bare(name: str) -> str:
    stem, dot, _ = name.rpartition(".")
    return stem if dot and stem else name


@dataclass(frozen=True)
class Texts:
    """Locations of texts, by recording. `own`: of this recording alone. `shared`: the only text of
    its folder, which may also be of something else."""

    own: dict[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)


def texts_beside(recordings: Sequence[str], language: str | None = None) -> Texts:
    """The texts in the folders of recordings.

    A recording's own text has the same name except for the suffix; subtitles may have a language
    before it, of two letters or three, which must be `language`, if that is given. A recording
    without one shares the single .txt of its folder, if that is no other recording's. ValueError if
    a recording has two texts of its own, or if two recordings share one.
    """
    by_folder: dict[str, list[str]] = defaultdict(list)
    for location in recordings:
        by_folder[uris.sibling(location, "")].append(location)
    found = Texts()
    for folder, inside in by_folder.items():
        names = [name for name in sorted(files.list_names(folder)) if _is_text(name)]
        stems = {location: files.composed(_stem(uris.name(location))) for location in inside}
        texts = _texts_of(names, set(stems.values()), language)
        owners: dict[str, str] = {}
        for location, stem in stems.items():
            mine = texts.get(stem, [])
            if len(mine) > 1:
                raise ValueError(
                    f"{location}: it has several texts, {' and '.join(mine)}; keep only one, or "
                    "give --language, if they are subtitles in several"
                )
            if mine and owners.setdefault(stem, location) != location:
                raise ValueError(
                    f"{location}: {mine[0]} would be the text of {owners[stem]} too; rename one "
                    "of the recordings"
                )
            if mine:
                found.own[location] = uris.sibling(location, mine[0])
        # Not hidden ones: macOS writes a ._book.txt beside a book.txt on other disks than its own.
        others = [n for n in names if n.lower().endswith(".txt") and not n.startswith(".")]
        if len(others) == 1 and files.composed(_stem(others[0])) not in owners:
            for location in inside:
                if location not in found.own:
                    found.shared[location] = uris.sibling(location, others[0])
    return found


def _is_text(location: str) -> bool:
    return uris.name(location).lower().endswith(TEXT_SUFFIXES)


def _texts_of(names: Sequence[str], stems: set[str], language: str | None) -> dict[str, list[str]]:
    """Names of texts by their recording's stem. Subtitles in a language are only taken where there
    is no text without one: they may be translations."""
    exact: dict[str, list[str]] = defaultdict(list)
    spoken: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stem = files.composed(_stem(name))
        exact[stem].append(name)
        tagged = _LANGUAGE.fullmatch(stem)
        if stem in stems or tagged is None or not name.lower().endswith(SUBTITLE_SUFFIXES):
            continue
        code = _TWO_LETTERS.get(tagged[2]) or language_code(tagged[2])
        if language in (None, tagged[2], code):
            spoken[tagged[1]].append(name)
    return dict(spoken) | exact


def read_text(location: str) -> str:
    """The text of a file of TEXT_SUFFIXES. ValueError naming the file."""
    if uris.name(location).lower().endswith(SUBTITLE_SUFFIXES):
        return joined_text(read_subtitles(location))
    text = "\n".join(line for _, line in iter_lines(location))
    if not text.strip():
        raise ValueError(f"{location}: it is empty, expected the text of the recording next to it")
    return text


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
