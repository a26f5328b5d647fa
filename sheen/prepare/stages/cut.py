"""The first stage, as Ray Data runs it: a source -> the places of its segments.

A task has a source, and tasks of its own for the ranges of a long one, so that one recording keeps
many workers busy. A source that cannot be used gets a reason, and so does one that crashes the
task's process or from which nothing comes. Where each channel has a speaker, as in calls, one that
is a copy of another is dropped, and speech that is much louder on another one is told from there.

Shapes: s steps of 10 ms.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError

from sheen import blocks
from sheen.data.clips import ClipError, reasons
from sheen.prepare.changes import note_files
from sheen.prepare.cutting.analysis import (
    WHOLE_FILE,
    Analysis,
    Limit,
    Measure,
    Range,
    Spread,
    analyze,
)
from sheen.prepare.cutting.cut import FLOOR, STEP_S, CutSettings, Levels, Segment, cut
from sheen.prepare.output import CUT_SCHEMA
from sheen.prepare.rejections.reasons import SILENT_DB
from sheen.runs.attempts import Attempts

logger = logging.getLogger(__name__)

ALIKE = 0.02
"""Two channels are copies if the sum of their level differences is less than this share of the sum
of their levels, as for a mono recording encoded as stereo, or a channel that is the inverse of the
other. For two people who take turns the share is nearly 1."""


def cut_sources(
    table: pa.Table,
    *,
    settings: CutSettings,
    each_channel: bool,
    output: str,
    attempts: Attempts,
    limit_s: float,
) -> pa.Table:
    """SOURCE_SCHEMA -> committed rows of CUT_SCHEMA, see `blocks.commit_rows`.

    `limit_s`: for each step of reading, since a whole recording may take hours.
    """

    def do(rows: pa.Table) -> pa.Table:
        sources, found = rows.to_pylist(), []
        note_files(sources, limit_s)
        for row in sources:
            limit = partial(attempts.limit, row["key"], limit_s)
            found.append(_cut(row, settings, each_channel, limit, in_tasks))
        return pa.Table.from_pylist(found, schema=CUT_SCHEMA)

    return blocks.commit_rows(attempts.guard("decoder", table, do), output=output)


@ray.remote(num_cpus=1, max_retries=0)
def measure_range(measure: Measure, span: Range) -> Analysis | None:
    return measure(span)


def in_tasks(measure: Measure, ranges: Sequence[Range]) -> list[Analysis | None]:
    """At the same time, each in a task of its own; this process leaves its core to them.

    If any of them fails or loses its process, all are measured here, one after the other, to the
    same result, or to the error that a recording without ranges would have given.
    """
    try:
        return ray.get([measure_range.remote(measure, span) for span in ranges])
    except RayError as error:
        logger.warning("a range failed, all %d are read again: %s", len(ranges), error)
        return list(map(measure, ranges))


def _cut(
    row: dict[str, object],
    settings: CutSettings,
    each_channel: bool = False,
    limit: Limit = nullcontext,
    spread: Spread = map,
) -> dict[str, object]:
    row = dict.fromkeys(CUT_SCHEMA.names) | row
    if row["reason"] is None:
        try:
            with reasons():
                row |= cut_source(str(row["audio"]), settings, each_channel, limit, row, spread)
        except ClipError as error:
            row |= {"reason": error.reason, "detail": str(error)}
    return row


def cut_source(
    location: str,
    settings: CutSettings,
    each_channel: bool = False,
    limit: Limit = nullcontext,
    part: Mapping[str, Any] = WHOLE_FILE,
    spread: Spread = map,
) -> dict[str, object]:
    """The columns that CUT_SCHEMA adds. Raises AudioError and OSError.

    `each_channel`: channels are read and cut one by one, so that only one is in memory. Segments
    are in order of time. `part`: which part of the file, by a manifest row's columns; the times of
    segments count from its start. `spread`: over its ranges, see `analyze`.
    """
    row = {**part, "audio": location}
    first = analyze(row, 0 if each_channel else part["channel"], limit, spread)
    analyses = {0: first}
    if each_channel:
        others = range(1, first.channels)
        analyses |= {channel: analyze(row, channel, limit, spread) for channel in others}
    taken = distinct([one.levels for one in analyses.values()])
    segments: list[Segment] = []
    for channel in taken:
        one = analyses[channel]
        found = cut(one.probabilities, one.levels, one.seconds, settings)
        if len(taken) > 1:
            levels = {other: analyses[other].levels for other in taken}
            found = [
                replace(
                    segment, channel=channel, crosstalk_db=crosstalk_db(segment, channel, levels)
                )
                for segment in found
            ]
        elif each_channel and first.channels > 1:
            found = [replace(segment, channel=channel) for segment in found]
        segments += found
    segments.sort(key=lambda segment: (segment.start, segment.channel or 0))
    columns: dict[str, object] = {
        "seconds": first.seconds,
        "sample_rate": first.rate,
        "channels": len(taken),
        "peaks": [one.peak for one in analyses.values()],
        "segments": [vars(segment) for segment in segments],
        "fault": first.fault,
    }
    if not segments:
        columns |= {"reason": "no speech", "detail": f"{first.seconds:.1f} s without speech"}
        loudest = float(first.levels.max(initial=0.0))
        mixed = not each_channel and part["channel"] is None and first.channels > 1
        if mixed and loudest < 10 ** (SILENT_DB / 10):
            columns["detail"] = (
                f"the mean of its {first.channels} channels is silence; where one is the other's "
                "inverse, give --channels each"
            )
    return columns


def distinct(levels: Sequence[Levels]) -> list[int]:
    """The channels that are not copies of earlier ones."""
    kept: list[int] = []
    for channel, own in enumerate(levels):
        if not any(_alike(levels[other], own) for other in kept):
            kept.append(channel)
    return kept


def _alike(one: Levels, other: Levels) -> bool:
    count = min(len(one), len(other))
    difference = np.abs(one[:count] - other[:count]).sum(dtype=np.float64)
    both = float(one[:count].sum(dtype=np.float64) + other[:count].sum(dtype=np.float64))
    return bool(difference <= ALIKE * both)


def crosstalk_db(segment: Segment, channel: int, levels: Mapping[int, Levels]) -> float | None:
    """Level of the loudest other channel relative to a segment's own during its speech, dB; None
    without another channel.

    `levels`: `[s]` of each channel.
    """
    power = {name: _power(segment, of) for name, of in levels.items()}
    own = power.pop(channel)
    if not power:
        return None
    return round(10 * math.log10(max(max(power.values()), FLOOR) / max(own, FLOOR)), 1)


def _power(segment: Segment, levels: Levels) -> float:
    spans = segment.regions or [(0.0, segment.seconds)]
    parts = [
        levels[round((segment.start + first) / STEP_S) : round((segment.start + last) / STEP_S)]
        for first, last in spans
    ]
    speech = np.concatenate(parts)
    return float(speech.mean(dtype=np.float64)) if len(speech) else 0.0
