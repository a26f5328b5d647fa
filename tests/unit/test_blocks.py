"""Blocks of rows: each key ends in exactly one row file, whenever a run was interrupted."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sheen import blocks

STATUSES = ("encoded", "rejected")
NONE = np.zeros(0, np.int64)


def table(*rows: tuple[int, str, str]) -> pa.Table:
    """Rows of a key, a status and a text."""
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return pa.table(
        {
            "key": pa.array(columns[0], pa.int64()),
            "text": pa.array(columns[2], pa.string()),
            "status": pa.array(columns[1], pa.string()),
        }
    )


def encoded(*keys: int, text: str = "a") -> pa.Table:
    return table(*((key, "encoded", text) for key in keys))


def rows_of(output: Path) -> list[tuple[int, str, str]]:
    """All rows, read with nothing but pyarrow."""
    return sorted(
        (row["key"], path.parent.name.partition("=")[2], row["text"])
        for path in (output / "rows").rglob("*.parquet")
        for row in pq.ParquetFile(path).read().to_pylist()
    )


def files_of(output: Path) -> list[str]:
    return sorted(str(path.relative_to(output)) for path in output.rglob("*.parquet"))


def merge(output: Path) -> list[str]:
    return [name for name, _ in blocks.merge(str(output), STATUSES)]


def write_rows(output: Path, status: str, name: str, *keys: int, text: str = "a") -> None:
    """A row file as earlier versions wrote one for each block."""
    folder = output / "rows" / f"status={status}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = table(*((key, status, text) for key in keys)).drop_columns(["status"])
    pq.write_table(rows, folder / name)


def test_rows_are_retried_for_some_reasons_where_their_input_has_none(tmp_path: Path) -> None:
    def rows(*reasons: str | None) -> pa.Table:
        keys = pa.array(range(len(reasons)), pa.int64())
        return pa.table({"key": keys, "reason": pa.array(reasons, pa.string())})

    planned = rows(None, None, None, "no text", "missing")
    assert len(blocks.keys_to_retry(str(tmp_path), planned, ["missing"])) == 0
    blocks.commit(str(tmp_path), rows(None, "missing", "too short", "missing", "missing"))
    blocks.merge_all(str(tmp_path))
    for table in (planned, planned.slice(0, 3).drop_columns(["reason"])):
        assert blocks.keys_to_retry(str(tmp_path), table, ["missing", "x"]).tolist() == [1]


def test_blocks_are_the_same_in_every_run() -> None:
    rows = encoded(*range(10))
    assert [part["key"].to_pylist() for part in blocks.plan(rows, 4, NONE)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]
    ]  # fmt: skip
    left = blocks.plan(rows, 4, np.array([4, 0, 5, 6, 7]))
    assert [part["key"].to_pylist() for part in left] == [[1, 2, 3], [8, 9]]
    assert blocks.plan(rows, 4, np.arange(10)) == []


def test_blocks_become_one_row_file_of_each_status(tmp_path: Path) -> None:
    for block in (encoded(2, 3), table((1, "rejected", "b"), (0, "encoded", "a"))):
        assert blocks.commit(str(tmp_path), block) is None
    assert len(files_of(tmp_path)) == 2
    assert list(blocks.merged_keys(str(tmp_path))) == []
    assert merge(tmp_path) == ["000000000000.parquet"]
    assert files_of(tmp_path) == [
        "rows/status=encoded/000000000000.parquet", "rows/status=rejected/000000000000.parquet"
    ]  # fmt: skip
    assert rows_of(tmp_path) == [
        (0, "encoded", "a"), (1, "rejected", "b"), (2, "encoded", "a"), (3, "encoded", "a")
    ]  # fmt: skip
    assert not (tmp_path / "blocks").exists()
    assert list(blocks.merged_keys(str(tmp_path))) == [0, 1, 2, 3]
    assert merge(tmp_path) == []


def test_without_statuses_all_row_files_are_in_one_folder(tmp_path: Path) -> None:
    blocks.commit(str(tmp_path), encoded(0, 1).drop_columns(["status"]))
    blocks.merge_all(str(tmp_path))
    assert files_of(tmp_path) == ["rows/000000000000.parquet"]
    assert [part["key"].to_pylist() for part in blocks.read_merged(str(tmp_path))] == [[0, 1]]


def test_row_files_are_complete_at_so_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "MERGED_ROWS", 4)
    for first in range(0, 10, 2):
        blocks.commit(str(tmp_path), encoded(first, first + 1))
    assert merge(tmp_path) == [f"{first:012d}.parquet" for first in (0, 4, 8)]
    assert [key for key, _, _ in rows_of(tmp_path)] == list(range(10))


@pytest.mark.parametrize("written", [1, 2, 3])
def test_a_merge_that_is_killed_is_done_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """After each row file: some blocks are in it and not yet deleted."""
    monkeypatch.setattr(blocks, "MERGED_ROWS", 4)
    for first in range(0, 10, 2):
        blocks.commit(str(tmp_path), encoded(first, first + 1))
    interrupted = blocks.merge(str(tmp_path), STATUSES)
    for _ in range(written):
        next(interrupted)
    interrupted.close()
    merge(tmp_path)
    assert rows_of(tmp_path) == [(key, "encoded", "a") for key in range(10)]
    assert not (tmp_path / "blocks").exists()


def test_rows_that_are_done_again_replace_their_earlier_selves(tmp_path: Path) -> None:
    blocks.commit(str(tmp_path), table(*((key, "rejected", "missing") for key in range(4))))
    merge(tmp_path)
    blocks.commit(str(tmp_path), encoded(1, 3, text="found"))
    assert merge(tmp_path) == ["000000000000.parquet"]
    assert rows_of(tmp_path) == [
        (0, "rejected", "missing"), (1, "encoded", "found"),
        (2, "rejected", "missing"), (3, "encoded", "found"),
    ]  # fmt: skip
    blocks.commit(str(tmp_path), encoded(0, 2))
    merge(tmp_path)
    assert files_of(tmp_path) == ["rows/status=encoded/000000000000.parquet"]


@pytest.mark.parametrize("digits", [9, 12])
def test_row_files_of_earlier_versions_are_resumed(tmp_path: Path, digits: int) -> None:
    write_rows(tmp_path, "encoded", f"{0:0{digits}d}.parquet", 1)
    write_rows(tmp_path, "rejected", f"{0:0{digits}d}.parquet", 0)
    write_rows(tmp_path, "rejected", f"{2:0{digits}d}.parquet", 3)  # killed before its encoded row
    done = blocks.merged_keys(str(tmp_path))
    (block,) = blocks.plan(encoded(*range(6)), 8, done)
    assert block["key"].to_pylist() == [2, 4, 5]
    blocks.commit(str(tmp_path), block)
    merge(tmp_path)
    statuses = ["rejected", "encoded", "encoded", "rejected", "encoded", "encoded"]
    assert [status for _, status, _ in rows_of(tmp_path)] == statuses
    assert [key for key, _, _ in rows_of(tmp_path)] == list(range(6))


def test_what_keeps_a_block_from_being_written_is_raised_by_the_driver(tmp_path: Path) -> None:
    (tmp_path / "blocks").write_text("in the way")
    fault = blocks.commit(str(tmp_path), encoded(0))
    with pytest.raises(OSError, match=r"^\[Errno \d+\] [^\[]*blocks"):
        blocks.raise_fault([None, fault])
    blocks.raise_fault([None])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([[0, 1], [1, 2]], "key 1 is there twice: was another run writing there?"),
        ([[0], [2]], "key 1 is missing"),
        ([[0, 1, 2, 7]], "key 7 is not of this input"),
        ([], "key 0 is missing"),
    ],
)
def test_every_key_must_be_there_once(found: list[list[int]], message: str) -> None:
    keys = [np.array(part, np.int64) for part in found]
    with pytest.raises(RuntimeError, match=message.replace("?", r"\?")):
        blocks.check_keys("out", keys, np.arange(3))
    blocks.check_keys("out", [np.array([2, 0]), np.array([1])], np.arange(3))
