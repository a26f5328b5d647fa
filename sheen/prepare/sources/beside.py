"""Text files next to recordings: chapter-1.txt, .srt or .vtt for chapter-1.mp3, talk.en.vtt for
talk.mkv, and book.txt in a folder of chapters.

Owns which file is the text of which recording, and reading it as one text. Dividing it among
segments is `sheen.prepare.alignment`'s.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sheen.data.schema import iter_lines
from sheen.prepare.sources import subtitles
from sheen.storage import files, uris

SUFFIXES = (".txt", *subtitles.SUFFIXES)
_LANGUAGE = re.compile(r"(.+)\.([a-z]{2,3})(?:-[A-Za-z0-9-]+)?", re.DOTALL)
"""The name of subtitles in a language, without suffix: talk.en, or talk.en-orig of yt-dlp."""


@dataclass(frozen=True)
class Beside:
    """Locations of texts, by recording. `own`: of this recording alone. `shared`: the only text of
    its folder, which may also be of something else."""

    own: dict[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)


def texts_beside(recordings: Sequence[str], language: str | None = None) -> Beside:
    """The texts in the folders of recordings.

    A recording's own text has the same name except for the suffix; subtitles may have a language
    before it, which must be `language`, if that is given. A recording without one shares the single
    .txt of its folder, if that is no other recording's. ValueError if a recording has two texts of
    its own, or if two recordings share one.
    """
    by_folder: dict[str, list[str]] = defaultdict(list)
    for location in recordings:
        by_folder[uris.sibling(location, "")].append(location)
    found = Beside()
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
        others = [name for name in names if name.lower().endswith(".txt")]
        if len(others) == 1 and files.composed(_stem(others[0])) not in owners:
            for location in inside:
                if location not in found.own:
                    found.shared[location] = uris.sibling(location, others[0])
    return found


def _is_text(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _texts_of(names: Sequence[str], stems: set[str], language: str | None) -> dict[str, list[str]]:
    """Names of texts by their recording's stem. Subtitles in a language are only taken where there
    is no text without one: they may be translations."""
    exact: dict[str, list[str]] = defaultdict(list)
    spoken: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stem = files.composed(_stem(name))
        exact[stem].append(name)
        tagged = _LANGUAGE.fullmatch(stem)
        if stem in stems or tagged is None or not name.lower().endswith(subtitles.SUFFIXES):
            continue
        if language in (None, tagged[2]):
            spoken[tagged[1]].append(name)
    return dict(spoken) | exact


def read_text(location: str) -> str:
    """The text of a file of SUFFIXES. ValueError naming the file."""
    if uris.name(location).lower().endswith(subtitles.SUFFIXES):
        return subtitles.joined_text(subtitles.read_subtitles(location))
    text = "\n".join(line for _, line in iter_lines(location))
    if not text.strip():
        raise ValueError(f"{location}: it is empty, expected the text of the recording next to it")
    return text


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
