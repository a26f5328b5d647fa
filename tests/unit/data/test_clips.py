"""Rows that are parts of recordings: what they mean in each form, what they cost, what they are
refused for."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from helpers.corpora import CODES, LAYOUT
from helpers.encoded_audio import by_soundfile
from helpers.opened import record_opened
from sheen.audio.io import decode, from_pcm16
from sheen.audio.stream import PREROLL_S
from sheen.data.clips import ClipError, ClipReader
from sheen.data.corpus import MANIFEST_SCHEMA, read_manifest
from sheen.data.recordings import sort_manifest
from sheen.data.schema import PART_KEYS
from sheen.encode.config import RecordingLimits
from sheen.encode.output import plan_blocks
from sheen.encode.stages import DecodeSettings, decode_rows

RATE = 24_000
SPANS = [(0.5, 2.0), (1.75, 3.0), (0.0, 0.75), (4.0, None), (None, 1.0)]


def sound(seconds: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(3)
    tones = np.repeat(rng.uniform(100, 900, round(10 * seconds)), RATE // 10)
    return (0.4 * np.sin(2 * np.pi * np.cumsum(tones) / RATE)).astype(np.float32)


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return str(path)


def parts(spans: list[Any]) -> list[dict[str, Any]]:
    """Of start and end, and a channel where there is one, or of any PART_KEYS by name."""
    names = ("start", "end", "audio_channel")
    named = [each if isinstance(each, dict) else zip(names, each, strict=False) for each in spans]
    return [
        {"id": f"part {place}", "text": "a text", **dict.fromkeys(PART_KEYS), **dict(span)}
        for place, span in enumerate(named)
    ]


def as_lines(folder: Path, data: bytes, spans: list[Any]) -> str:
    (folder / "long.mp3").write_bytes(data)
    return lines(folder / "rows.jsonl", [row | {"audio": "long.mp3"} for row in parts(spans)])


def as_parquet(folder: Path, data: bytes, spans: list[Any]) -> str:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    audio = pa.array([{"bytes": data, "path": None}] * len(spans), kind)
    table = pa.Table.from_pylist(parts(spans)).append_column("audio", audio)
    pq.write_table(table, folder / "rows.parquet")
    return str(folder / "rows.parquet")


def as_parquet_of_paths(folder: Path, data: bytes, spans: list[Any]) -> str:
    (folder / "long.mp3").write_bytes(data)
    rows = [row | {"audio": "long.mp3"} for row in parts(spans)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return str(folder / "rows.parquet")


def as_tar(folder: Path, data: bytes, spans: list[Any]) -> str:
    with tarfile.open(folder / "rows.tar", "w") as tar:
        for place, row in enumerate(parts(spans)):
            for suffix, member in (("mp3", data), ("json", json.dumps(row).encode())):
                header = tarfile.TarInfo(f"{place}.{suffix}")
                header.size = len(member)
                tar.addfile(header, io.BytesIO(member))
    return str(folder / "rows.tar")


def as_codes(folder: Path, data: bytes, spans: list[Any]) -> str:
    return lines(folder / "rows.jsonl", [row | {"snac_codes": CODES} for row in parts(spans)])


FORMS = {f.__name__: f for f in (as_lines, as_parquet, as_parquet_of_paths, as_tar)}
BY_KEY: list[tuple[dict[str, Any], tuple[float | None, float | None, int | None]]] = [
    ({"start": 0.5}, (0.5, None, None)),
    ({"end": 2.0}, (None, 2.0, None)),
    ({"offset": 4}, (4.0, None, None)),
    ({"offset": 0.5, "duration": 1.5}, (0.5, 2.0, None)),
    ({"offset": 0.0, "duration": 0.75, "audio_channel": 0}, (0.0, 0.75, 0)),
    ({"offset": 1.5, "duration": 2.0, "end": 3.0}, (None, 3.0, None)),
    ({"duration": 2.0}, (None, None, None)),  # of the whole recording
    ({"audio_channel": 0}, (None, None, 0)),
]
"""Keys of a row, and the start, end and channel that they mean."""


@pytest.mark.parametrize("form", FORMS)
def test_parts_in_each_form_are_cut_from_the_whole(form: str, tmp_path: Path) -> None:
    data = by_soundfile(sound(6), RATE, "MP3")
    whole, rate = decode(data)
    rows = read_manifest(FORMS[form](tmp_path, data, SPANS)).to_pylist()
    assert [row["reason"] for row in rows] == [None] * len(SPANS)
    reader = ClipReader()
    for row, (start, end) in zip(rows, SPANS, strict=True):
        samples, its_rate = reader.read(row)
        last = len(whole) if end is None else round(end * rate)
        np.testing.assert_array_equal(samples, whole[round((start or 0) * rate) : last])
        assert its_rate == rate


@pytest.mark.parametrize("form", FORMS)
def test_each_form_takes_parts_under_every_key(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    data = by_soundfile(sound(6), RATE, "FLAC")
    whole, _ = decode(data)
    keys, expected = zip(*BY_KEY, strict=True)
    assert {key for row in keys for key in row} == {*PART_KEYS}
    rows = read_manifest(FORMS[form](tmp_path, data, list(keys))).to_pylist()
    assert [(row["start"], row["end"], row["channel"]) for row in rows] == list(expected)
    reader = ClipReader()
    for row, (start, end, _) in zip(rows, expected, strict=True):
        last = len(whole) if end is None else round(end * RATE)
        np.testing.assert_array_equal(reader.read(row)[0], whole[round((start or 0) * RATE) : last])
    assert "not used" not in caplog.text


def test_what_part_codes_were_made_of_is_not_read_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rows = read_manifest(as_codes(tmp_path, b"", [keys for keys, _ in BY_KEY])).to_pylist()
    for row in rows:
        assert [row[name] for name in ("reason", "start", "end", "channel")] == [None] * 4
    assert f"not used: {', '.join(sorted(PART_KEYS))} (used are" in caplog.text


@pytest.mark.parametrize("form", FORMS)
def test_a_part_that_ends_before_it_begins_is_a_counted_reject(form: str, tmp_path: Path) -> None:
    spans = [(1.0, 2.0), (2.0, 2.0), (3.0, 2.5), (-1.0, 1.0)]
    rows = read_manifest(FORMS[form](tmp_path, b"not read", spans)).to_pylist()
    assert [row["reason"] for row in rows] == [None, *["malformed row"] * 3]
    assert "end must be later than start: 3 to 2.5 seconds" in rows[2]["detail"]
    assert all(row["source"].startswith("rows.") for row in rows)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_may_name_a_channel(form: str, tmp_path: Path) -> None:
    """Counted from 0, of the whole recording too; of one that has no such, the row has a reason."""
    stereo = np.stack([sound(3), 0.5 * sound(3)[::-1]], axis=1)
    data = by_soundfile(stereo, RATE, "FLAC")
    spans = [(None, None, 1), (0.5, 1.0, 0.0), (0.5, 1.0, None), (0.0, 1.0, 7)]
    location = FORMS[form](tmp_path, data, spans)
    rows = read_manifest(location).to_pylist()
    assert [row["channel"] for row in rows] == [1, 0, None, 7]
    reader = ClipReader()
    expected = [stereo[:, 1], stereo[12_000:24_000, 0], stereo[12_000:24_000].mean(axis=1)]
    for row, samples in zip(rows, expected, strict=False):
        np.testing.assert_allclose(reader.read(row)[0], samples, atol=1e-4)
    with pytest.raises(ClipError, match="channel 7 is asked for"):
        reader.read(rows[3])


@pytest.mark.parametrize("value", [-1, 1.5, "left", True])
def test_what_is_no_channel_is_a_counted_reject(value: Any, tmp_path: Path) -> None:
    rows = [{"audio": "a.wav", "text": "one"}]
    location = lines(tmp_path / "rows.jsonl", [rows[0], rows[0] | {"audio_channel": value}])
    found = read_manifest(location).to_pylist()
    assert [row["reason"] for row in found] == [None, "malformed row"]
    assert "audio_channel must be a whole number from 0 on" in found[1]["detail"]


@pytest.mark.parametrize("form", ["as_parquet", "as_tar"])
def test_a_row_may_name_a_recording_inside_a_file(form: str, tmp_path: Path) -> None:
    """As `sheen prepare` writes them; in Parquet of paths, in a column of both containers."""
    location = FORMS[form](tmp_path, by_soundfile(sound(2), RATE, "FLAC"), SPANS[:1])
    (inside,) = read_manifest(location).to_pylist()
    row = {"audio": Path(location).name, "text": "a text", "start": 0.5, "end": 2.0}
    row["audio_place"] = {inside["container"]: inside["place"]}
    wrong = [{"zip": [0, 1]}, {"tar": [0]}, {"tar": [0, -1]}, {"tar": [0, 1], "parquet": [0, 1]}, 3]
    listed = [row, *({**row, "audio_place": value} for value in wrong)]
    found = read_manifest(lines(tmp_path / "rows.jsonl", listed)).to_pylist()
    assert [each["reason"] for each in found] == [None, *["malformed row"] * len(wrong)]
    assert "audio_place must be" in found[-1]["detail"]
    listed = [row, {**row, "audio_place": None}, {**row, "audio_place": wrong[3]}]
    pq.write_table(pa.Table.from_pylist(listed), tmp_path / "listed.parquet")
    columns = read_manifest(str(tmp_path / "listed.parquet")).to_pylist()
    assert [each["reason"] for each in columns] == [None, None, "malformed row"]
    for each in (found[0], columns[0]):
        np.testing.assert_array_equal(ClipReader().read(each)[0], ClipReader().read(inside)[0])


@pytest.mark.parametrize("key", ["start", "offset"])
def test_a_column_of_clock_times_is_named(key: str, tmp_path: Path) -> None:
    table = pa.table({"audio": ["a.wav"], "text": ["one"], key: ["00:01"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=rf"rows\.parquet: column '{key}' is string, expected sec"):
        read_manifest(str(tmp_path / "rows.parquet"))


def test_a_length_without_an_offset_may_be_of_any_type(tmp_path: Path) -> None:
    table = pa.table({"audio": ["a.wav"], "text": ["one"], "duration": ["0:02"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    (row,) = read_manifest(str(tmp_path / "rows.parquet")).to_pylist()
    assert (row["start"], row["end"], row["reason"]) == (None, None, None)


@pytest.mark.parametrize(
    ("span", "detail"),
    [
        ((5.0, 6.5), "5 s to 6.5 s, the recording has 6.00 s"),
        ((7.0, 8.0), "7 s to 8 s, the recording has 6.00 s"),
        ((6.0, None), "6 s to its end, the recording has 6.00 s"),
    ],
)
def test_a_part_beyond_the_end_is_told_how_long_its_recording_is(
    span: tuple[float, float | None], detail: str, tmp_path: Path
) -> None:
    location = as_lines(tmp_path, by_soundfile(sound(6), RATE, "FLAC"), [span, (5.5, 6.009)])
    outside, rounded = read_manifest(location).to_pylist()
    reader = ClipReader()
    with pytest.raises(ClipError) as caught:
        reader.read(outside)
    assert (caught.value.reason, str(caught.value)) == ("outside the recording", detail)
    # Times in text are rounded.
    assert len(reader.read(rounded)[0]) == RATE // 2


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("read_before", [None, (0.0, None)])
def test_a_part_without_a_sample_is_empty(
    read_before: tuple[float, float | None] | None, strict: bool, tmp_path: Path
) -> None:
    """Whether or not the recording's end is known already."""
    spans = [(1.0, 1.00001), (1.0, 1.0005), *([read_before] if read_before else [])]
    location = as_lines(tmp_path, by_soundfile(sound(6), RATE, "FLAC"), spans)
    nothing, short, *before = read_manifest(location).to_pylist()
    reader = ClipReader()
    for row in before:
        reader.read(row)
    with pytest.raises(ClipError) as caught:
        reader.read(nothing, strict)
    detail = f"there is no sample from 1 s to 1.00001 s at {RATE} Hz"
    assert (caught.value.reason, str(caught.value)) == ("empty", detail)
    assert len(reader.read(short, strict)[0]) == round(RATE * 0.0005)


