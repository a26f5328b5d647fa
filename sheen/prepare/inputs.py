"""What a prepare job reads: raw recordings with the texts beside them, or the rows of corpora.

Owns which of the two an input is, the flags that have no effect on it, and the rows of corpora as
segments: their texts are checked, and they are cut only where they are long. Comparing text and
transcript is `sheen.prepare.rejections.reasons`'s. Opens no recording.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import fs

from sheen.data.clips import TRANSIENT
from sheen.data.corpus import read_manifest
from sheen.data.readers.forms import form_of_folder, form_of_name
from sheen.prepare.config import PrepareConfig
from sheen.prepare.cutting.cut import CutSettings
from sheen.prepare.manifest import (
    SEGMENT_BITS,
    Segments,
    plan_segments,
    seconds_of,
    source_key,
    whole_recording,
)
from sheen.prepare.output import SEGMENT_SCHEMA, SOURCE_SCHEMA, WHERE
from sheen.prepare.sources import (
    RECORDING_SUFFIXES,
    Source,
    Sources,
    find_sources,
    read_text,
    suffix_of,
    texts_beside,
)
from sheen.storage import files, uris

logger = logging.getLogger(__name__)

Row = dict[str, Any]

WHEN_CUTTING = ("min_seconds", "max_seconds", "pause_seconds", "vad_threshold", "channels")
"""Fields that decide where recordings are cut."""


@dataclass(frozen=True)
class Planned:
    """`segments`: the rows of corpora; None for raw recordings, whose `sources` are to be cut.
    `texts`, `shared`: of recordings, by their place in `sources`; see
    `sheen.prepare.sources.Texts`."""

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


def source_table(sources: Sources) -> pa.Table:
    """SOURCE_SCHEMA of files; a key is a place in the list."""
    rows = [
        {"key": key, "audio": source.location, "name": source.name}
        for key, source in enumerate(sources.sources)
    ]
    return pa.Table.from_pylist(rows, schema=SOURCE_SCHEMA)


def is_corpus(location: str) -> bool:
    """Whether an input has rows with texts: a manifest, an LJSpeech folder, or a folder with
    manifests and no recordings."""
    path = uris.absolute(location)
    if form_of_name(path) is not None:
        return True
    if files.kind(path) != fs.FileType.Directory:
        return False
    if form_of_folder(path) is not None:
        return True
    below = files.list_below(path)
    return any(form_of_name(each) for each in below) and not any(
        uris.name(each).lower().endswith(RECORDING_SUFFIXES) for each in below
    )


def plan_corpus(locations: Sequence[str]) -> Segments:
    """The rows of corpora as segments with their texts; unusable rows are rejected. A row without a
    text will be transcribed. Keys are places in the input. Raises ValueError."""
    try:
        manifest = read_manifest([uris.absolute(location) for location in locations])
    except ValueError as error:
        raise ValueError(f"--input: {error}") from error
    good: list[Row] = []
    rejected: list[Row] = []
    for row in manifest.to_pylist():
        if row["snac_codes"] is not None:
            raise ValueError(
                f"--input: {row['source']} has codes instead of a recording, which cannot be "
                "transcribed; give the recordings"
            )
        found = {name: row[name] for name in ("key", "id", *WHERE)}
        found |= {"given": row["text"] or None, "check_language": False}
        found |= {f"given_{name}": row[name] for name in ("speaker", "instruction")}
        why = {"reason": row["reason"], "detail": row["detail"]}
        if row["reason"] in (None, "no text"):
            good.append(found | {"reason": None, "detail": None})
        elif row["reason"] in TRANSIENT and row["audio"]:
            good.append(found | why)  # one of the sources all the same, when it is there later
        else:
            rejected.append(found | {"audio": row["audio"] or ""} | why)
    return Segments(pa.Table.from_pylist(good, schema=SEGMENT_SCHEMA), rejected)


def rows_to_cut(segments: Segments, longest: float) -> pa.Table:
    """SOURCE_SCHEMA: the rows that may be longer than `longest` seconds. How long a row without an
    end is, only decoding tells. Whether its recording is there now makes no difference: it may have
    been cut when it was."""
    rows = [
        {name: row[name] for name in ("key", *WHERE, "reason", "detail")} | {"name": row["id"]}
        for row in segments.table.to_pylist()
        if row["end"] is None or row["end"] - (row["start"] or 0.0) > longest
    ]
    return pa.Table.from_pylist(rows, schema=SOURCE_SCHEMA)


@dataclass(frozen=True)
class CutCorpus:
    """`texts`: of the rows that were cut, by key, for `give_texts`. `long`: CUT_SCHEMA of them."""

    segments: Segments
    texts: dict[int, str]
    long: list[Row]


def cut_corpus(segments: Segments, cuts: Sequence[Row], settings: CutSettings) -> CutCorpus:
    """The segments of a corpus whose long rows are cut. `cuts`: CUT_SCHEMA of `rows_to_cut`.

    A row that is not longer than `max_seconds` remains as it is, whatever is in it and however
    short it is. What was cut of a recording that is gone now stays: it may be transcribed already.
    """
    cut = {row["key"]: row for row in cuts}
    good: list[Row] = []
    rejected = [dict(row) for row in segments.rejected]
    long: list[Row] = []
    rows: dict[int, Row] = {}
    for row in segments.table.to_pylist():
        found = cut.get(row["key"])
        row["file"] = None if found is None else found["file"]
        seconds = None if found is None else found["seconds"]
        if found is None or (seconds is not None and seconds <= settings.max_seconds):
            good.append(row)
        elif found["reason"] is None:
            rows[row["key"]] = row
            long.append(found)
        else:
            why = {"reason": found["reason"], "detail": found["detail"], "seconds": seconds}
            rejected.append(row | why)
    for row in (*good, *rejected):
        row["key"] <<= SEGMENT_BITS
    planned = plan_segments(long, settings)
    for part in (*planned.table.to_pylist(), *planned.rejected):
        row = rows[source_key(part)]
        part |= {name: row[name] for name in ("given_speaker", "given_instruction")}
        (good if part["reason"] is None else rejected).append(part)
    good.sort(key=lambda row: row["key"])
    table = pa.Table.from_pylist(good, schema=SEGMENT_SCHEMA)
    texts = {key: row["given"] for key, row in rows.items() if row["given"] is not None}
    return CutCorpus(Segments(table, rejected), texts, long)


def recordings_of_corpus(rows: Iterable[Row], long: Sequence[Row]) -> list[Row]:
    """`sources` for the statistics: recordings with what was cut of them, or else with their
    `rows`, which are those of the second stage and rejected ones."""
    cut = {row["key"] for row in long}
    found: dict[tuple[str, tuple[int, ...]], Row] = {}

    def add(row: Row, seconds: float | None, fault: str | None) -> None:
        new = {"audio": row["audio"], "seconds": 0.0, "channels": 1, "fault": None}
        entry = found.setdefault(whole_recording(row), new)
        entry["seconds"] += seconds or 0.0
        entry["fault"] = entry["fault"] or fault

    for row in rows:
        if not cut or source_key(row) not in cut:
            add(row, seconds_of(row), None)
    for row in long:
        add(row, row["seconds"], row["fault"])
    return list(found.values())
