"""The tables between the stages of an evaluation, and the files of its rows.

Owns the columns, and writing a block of rows. Imports neither torch nor a model, so that writing
processes start quickly.
"""

import pyarrow as pa

from sheen import blocks
from sheen.storage import files, uris

AUDIO = "audio"
"""Folder of audio files, with `--audio files`."""

_PROMPT: list[tuple[str, pa.DataType]] = [
    ("key", pa.int64()),  # position in the list: unique, whatever the ids are
    ("id", pa.string()),
    ("text", pa.string()),
    ("speaker", pa.string()),
    ("instruction", pa.string()),
]
PROMPT_SCHEMA = pa.schema(_PROMPT)

_AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_MOS = pa.struct([(name, pa.float64()) for name in ("ovrl", "sig", "bak")])

_RESULT: list[tuple[str, pa.DataType]] = [
    ("reason", pa.string()),  # why it was not spoken, null when it was
    ("detail", pa.string()),
    ("ended_with_eos", pa.bool_()),  # else cut off at its token limit
    ("expected_seconds", pa.float64()),
    ("seconds", pa.float64()),
    ("speaking", pa.float64()),
    ("pause", pa.float64()),
    ("clipped", pa.float64()),
    ("asr", pa.string()),
    ("transcript", pa.string()),
    ("dnsmos", _MOS),
    ("identified_speaker", pa.string()),
    ("speaker_similarity", pa.float64()),
    ("unscored", pa.string()),  # why the sound has no scores though they were asked for
    ("audio", _AUDIO),  # FLAC, as the `audio` of Hugging Face datasets
]
ROW_SCHEMA = pa.schema([*_PROMPT, *_RESULT])


def write_rows(table: pa.Table, *, output: str, audio_files: bool) -> pa.Table:
    """Commit a block, see `blocks.commit_rows`.

    With `audio_files` the audio is first written to separate files, and the rows have their paths.
    """
    try:
        if audio_files:
            table = _write_audio(table, output)
    except OSError as error:
        return pa.table({"rows": [len(table)], "fault": [blocks.fault_of(error)]})
    return blocks.commit_rows(table, output=output)


def _write_audio(table: pa.Table, output: str) -> pa.Table:
    rows = table.to_pylist()
    for row in rows:
        if row["audio"] is not None:
            name = "/".join([*filter(None, [row["speaker"]]), row["audio"]["path"]])
            files.write_bytes(uris.join(output, AUDIO, name), row["audio"]["bytes"])
            row["audio"] = {"bytes": None, "path": name}
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
