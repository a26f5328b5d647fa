"""Text files next to recordings: chapter-1.txt, .srt or .vtt for chapter-1.mp3.

Owns which file is the text of which recording, and reading it as one text. Dividing it among
segments is `sheen.prepare.alignment`'s.
"""

from collections import defaultdict
from collections.abc import Sequence

from sheen.data.schema import iter_lines
from sheen.prepare import subtitles
from sheen.storage import files, uris

SUFFIXES = (".txt", *subtitles.SUFFIXES)


def texts_beside(recordings: Sequence[str]) -> dict[str, str]:
    """The location of each recording's text: in the same folder, with the same name
    except for the suffix.

    ValueError if a recording has two texts, or if two recordings share one.
    """
    by_folder: dict[str, list[str]] = defaultdict(list)
    for location in recordings:
        by_folder[uris.sibling(location, "")].append(location)
    found: dict[str, str] = {}
    for folder, inside in by_folder.items():
        texts: dict[str, list[str]] = defaultdict(list)
        for name in sorted(files.list_names(folder)):
            if name.lower().endswith(SUFFIXES):
                texts[files.composed(_stem(name))].append(name)
        owners: dict[str, str] = {}
        for location in inside:
            stem = files.composed(_stem(uris.name(location)))
            names = texts.get(stem, [])
            if len(names) > 1:
                raise ValueError(
                    f"{location}: it has several texts, {' and '.join(names)}; keep only one"
                )
            if names and owners.setdefault(stem, location) != location:
                raise ValueError(
                    f"{location}: {names[0]} would be the text of {owners[stem]} too; rename one "
                    "of the recordings"
                )
            if names:
                found[location] = uris.sibling(location, names[0])
    return found


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
