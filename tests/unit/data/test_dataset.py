"""Reading codes back: a dataset folder or a JSONL file gives exactly its good rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sheen.codec.info import CodecInfo, codec_source
from sheen.codec.layout import TokenLayout
from sheen.data.dataset import (
    DatasetInfo,
    Utterances,
    join,
    read_info,
    read_utterances,
    write_info,
)
from sheen.text.normalization import NemoStep

LAYOUT = TokenLayout(first_id=1000, codebook_size=4096, strides=(4, 2, 1))
FOUR_LEVELS = TokenLayout(first_id=1000, codebook_size=4096, strides=(8, 4, 2, 1))
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("n_samples", pa.int64()),
        # The documented type is int16; a hand-made dataset may be wider and so hold 70000.
        ("snac_codes", pa.list_(pa.list_(pa.int32()))),
    ]
)

Codes = list[list[int]]
Row = dict[str, Any]
Write = Callable[[list[Row]], str]


def codes_of(frames: int, seed: int, layout: TokenLayout = LAYOUT) -> Codes:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 4096, frames * n).tolist() for n in layout.codes_per_frame]


def row(name: str, codes: Any, text: str | None = "one", speaker: str | None = None) -> Row:
    return {"id": name, "text": text, "speaker": speaker, "n_samples": 2048, "snac_codes": codes}


@pytest.fixture(params=["folder", "parquet", "jsonl"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """Writes rows in each form that training reads; returns the location."""

    def folder(rows: list[Row]) -> str:
        return write_parquet(tmp_path / "codes", [rows])

    def parquet(rows: list[Row]) -> str:
        return str(next(Path(folder(rows)).rglob("*.parquet")))

    def jsonl(rows: list[Row]) -> str:
        return write_jsonl(tmp_path / "codes.jsonl", [json.dumps(row) for row in rows])

    return {"folder": folder, "parquet": parquet, "jsonl": jsonl}[request.param]


def write_parquet(folder: Path, files: list[list[Row]], schema: pa.Schema = SCHEMA) -> str:
    rows = folder / "rows" / "status=encoded"
    rows.mkdir(parents=True)
    for number, content in enumerate(files):
        pq.write_table(
            pa.Table.from_pylist(content, schema=schema),
            rows / f"{number}.parquet",
            row_group_size=2,
        )
    return str(folder)


def write_jsonl(file: Path, lines: list[str]) -> str:
    file.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return str(file)


def codes_in(read: Utterances, index: int, layout: TokenLayout = LAYOUT) -> Codes:
    return [level.tolist() for level in layout.deinterleave(read.codes(index))]


GOOD = codes_of(2, seed=1)
BAD_CODES: dict[str, Any] = {
    "a level one code short": [GOOD[0], GOOD[1], GOOD[2][:-1]],
    "a level one code long": [GOOD[0], [*GOOD[1], 5], GOOD[2]],
    "a level short of a whole frame": [GOOD[0], GOOD[1][:2], GOOD[2]],
    "a level missing": GOOD[:2],
    "a level too many": [*GOOD, GOOD[2]],
    "code -1": [GOOD[0], GOOD[1], [*GOOD[2][:-1], -1]],
    "code 4096": [GOOD[0], [4096, *GOOD[1][1:]], GOOD[2]],
    "code 70000": [[70000, GOOD[0][1]], GOOD[1], GOOD[2]],  # 4464 when cut to 16 bits
    "code 65536": [[65536, GOOD[0][1]], GOOD[1], GOOD[2]],  # 0 when cut to 16 bits
    "a null code": [[None, GOOD[0][1]], GOOD[1], GOOD[2]],
    "a null level": [None, GOOD[1], GOOD[2]],
    "no levels": [],
    "empty levels": [[], [], []],
    "null": None,
}


@pytest.mark.parametrize("bad", BAD_CODES.values(), ids=BAD_CODES)
def test_bad_codes_are_dropped_and_good_rows_stay_exact(write: Write, bad: Any) -> None:
    first, last = codes_of(3, seed=2), codes_of(1, seed=3)
    read = read_utterances(
        write([row("a", first, "one"), row("bad", bad), row("c", last, "two")]), LAYOUT
    )
    assert read.texts == ["one", "two"]
    assert codes_in(read, 0) == first
    assert codes_in(read, 1) == last
    assert read.dropped == {"bad codes": 1}
    assert "(id 'bad'): " in read.examples["bad codes"]


@pytest.mark.parametrize("text", [None, "", " \t\n"])
def test_rows_without_text_are_dropped(write: Write, text: str | None) -> None:
    read = read_utterances(write([row("a", GOOD), row("mute", GOOD, text)]), LAYOUT)
    assert read.texts == ["one"]
    assert read.dropped == {"no text": 1}
    assert "(id 'mute'): the text is empty" in read.examples["no text"]


def test_every_dropped_row_is_counted_and_the_first_is_the_example(write: Write) -> None:
    rows = [row("a", GOOD), row("b", []), row("c", GOOD, ""), row("d", None), row("e", GOOD, None)]
    read = read_utterances(write([*rows, row("f", GOOD)]), LAYOUT)
    assert len(read) == 2
    assert read.dropped == {"bad codes": 2, "no text": 2}
    assert "(id 'b')" in read.examples["bad codes"]
    assert "(id 'c')" in read.examples["no text"]


def test_frames_are_16_bit_in_slot_order(write: Write) -> None:
    read = read_utterances(
        write([row("a", [[1, 8], [2, 3, 9, 10], [4, 5, 6, 7, 11, 12, 13, 14]])]), LAYOUT
    )
    assert read.frames.tolist() == [[1, 2, 4, 5, 3, 6, 7], [8, 9, 11, 12, 10, 13, 14]]
    assert read.frames.dtype == np.int16
    assert read.offsets.tolist() == [0, 2]


def test_the_smallest_and_largest_codes_survive(write: Write) -> None:
    zeros: Codes = [[0], [0, 0], [0, 0, 0, 0]]
    largest: Codes = [[4095], [4095] * 2, [4095] * 4]
    read = read_utterances(write([row("a", zeros), row("b", largest)]), LAYOUT)
    assert codes_in(read, 0) == zeros
    assert codes_in(read, 1) == largest
    assert not read.dropped


def test_text_and_speaker_are_normalized(write: Write) -> None:
    rows = [
        row("a", GOOD, " e\u0301t\u00e9  \n two ", " ann "),
        row("b", GOOD, "one", "  "),
        row("c", GOOD, "one"),
    ]
    read = read_utterances(write(rows), LAYOUT)
    assert read.texts == ["\u00e9t\u00e9 two", "one", "one"]
    assert read.speakers == ["ann", None, None]
    assert read.instructions == [None, None, None]


def test_instructions_are_read_where_there_is_a_column(tmp_path: Path) -> None:
    rows = [row("a", GOOD) | {"instruction": " say it\n loud "}, row("b", GOOD)]
    schema = SCHEMA.append(pa.field("instruction", pa.string()))
    locations = [
        write_parquet(tmp_path / "with", [rows], schema),
        write_parquet(tmp_path / "without", [rows[1:]]),
        write_jsonl(tmp_path / "with.jsonl", [json.dumps(row) for row in rows]),
    ]
    read = join([read_utterances(location, LAYOUT) for location in locations])
    assert read.instructions == ["say it loud", None, None, "say it loud", None]


def test_codes_of_four_levels_are_read(write: Write) -> None:
    first, second = codes_of(2, 5, FOUR_LEVELS), codes_of(1, 6, FOUR_LEVELS)
    rows = [row("a", first), row("three levels", GOOD), row("b", second)]
    read = read_utterances(write(rows), FOUR_LEVELS)
    assert read.frames.shape == (3, 15)
    assert codes_in(read, 0, FOUR_LEVELS) == first
    assert codes_in(read, 1, FOUR_LEVELS) == second
    assert read.dropped == {"bad codes": 1}


def test_nothing_usable_is_an_error_that_shows_examples(write: Write) -> None:
    location = write([row("a", None), row("b", GOOD, "")])
    with pytest.raises(ValueError, match="no usable utterance") as caught:
        read_utterances(location, LAYOUT)
    assert str(caught.value).startswith(location)
    assert "(id 'a'): " in str(caught.value)
    assert "snac_codes" in str(caught.value)
    assert "(id 'b'): the text is empty" in str(caught.value)


def test_a_dataset_without_rows_is_an_error(write: Write) -> None:
    with pytest.raises(ValueError, match="no usable utterance"):
        read_utterances(write([]), LAYOUT)


# Parquet


def test_files_and_row_groups_are_read_end_to_end(tmp_path: Path) -> None:
    codes = [codes_of(1 + index % 3, index) for index in range(9)]
    rows = [row(f"id-{index}", codes[index], f"text {index}", "ann") for index in range(9)]
    rows[4]["snac_codes"] = [[1]]
    read = read_utterances(write_parquet(tmp_path, [rows[:5], rows[5:]]), LAYOUT)
    kept = [index for index in range(9) if index != 4]
    assert read.texts == [f"text {index}" for index in kept]
    assert [codes_in(read, place) for place in range(8)] == [codes[index] for index in kept]
    assert read.examples["bad codes"].startswith("row 4 (id 'id-4'): ")


@pytest.mark.parametrize("width", [pa.int16(), pa.int64()], ids=str)
def test_codes_are_read_from_integer_columns_of_any_width(
    tmp_path: Path, width: pa.DataType
) -> None:
    schema = SCHEMA.set(4, pa.field("snac_codes", pa.list_(pa.list_(width))))
    read = read_utterances(write_parquet(tmp_path, [[row("a", GOOD)]], schema), LAYOUT)
    assert codes_in(read, 0) == GOOD
    assert read.frames.dtype == np.int16


def test_rejected_rows_are_not_read(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, [[row("a", GOOD)]])
    rejected = tmp_path / "rows" / "status=rejected"
    rejected.mkdir()
    pq.write_table(pa.Table.from_pylist([row("b", None)], schema=SCHEMA), rejected / "0.parquet")
    read = read_utterances(folder, LAYOUT)
    assert len(read) == 1
    assert not read.dropped


def test_a_folder_without_encoded_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        read_utterances(str(tmp_path), LAYOUT)


# JSONL


@pytest.mark.parametrize(
    ("line", "reason", "told"),
    [
        ('{"text": "one", "snac_codes": [[1], [2, 3]', "malformed row", "JSONDecodeError"),
        ('{"text": "one"}', "malformed row", "it has no snac_codes"),
        ('{"snac_codes": [[1], [2, 3], [4, 5, 6, 7]]}', "no text", "the text is empty"),
        ('{"text": "one", "snac_codes": [1, 2, 3]}', "bad codes", "one flat list of 3 codes"),
        ('{"text": "one", "snac_codes": [["a"], [2, 3]]}', "bad codes", 'snac_codes[0] holds "a"'),
        ('{"text": 5, "snac_codes": [[1], [2, 3], [4, 5, 6, 7]]}', "malformed row", "text must be"),
        ('{"text": "one", "speaker": true, "snac_codes": [[1]]}', "malformed row", "speaker must"),
        ('["one", [[1], [2, 3], [4, 5, 6, 7]]]', "malformed row", "not a JSON object"),
        ("null", "malformed row", "not a JSON object"),
    ],
)
def test_a_faulty_line_is_dropped_counted_and_named(
    tmp_path: Path, line: str, reason: str, told: str
) -> None:
    """As the encode job counts it. Alone in its file, it is the error."""
    good = json.dumps({"text": "one", "snac_codes": GOOD})
    location = write_jsonl(tmp_path / "codes.jsonl", [good, "", line, good])
    read = read_utterances(location, LAYOUT)
    assert len(read) == 2
    assert read.dropped == {reason: 1}
    assert read.examples[reason].startswith("line 3: ")
    assert told in read.examples[reason]
    with pytest.raises(ValueError, match=r"no usable utterance \(line 1: ") as caught:
        read_utterances(write_jsonl(tmp_path / "alone.jsonl", [line]), LAYOUT)
    assert told in str(caught.value)


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "codes.jsonl"
    good = json.dumps({"text": "one", "snac_codes": GOOD}).encode()
    file.write_bytes(good + b"\n" + good.replace(b"one", b"caf\xe9") + b"\n")
    with pytest.raises(ValueError, match=r"codes\.jsonl.*line 2"):
        read_utterances(str(file), LAYOUT)


def test_lines_past_the_first_batch_keep_their_number(tmp_path: Path) -> None:
    good = json.dumps({"text": "one", "snac_codes": GOOD})
    mute = json.dumps({"text": "", "snac_codes": GOOD})
    location = write_jsonl(tmp_path / "codes.jsonl", [good] * 2500 + [mute])
    read = read_utterances(location, LAYOUT)
    assert len(read) == 2500
    assert codes_in(read, 2499) == GOOD
    assert read.examples["no text"].startswith("line 2501: ")


@pytest.mark.parametrize("space", ["\u2028", "\u0085"])
def test_only_line_ends_end_a_line(tmp_path: Path, space: str) -> None:
    line = json.dumps({"text": f"one{space}two", "snac_codes": GOOD}, ensure_ascii=False)
    read = read_utterances(write_jsonl(tmp_path / "codes.jsonl", [line]), LAYOUT)
    assert read.texts == ["one two"]


# dataset.json

INFO = DatasetInfo(
    codec=CodecInfo(source="some/codec", sha256="0" * 64, config={"noise": True}, embedded=True),
    sample_rate=24000,
)


def test_dataset_json_gives_back_what_was_written(tmp_path: Path) -> None:
    write_info(str(tmp_path), INFO)
    assert read_info(str(tmp_path)) == INFO
    assert json.loads((tmp_path / "dataset.json").read_text("utf-8"))["format_version"] == 2


def test_the_steps_that_normalized_the_texts_are_kept(tmp_path: Path) -> None:
    step = NemoStep(version="1.0", language="de", segmentation="parts-1")
    info = INFO.model_copy(update={"normalizer": (step,)})
    write_info(str(tmp_path), info)
    assert read_info(str(tmp_path)) == info
    assert info.text_normalization == step
    assert INFO.text_normalization is None


def test_an_unfinished_folder_says_so(tmp_path: Path) -> None:
    write_parquet(tmp_path, [[row("a", GOOD)]])
    with pytest.raises(ValueError, match=r"dataset\.json is missing: .* not a finished dataset"):
        read_info(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 2}'])
def test_a_dataset_json_of_something_else_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content, "utf-8")
    with pytest.raises(ValueError, match=r"dataset\.json"):
        read_info(str(tmp_path))


def test_an_embedded_codec_lies_in_the_folder() -> None:
    assert codec_source("s3://bucket/codes", INFO.codec) == "s3://bucket/codes/codec"
    hub = INFO.codec.model_copy(update={"embedded": False})
    assert codec_source("s3://bucket/codes", hub) == "some/codec"
