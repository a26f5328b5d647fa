"""The prepare job: recordings -> segments with transcripts, and a manifest for encoding.

Owns the order of the work, what is checked before it, and the files of the output; the same command
resumes. All sources are cut before any segment is transcribed, so that one long recording keeps all
workers busy. The pipelines are `sheen.prepare.stages.pipelines`'s.
"""

import json
import logging
from fnmatch import fnmatch
from functools import partial
from typing import Any

from sheen import blocks
from sheen.config import errors_of
from sheen.data.corpus import check_outside
from sheen.prepare.changes import Result, changed_recordings, results_of
from sheen.prepare.config import PrepareConfig
from sheen.prepare.corrections import (
    CORRECTIONS,
    apply_corrections,
    given_corrections,
    stored_corrections,
)
from sheen.prepare.inputs import (
    Planned,
    cut_corpus,
    find_input,
    recordings_of_corpus,
    rows_to_cut,
    source_table,
)
from sheen.prepare.manifest import (
    SEGMENT_BITS,
    Criteria,
    Row,
    give_texts,
    output_rows,
    plan_segments,
    write_manifest,
)
from sheen.prepare.output import (
    CUTS,
    PAGE,
    REPORT,
    REVIEW,
    TRANSCRIPTS,
    has_transcripts,
    prepare_output,
    write_lines,
)
from sheen.prepare.report.statistics import statistics_of
from sheen.prepare.speakers.assignment import assign_speakers
from sheen.prepare.speakers.embedding import COLUMNS as EMBEDDINGS
from sheen.prepare.speakers.embedding import Floats, embed_examples
from sheen.prepare.stages.pipelines import (
    READ_LIMIT_S,
    cut_all,
    export_segments,
    transcribe_all,
)
from sheen.prepare.stages.transcribe import read_rows
from sheen.runs import cluster
from sheen.runs.output import output_lock
from sheen.scoring.asr.transcribers import check_transcriber
from sheen.scoring.mos import Dnsmos
from sheen.scoring.overlap import OverlapDetector
from sheen.scoring.speaker_id import SpeakerEncoder
from sheen.storage import files, uris

logger = logging.getLogger(__name__)


def run(config: PrepareConfig) -> Row:
    """Prepare; returns the report. Raises ValueError for what the user must change."""
    output = cluster.output_folder("--output", config.output)
    planned = find_input(config)
    _check_places(config, output, planned)
    check_asr = partial(check_transcriber, config.asr, config.language, language_flag="--language")
    check_asr()
    if config.dnsmos:
        with errors_of("--dnsmos"):
            Dnsmos()
    if config.overlap:
        with errors_of("--overlap"):
            OverlapDetector()
    criteria = Criteria(
        config.limits,
        config.quality_limits,
        config.text_limits,
        config.language,
    )
    examples = _examples(config)
    given = given_corrections(config.corrections)
    with output_lock(output):
        own_rows = None if planned.segments is None else planned.segments.table
        prepare_output(output, config, planned.sources.sources, own_rows)
        if not has_transcripts(output):
            # Here, and not in a worker after everything has been cut.
            check_asr(fetch=True)
        changed = _changed(output, config, planned)
        cuts: list[Row] = []
        segments, texts = planned.segments, planned.texts
        if segments is None:
            cuts = cut_all(source_table(planned.sources), config, output, changed).to_pylist()
            segments = plan_segments(cuts, config.cut_settings)
        elif not config.check:
            table = rows_to_cut(segments, config.max_seconds)
            cuts = cut_all(table, config, output, changed).to_pylist()
            corpus = cut_corpus(segments, cuts, config.cut_settings)
            segments, texts, cuts = corpus.segments, corpus.texts, corpus.long
        found = transcribe_all(segments, config, output, changed)
        # As Python lists, the embeddings of a large input would not fit into memory.
        transcripts = found.drop_columns([*EMBEDDINGS]).to_pylist()
        # The input's texts as they are now: a changed text needs no new transcription.
        for row, text in zip(transcripts, segments.table["given"].to_pylist(), strict=True):
            row["given"] = text
        read = give_texts(transcripts, texts, planned.shared)
        if planned.shared:
            logger.info(
                "the only text of their folder is used for %d of %d recordings without their own",
                len(read),
                len(planned.shared),
            )
            planned.sources.skipped[".txt"] -= len({planned.shared[key] for key in read})
        raw = planned.segments is None
        rows = output_rows(cuts if raw else [], segments, transcripts, criteria)
        corrections, stale = apply_corrections(rows, stored_corrections(output), given)
        if corrections:
            lines = [correction.line() for correction in corrections]
            write_lines(uris.join(output, CORRECTIONS), lines)
        if stale:
            logger.warning("%d stored corrections do not apply, first: %s", len(stale), stale[0])
        if config.num_speakers is not None:
            number = config.num_speakers if isinstance(config.num_speakers, int) else None
            assign_speakers(rows, found, number, examples)
        write_manifest(output, rows)
        if config.segments == "files":
            export_segments(output, [row for row in rows if row["reason"] is None])
        sources = cuts
        if not raw:
            sources = recordings_of_corpus([*transcripts, *segments.rejected], cuts)
        return _write_report(output, config, planned, sources, rows, transcripts, stale)


