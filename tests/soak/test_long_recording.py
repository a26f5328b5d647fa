"""A thousand rows out of one recording of three hours, for `make soak`."""

import io
import json
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from helpers.corpora import LAYOUT
from helpers.encoded_audio import by_soundfile
from helpers.example import NEW_VOICE, RATE, clips_of, read_clip
from helpers.opened import record_opened
from sheen.audio.stream import PREROLL_S, AudioFile
from sheen.data.corpus import read_manifest
from sheen.encode.config import RecordingLimits
from sheen.encode.output import plan_blocks
from sheen.encode.stages import DecodeSettings, decode_rows

ROWS, ROW_S = 1000, 4.0
TILE_S, TILES = 180, 60
MOST_READ = 1.5
"""Times the file's bytes, by a worker that gets all rows."""
MOST_GROWTH_MB = 100
MOST_CPU = 3.0
"""Times the CPU seconds of decoding the file once."""


def samples_of(data: bytes) -> int:
    with AudioFile(io.BytesIO(data)) as audio:
        return sum(map(len, audio.blocks()))


@pytest.mark.soak
def test_rows_of_a_long_mp3_read_it_once_and_hold_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the blocks of an encode job, as one worker decodes them."""
    opened = record_opened(monkeypatch)
    spoken = np.concatenate([read_clip(clip) for clip in clips_of(NEW_VOICE)])
    tile = by_soundfile(spoken[: TILE_S * RATE], RATE, "MP3")
    # Where one follows another is a tag, which becomes silence: no row may hold one.
    period = (samples_of(tile * 2) - samples_of(tile)) / RATE
    path = tmp_path / "long.mp3"
    path.write_bytes(tile * TILES)
    draw = np.random.default_rng(0)
    starts = draw.integers(TILES, size=ROWS) * period + draw.uniform(3, TILE_S - 10, ROWS)
    rows = [
        {"audio": "long.mp3", "text": "a text", "start": start, "end": start + ROW_S}
        for start in starts.tolist()
    ]
    listed = tmp_path / "rows.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    blocks = plan_blocks(read_manifest(str(listed)), str(tmp_path / "out"))
    settings = DecodeSettings(RATE, RecordingLimits(), LAYOUT, 2048 / RATE)

    process = psutil.Process()
    decode_rows(blocks[0], settings)  # what is loaded once is not of the recording
    before, read = process.memory_info().rss, process.io_counters().read_chars
    decoded_before = sum(audio.decoded for audio in opened)
    started, most, count = time.process_time(), 0, 0
    for block in blocks:
        decoded = decode_rows(block, settings).to_pylist()
        assert [row["reason"] for row in decoded] == [None] * len(decoded)
        count += len(decoded)
        most = max(most, process.memory_info().rss)
    spent = time.process_time() - started
    read = process.io_counters().read_chars - read
    started = time.process_time()
    with path.open("rb") as file, AudioFile(file) as audio:
        whole = sum(map(len, audio.blocks())) / RATE
    once = time.process_time() - started
    size = path.stat().st_size
    print(
        f"{ROWS} rows of {ROW_S:g} s from {whole:.0f} s of MP3: {read / size:.2f} times its bytes "
        f"read, {(most - before) / 2**20:.0f} MB more memory, {spent:.1f} CPU s; decoding it once "
        f"takes {once:.1f}"
    )
    assert count == ROWS
    assert whole > 3 * 3600 * 0.99
    assert read < MOST_READ * size
    assert most - before < MOST_GROWTH_MB * 2**20
    assert spent < MOST_CPU * once
    # A seek ends up to some frames before.
    counted = sum(audio.decoded for audio in opened) - decoded_before
    assert counted <= ROWS * (ROW_S + PREROLL_S + 0.2) * RATE
