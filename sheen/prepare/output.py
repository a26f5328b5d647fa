"""The output folder of a prepare job: its fingerprint, and the tables of its stages.

Owns the columns of both stages and the check of the folder: a job resumes its own output and
refuses any other. Each stage commits blocks of rows in its own folder (`sheen.blocks`).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sheen.prepare.changes import STATE_TYPE
from sheen.prepare.config import PrepareConfig
from sheen.prepare.cutting.vad import model_file
from sheen.prepare.sources import Source
from sheen.prepare.speakers.embedding import END, MIDDLE, START
from sheen.runs.output import (
    check_fingerprint,
    folder_digest,
    forget_idle_run,
    is_unused,
)
from sheen.scoring.asr.whisper import NAMES
from sheen.storage import files, uris

RUN_FILE = "run.json"
CUTS, TRANSCRIPTS = "cuts", "transcripts"
"""Folders of the stages: a row for each source with its segments, and a row for each segment."""
MANIFEST, REJECTED = "manifest.jsonl", "rejected.jsonl"
REPORT, PAGE, REVIEW = "report.json", "report.html", "review.html"

FORMAT = 8
_FREE_FIELDS = {
    "config", "input", "output", "num_workers", "gpu", "max_no_speech", "min_logprob",
    "min_text_rate", "max_text_rate", "corrections", "review_rows", "segments",
    "num_speakers", "speaker_examples", "texts", "max_cer", "min_dnsmos", "min_snr_db",
    "min_bandwidth_hz", "max_clipped_per_second", "min_loudness_lufs", "max_overlap",
}  # fmt: skip
"""Fields that may differ when a job resumes: limits are applied to finished rows, and the input is
compared by content."""
_OF_TRANSCRIPTS = ("asr", "language", "dnsmos", "overlap", "embeddings", "device")
"""What matters only to the second stage: it may change as long as nothing is transcribed."""

_SOURCE: list[tuple[str, pa.DataType]] = [
    ("key", pa.int64()),
    ("audio", pa.string()),
    ("name", pa.string()),
    # Of a manifest's row; null for a file as a whole.
    ("container", pa.string()),  # where in the file it is: see `sheen.data.schema`
    ("place", pa.list_(pa.int64())),
    ("channel", pa.int64()),
    ("start", pa.float64()),  # seconds
    ("end", pa.float64()),
]
_WHY = [("reason", pa.string()), ("detail", pa.string())]
SOURCE_SCHEMA = pa.schema([*_SOURCE, *_WHY])
"""`reason`: why the input has no recording for it now; such a row is not read."""
SEGMENT_TYPE = pa.struct(
    [
        ("start", pa.float64()),  # seconds from the first sample on
        ("end", pa.float64()),
        ("speech", pa.float64()),  # seconds of it
        ("start_at", pa.string()),  # see `sheen.prepare.cutting.cut.Segment`
        ("end_at", pa.string()),
        ("level_db", pa.float64()),
        ("regions", pa.list_(pa.list_(pa.float64()))),
        ("channel", pa.int64()),
        ("crosstalk_db", pa.float64()),
    ]
)
CUT_SCHEMA = pa.schema(
    [
        *_SOURCE,
        ("file", STATE_TYPE),
        ("seconds", pa.float64()),
        ("sample_rate", pa.int64()),  # of the file
        ("channels", pa.int64()),  # that were cut: 1 of a mean
        ("peaks", pa.list_(pa.float64())),  # largest sample of each channel, or of the mean
        ("segments", pa.list_(SEGMENT_TYPE)),
        ("fault", pa.string()),  # what of it cannot be decoded
        *_WHY,  # why nothing of it can be used
    ]
)

WORD_TYPE = pa.struct(
    [
        ("text", pa.string()),
        ("start", pa.float64()),  # seconds within the segment
        ("end", pa.float64()),
        ("probability", pa.float64()),
    ]
)
SEGMENT_SCHEMA = pa.schema(
    [
        ("key", pa.int64()),  # over all segments of all sources
        ("id", pa.string()),
        ("audio", pa.string()),
        ("container", pa.string()),  # where in the file it is: see `sheen.data.schema`
        ("place", pa.list_(pa.int64())),
        ("file", STATE_TYPE),  # null until it is read, by either stage
        ("given", pa.string()),  # the text that the input has for it
        ("given_speaker", pa.string()),
        ("given_instruction", pa.string()),
        *SEGMENT_TYPE,
        ("peak", pa.float64()),  # largest sample of the recording, null of a row of the input
        ("check_language", pa.bool_()),  # one of the few that the language is guessed of
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
WHERE = ("audio", "container", "place", "channel", "start", "end")
"""Columns of it that locate the samples of a row."""
_PARTS = ["container", "place", "start", "end", "channel"]
"""Columns of it that say which part of a recording a row is."""
QUALITY_TYPE = pa.struct(
    [
        ("dnsmos", pa.float64()),  # see `sheen.prepare.rejections.quality.Quality`
        ("snr_db", pa.float64()),
        ("bandwidth_hz", pa.float64()),
        ("upsampled", pa.bool_()),
        ("clipped_per_second", pa.float64()),
        ("loudness_lufs", pa.float64()),
        ("overlap", pa.float64()),
    ]
)
_READ: list[tuple[str, pa.DataType]] = [
    ("seconds", pa.float64()),
    ("quality", QUALITY_TYPE),
    # See `sheen.prepare.speakers.embedding`; the ends need less precision.
    (MIDDLE, pa.list_(pa.float32())),
    (START, pa.list_(pa.float16())),
    (END, pa.list_(pa.float16())),
]
WINDOW_TYPE = pa.struct([("at", pa.float64()), ("pcm", pa.large_binary())])
PCM_SCHEMA = pa.schema(
    [*SEGMENT_SCHEMA, *_READ, ("pcm", pa.large_binary()), ("cuts", pa.list_(WINDOW_TYPE))]
)
"""`pcm`: 16-bit mono at the rate of `sheen.prepare.cutting.vad`, null for a row with a reason.
`cuts`: the samples around each cut within speech, and the cut's place in them in seconds."""
TRANSCRIPT_SCHEMA = pa.schema(
    [
        *SEGMENT_SCHEMA,
        *_READ,
        ("text", pa.string()),
        ("words", pa.list_(WORD_TYPE)),
        ("avg_logprob", pa.float64()),
        ("no_speech_prob", pa.float64()),
        ("cut_word", pa.string()),  # within which the segment begins or ends
        ("cuts_unchecked", pa.int64()),  # cuts within speech that the ASR had no word times for
        ("language", pa.string()),  # of the transcript
        ("language_probability", pa.float64()),
        ("heard_language", pa.string()),  # guessed, null where it was not
        ("heard_probability", pa.float64()),
        ("asr", pa.string()),
    ]
)


