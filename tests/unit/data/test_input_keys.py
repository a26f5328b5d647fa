"""Under which keys the jobs take texts, ids, speakers, recordings and codes: alike at every door,
and what is of another kind is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.corpora import (
    CODES,
    LAYOUT,
    Row,
    by_codes,
    by_jsonl,
    by_parquet,
    by_webdataset,
    jsonl,
    prepared,
    refused,
    with_audio,
)
from helpers.example import CODEC, ROOT, load_script
from sheen.data.dataset import read_utterances
from sheen.data.prompts import read_prompts

train = load_script(ROOT / "jobs" / "train.py").main


def trained(location: Path) -> list[tuple[str, str | None]]:
    """Texts and speakers that the train job reads."""
    read = read_utterances(str(location), LAYOUT)
    return list(zip(read.texts, read.speakers, strict=True))


def encoded(location: Path) -> list[tuple[str, str | None]]:
    rows = prepared(location)
    assert [row["reason"] for row in rows] == [None] * len(rows)
    return [(row["text"], row["speaker"]) for row in rows]


def prompted(location: Path) -> list[tuple[str, str | None]]:
    return [(prompt.text, prompt.speaker) for prompt in read_prompts(str(location))]


def codes_parquet(folder: Path, rows: list[Row]) -> Path:
    codes = pa.array([CODES] * len(rows), pa.list_(pa.list_(pa.int64())))
    table = pa.Table.from_pylist(rows).append_column("snac_codes", codes)
    pq.write_table(table, folder / "rows.parquet")
    return folder / "rows.parquet"


DOORS = {
    "encode jsonl": (by_jsonl, encoded),
    "encode parquet": (by_parquet, encoded),
    "encode webdataset": (by_webdataset, encoded),
    "encode codes": (by_codes, encoded),
    "train jsonl": (by_codes, trained),
    "train parquet": (codes_parquet, trained),
    "prompts jsonl": (by_jsonl, prompted),
    "prompts parquet": (by_parquet, prompted),
}
KEYS = [("text", "speaker"), ("sentence", "speaker_id"), ("transcription", "speaker_name"),
        ("transcript", "voice"), ("normalized_text", "speaker")]  # fmt: skip
NAN = float("nan")
SPEAKERS: list[tuple[list[Any], list[str | None]]] = [
    (["ann", "bob"], ["ann", "bob"]),
    ([0, 17], ["0", "17"]),
    ([3.0, NAN], ["3", None]),
    ([None, "bob"], [None, "bob"]),
    (["", "bob"], [None, "bob"]),
]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("keys", KEYS, ids="+".join)
def test_texts_and_speakers_go_by_the_same_keys_at_every_door(
    door: str, keys: tuple[str, str], tmp_path: Path
) -> None:
    make, read = DOORS[door]
    rows = [{keys[0]: "four five", keys[1]: "ann"}, {keys[0]: "eight seven seven", keys[1]: "bob"}]
    assert read(make(tmp_path, rows)) == [("four five", "ann"), ("eight seven seven", "bob")]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("given", "meant"), SPEAKERS, ids=str)
def test_numbers_and_nothing_are_read_alike_at_every_door(
    door: str, given: list[Any], meant: list[str | None], tmp_path: Path
) -> None:
    make, read = DOORS[door]
    texts = ["four five", "eight seven seven"]
    rows = [{"text": text, "speaker": who} for text, who in zip(texts, given, strict=True)]
    assert read(make(tmp_path, rows)) == list(zip(texts, meant, strict=True))


@pytest.mark.parametrize("door", ["encode jsonl", "encode webdataset", "encode codes"])
@pytest.mark.parametrize("value", [True, ["ann"], {"name": "ann"}, float("inf")], ids=str)
@pytest.mark.parametrize("key", ["speaker", "id", "text"])
def test_what_is_no_name_is_one_rows_fault(door: str, key: str, value: Any, tmp_path: Path) -> None:
    rows = [{"text": "four five", key: value}, {"text": "eight seven seven"}]
    found = prepared(DOORS[door][0](tmp_path, rows))
    assert [row["reason"] for row in found] == ["malformed row", None]
    assert f"{key} must be a string" in found[0]["detail"]


@pytest.mark.parametrize("make", [by_jsonl, by_parquet, by_codes])
def test_ids_that_are_nan_are_none(make: Callable[[Path, list[Row]], Path], tmp_path: Path) -> None:
    rows = [{"text": "four five", "id": NAN}, {"text": "one two six", "id": NAN},
            {"text": "eight seven seven", "id": 7.0}]  # fmt: skip
    ids = [row["id"] for row in prepared(make(tmp_path, rows))]
    assert ids[2] == "7"
    assert len(set(ids)) == 3
    assert "nan" not in ids


@pytest.mark.parametrize(
    "key", ["audio", "audio_filepath", "audio_path", "path", "file", "file_name"]
)
def test_recordings_go_by_several_keys(key: str, tmp_path: Path) -> None:
    rows = with_audio([{"text": "four five"}, {"text": "eight seven seven"}], key, tmp_path)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for location in (jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "rows.parquet"):
        assert [row["reason"] for row in prepared(location)] == [None, None]


@pytest.mark.parametrize("make", [by_jsonl, by_parquet, by_webdataset, by_codes])
def test_keys_that_go_unused_are_told_once(
    make: Callable[[Path, list[Row]], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rows = [{"text": "four five", "spkr": "ann", "lang": "en"},
            {"text": "eight seven seven", "spkr": "bob", "lang": "en"}]  # fmt: skip
    prepared(make(tmp_path, rows))
    (told,) = [message for message in caplog.messages if "not used: " in message]
    assert "not used: lang, spkr (used are " in told
    assert "speaker: speaker, speaker_id, speaker_name, voice" in told


# Files of codes for the train job

FLAT = [code for level in CODES for code in level]


def test_codes_may_be_json_in_a_text(tmp_path: Path) -> None:
    rows = [{"text": "four five", "snac_codes": json.dumps(CODES)}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for location in (tmp_path / "rows.parquet", jsonl(tmp_path / "rows.jsonl", rows)):
        read = read_utterances(str(location), LAYOUT)
        assert [level.tolist() for level in LAYOUT.deinterleave(read.codes(0))] == CODES


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"text": ["one"], "snac_codes": [FLAT]}, "expected one list of codes for each codebook"),
        ({"text": ["one"], "snac_codes": [[CODES]]}, "must hold whole numbers"),
        ({"text": ["one"], "snac_codes": [[[1.5], [2.0]]]}, "must hold whole numbers"),
        ({"text": ["one"], "snac_codes": ["[[1], 2"]}, "text that is not JSON"),
        ({"text": ["one"], "codes_list": [FLAT]}, "its columns are text, codes_list"),
        ({"words": ["one"], "snac_codes": [CODES]}, "no column for the text"),
        ({"text": ["one"], "speaker": [True], "snac_codes": [CODES]}, "column 'speaker' is bool"),
        ({"text": ["one"], "snac_codes": [CODES[:2]]}, "2 levels of codes, expected 3"),
    ],
)
@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_training_names_codes_of_another_shape(
    form: str, columns: dict[str, Any], told: str, base: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        jsonl(path, pa.table(columns).to_pylist())
    message = refused(
        train, capsys, "--data", str(path), "--codec", str(CODEC), "--model", str(base),
        "--output", f"{tmp_path}/out", "--trackers", "[]",
    )  # fmt: skip
    assert f"{path}: " in message
    if form == "parquet":
        assert told in message