def test_a_recording_without_the_parts_is_opened_once_and_anew_when_asked(tmp_path: Path) -> None:
    location = as_lines(tmp_path, b"no sound at all", SPANS)
    rows = read_manifest(location).to_pylist()
    reader = ClipReader()
    details = set()
    for row in rows:
        with pytest.raises(ClipError) as caught:
            reader.read(row)
        details.add((caught.value.reason, str(caught.value)))
    assert len(details) == 1
    (tmp_path / "long.mp3").write_bytes(by_soundfile(sound(6), RATE, "MP3"))
    with pytest.raises(ClipError):
        reader.read(rows[0])
    reader.forget()
    assert len(reader.read(rows[0])[0]) == 1.5 * RATE


@pytest.mark.slow
def test_many_rows_of_one_recording_decode_it_once_in_whatever_order_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two recordings whose rows are listed at random, through the blocks of an encode job."""
    opened = record_opened(monkeypatch)
    seconds, count = 120, 60
    data = by_soundfile(sound(seconds), RATE, "MP3")
    whole, _ = decode(data)
    starts = np.linspace(0, seconds - 1, count // 2)
    rows = []
    for name in ("a.mp3", "b.mp3"):
        (tmp_path / name).write_bytes(data)
        rows += [
            {"audio": name, "text": "a text", "start": start, "end": start + 0.5}
            for start in starts
        ]
    order = np.random.default_rng(0).permutation(count)
    manifest = read_manifest(lines(tmp_path / "rows.jsonl", [rows[place] for place in order]))
    blocks = plan_blocks(manifest, str(tmp_path / "out"))
    assert len(blocks) > 10
    settings = DecodeSettings(RATE, RecordingLimits(), LAYOUT, 2048 / RATE)
    decoded = [row for block in blocks for row in decode_rows(block, settings).to_pylist()]
    assert sorted(row["key"] for row in decoded) == list(range(count))
    for row in decoded:
        first = round(row["start"] * RATE)
        pcm = from_pcm16(np.frombuffer(row["pcm"], "<i2"))
        np.testing.assert_allclose(pcm, whole[first : first + RATE // 2], atol=1e-4)
    assert len(opened) == 2
    frame_s = 576 / RATE
    for audio in opened:
        assert audio.decoded <= count // 2 * (0.5 + PREROLL_S + 3 * frame_s) * RATE


def test_only_parts_change_their_place_in_a_manifest() -> None:
    listed = [("b", 3.0), ("a", None), ("b", 1.0), ("c", 0.5), ("b", None), ("c", 0.25)]
    rows = [
        dict.fromkeys(MANIFEST_SCHEMA.names) | {"key": key, "audio": audio, "start": start}
        for key, (audio, start) in enumerate(listed)
    ]
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    assert sort_manifest(table)["key"].to_pylist() == [2, 0, 1, 5, 3, 4]
    whole = table.slice(1, 1)
    assert sort_manifest(whole) is whole