def prepare_output(
    output: str, config: PrepareConfig, sources: Sequence[Source], rows: pa.Table | None = None
) -> None:
    """Refuse a folder that holds something else, or another preparation.

    `rows`: SEGMENT_SCHEMA of the input's own rows; None for raw recordings.
    """
    where = uris.join(output, RUN_FILE)
    forget_idle_run(output, RUN_FILE)
    if not is_unused(output) and not files.exists(where):
        raise ValueError(f"--output {output} is not empty; give another folder")
    fields = config.model_dump(mode="json")
    decided = {name: value for name, value in fields.items() if name not in _FREE_FIELDS}
    if config.asr not in NAMES and Path(config.asr).expanduser().is_dir():
        decided["asr"] = folder_digest(uris.absolute(config.asr))
    names = json.dumps([source.name for source in sources])
    parts = json.dumps([] if rows is None else rows.select(_PARTS).to_pylist())
    decided |= {
        "embeddings": config.num_speakers is not None,
        "format": FORMAT,
        "voice activity": files.sha256(model_file()),
        "sources": len(sources),
        "names of the sources": hashlib.sha256(names.encode()).hexdigest(),
        "parts of the recordings": hashlib.sha256(parts.encode()).hexdigest(),
    }
    free = dict.fromkeys(_OF_TRANSCRIPTS if not has_transcripts(output) else ())
    compared = decided
    if files.exists(where):
        compared = {name: value for name, value in decided.items() if name not in free}
    if changed := check_fingerprint(where, compared):
        raise ValueError(
            f"--output {output} is of another preparation: {changed}. Give the same values to "
            "resume it, or another folder."
        )
    if free:
        _add(where, free | {name: decided[name] for name in free if name in decided})


def has_transcripts(output: str) -> bool:
    return bool(files.list_below(uris.join(output, TRANSCRIPTS)))


def check_device(output: str, gpu: bool) -> None:
    """Refuse to transcribe some of the segments on a GPU and others on a CPU, whose transcripts
    differ: in the precision, and in rounding."""
    where = uris.join(output, RUN_FILE)
    device = "GPU" if gpu else "CPU"
    before = json.loads(files.read_bytes(where)).get("device")
    if before is None:
        _add(where, {"device": device})
    elif before != device:
        raise ValueError(
            f"--output {output} has segments that were transcribed on a {before}, and the others "
            f"would be on a {device}; give {'--no-gpu' if gpu else '--gpu'}, or another "
            "folder"
        )


def _add(where: str, fields: dict[str, Any]) -> None:
    """Add fields to a fingerprint."""
    stored = json.loads(files.read_bytes(where)) | fields
    files.write_bytes(where, json.dumps(stored, indent=2).encode() + b"\n")


def write_lines(location: str, rows: Iterable[dict[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    files.write_bytes(location, "".join(lines).encode())
