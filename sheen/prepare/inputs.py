"""What a prepare job reads: raw recordings with the texts beside them, or the rows of corpora.

Owns which of the two an input is, and the flags that have no effect on it. Opens no recording.
"""

import logging
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from sheen.prepare.config import PrepareConfig
from sheen.prepare.given import is_corpus, plan_corpus
from sheen.prepare.manifest import Segments
from sheen.prepare.output import SOURCE_SCHEMA
from sheen.prepare.sources.beside import read_text, texts_beside
from sheen.prepare.sources.recordings import Source, Sources, find_sources, suffix_of
from sheen.storage import uris

logger = logging.getLogger(__name__)

WHEN_CUTTING = ("min_seconds", "max_seconds", "pause_seconds", "vad_threshold", "channels")
"""Fields that decide where recordings are cut."""


@dataclass(frozen=True)
class Planned:
    """`segments`: the rows of corpora; None for raw recordings, whose `sources` are to be cut.
    `texts`, `shared`: of recordings, by their place in `sources`; see
    `sheen.prepare.sources.beside`."""

    sources: Sources
    texts: dict[int, str]
    shared: dict[int, str]
    segments: Segments | None = None


def find_input(config: PrepareConfig) -> Planned:
    """Raises ValueError naming the flag."""
    corpora = [is_corpus(location) for location in config.input]
    if any(corpora) and not all(corpora):
        raw = config.input[corpora.index(False)]
        raise ValueError(
            f"--input {raw} has raw recordings, and {config.input[corpora.index(True)]} has rows "
            "with texts; prepare them separately"
        )
    if config.check:
        _check_flags(config, corpora)
    else:
        config.cut_settings  # noqa: B018 - raises before anything is read
    if all(corpora):
        if config.channels == "each":
            raise ValueError(
                "--channels each has no effect on rows with texts, which name their channel as "
                "audio_channel; omit it"
            )
        segments = plan_corpus(config.input)
        listed = segments.table.select(["audio", "id"]).to_pylist()
        sources = Sources([Source(row["audio"], row["id"]) for row in listed])
        return Planned(sources, {}, {}, segments)
    sources = find_sources(config.input)
    if not config.texts:
        return Planned(sources, {}, {})
    try:
        beside = texts_beside([source.location for source in sources.sources], config.language)
        read = {where: read_text(where) for where in {*beside.own.values()}}
    except ValueError as error:
        raise ValueError(f"--input {error}; or give --no-texts") from error
    if read:
        some = ", ".join(sorted(map(uris.name, read))[:3])
        logger.info("%d texts next to recordings, such as %s", len(read), some)
    for where in {*beside.shared.values()}:
        try:
            read[where] = read_text(where)
        except ValueError as error:  # it need not be a text of theirs
            logger.warning("%s", error)
    texts, shared = (
        {
            key: read[where]
            for key, source in enumerate(sources.sources)
            if (where := found.get(source.location, "")) in read
        }
        for found in (beside.own, beside.shared)
    )
    skipped = sources.skipped - Counter(suffix_of(text) for text in beside.own.values())
    return Planned(Sources(sources.sources, skipped), texts, shared)


def _check_flags(config: PrepareConfig, corpora: list[bool]) -> None:
    """Raise ValueError for what has no effect with `--check`."""
    if not all(corpora):
        raw = config.input[corpora.index(False)]
        raise ValueError(
            f"--check needs rows with texts, and --input {raw} has raw recordings; omit --check"
        )
    fields = PrepareConfig.model_fields
    for name in WHEN_CUTTING:
        if getattr(config, name) != fields[name].default:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} has no effect with --check, which cuts nothing; omit it")


def listed(sources: Sources) -> pa.Table:
    """SOURCE_SCHEMA of files; a key is a place in the list."""
    rows = [
        {"key": key, "audio": source.location, "name": source.name}
        for key, source in enumerate(sources.sources)
    ]
    return pa.Table.from_pylist(rows, schema=SOURCE_SCHEMA)