def _check_places(config: PrepareConfig, output: str, planned: Planned) -> None:
    for source in planned.sources.sources:
        try:
            held = uris.contains(output, source.location)
        except ValueError:  # of a row, which is rejected where it is read
            continue
        if held:
            raise ValueError(
                f"--output {output} holds --input {source.location}; give another folder"
            )
    if planned.segments is not None:
        check_outside("--output", output, config.input)
    elif config.segments == "files":
        for location in map(uris.absolute, config.input):
            if uris.contains(location, output) or fnmatch(uris.absolute(output), location):
                raise ValueError(
                    f"--output {output} is in --input {location}, where the next run would take "
                    "the files of --segments files for recordings; give a folder outside it"
                )


def _examples(config: PrepareConfig) -> dict[str, Floats]:
    if config.num_speakers is None:
        if config.speaker_examples is not None:
            raise ValueError(
                "--speaker-examples has no effect with --no-num-speakers; omit one of them"
            )
        return {}
    try:
        encoder = SpeakerEncoder()
    except ValueError as error:
        raise ValueError(f"--num-speakers: {error}; or give --no-num-speakers") from error
    if config.speaker_examples is None:
        return {}
    with errors_of("--speaker-examples"):
        return embed_examples(encoder, config.speaker_examples)


def _write_report(
    output: str,
    config: PrepareConfig,
    planned: Planned,
    sources: list[Row],
    rows: list[Row],
    transcripts: list[Row],
    stale: list[str],
) -> Row:
    from sheen.prepare.report.pages import (  # here: matplotlib
        CLIP_RATE,
        render_corrections,
        render_report,
    )

    asr = next((row["asr"] for row in transcripts if row["asr"] is not None), None)
    about = {"config": config.model_dump(mode="json"), "asr": asr}
    report = about | statistics_of(sources, +planned.sources.skipped, rows)
    report["corrections_not_applied"] = stale
    named = ", ".join(config.input)
    read = partial(read_rows, rate=CLIP_RATE)
    pages = {
        PAGE: render_report(report, rows, read, f"Preparation of {named}"),
        REVIEW: render_corrections(rows, read, f"Segments of {named}", config.review_rows),
    }
    for name, page in pages.items():
        files.write_bytes(uris.join(output, name), page.encode())
    content = json.dumps(report, indent=2, ensure_ascii=False)
    files.write_bytes(uris.join(output, REPORT), content.encode() + b"\n")
    return report


def _changed(output: str, config: PrepareConfig, planned: Planned) -> list[int]:
    """`changed_recordings` of both stages' results."""
    keys: Any = range(len(planned.sources.sources))
    if planned.segments is not None:
        keys = planned.segments.table["key"].to_pylist()
    sources = dict(zip(keys, planned.sources.sources, strict=True))
    results: list[Result] = []
    for stage, bits in ((CUTS, 0), (TRANSCRIPTS, 0 if config.check else SEGMENT_BITS)):
        folder = uris.join(output, stage)
        blocks.merge_all(folder)
        if paths := blocks.row_files(folder):
            rows = blocks.read_columns(folder, paths, ["key", "reason", "file"])
            results += results_of(rows, bits)
    results = [one for one in results if one.key in sources]
    return changed_recordings(output, sources, results, READ_LIMIT_S)
