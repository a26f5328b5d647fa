"""Texts that the input has: found, read, and set against what is heard."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.corpora import CLIPS, by_parquet, by_webdataset, sound
from helpers.example import DEMO
from sheen.audio.io import decode
from sheen.data.clips import ClipReader
from sheen.data.corpus import read_manifest
from sheen.prepare.given import is_corpus, plan_corpus
from sheen.prepare.manifest import (
    NOT_IN_TEXT,
    Judgement,
    give_texts,
    judge_rows,
    public,
    write_manifest,
)
from sheen.prepare.output import MANIFEST, TRANSCRIPT_SCHEMA
from sheen.prepare.quality import QualityLimits
from sheen.prepare.rejections import Limits
from sheen.prepare.texts import REASON, TextLimits
from sheen.scoring.wer import normalize_english

Row = dict[str, Any]
JUDGEMENT = Judgement(Limits(), QualityLimits(), TextLimits(), None, normalize_english)


def heard(row: Row, text: str) -> Row:
    return dict.fromkeys(TRANSCRIPT_SCHEMA.names) | row | {"text": text, "seconds": 2.5}


def test_inputs_with_rows_of_texts_are_corpora(tmp_path: Path) -> None:
    assert is_corpus(str(DEMO / "heart.jsonl"))
    (tmp_path / "a.mp3").touch()
    assert not is_corpus(str(tmp_path))
    (tmp_path / "about.json").write_text("{}", "utf-8")
    assert not is_corpus(str(tmp_path))
    (tmp_path / "metadata.csv").write_text("a|Hello.\n", "utf-8")
    assert is_corpus(str(tmp_path))


def test_of_a_corpus_the_texts_that_are_not_spoken_are_rejected(tmp_path: Path) -> None:
    lines = [
        {"id": "right", "audio": "1.wav", "text": "At 5:30 p.m., Smith's 3 cats left."},
        {"id": "wrong", "audio": "2.wav", "text": "Please hold the line.", "speaker": "ann"}
        | {"instruction": "loud"},
        {"id": "none", "audio": "3.wav", "text": ""},
        {"id": "gone", "text": "No recording.", "audio": ""},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    segments = plan_corpus([str(path)])
    said = (
        "at five thirty pm smith's three cats left", "nobody expects a bill today", "thank you all",
    )  # fmt: skip
    transcripts = [heard(*pair) for pair in zip(segments.table.to_pylist(), said, strict=True)]
    rows = judge_rows([], segments, transcripts, JUDGEMENT)
    found = {row["id"]: row for row in rows}
    assert {name: row["reason"] for name, row in found.items()} == {
        "gone": "missing", "right": None, "wrong": REASON, "none": None,
    }  # fmt: skip
    assert found["right"]["text"] == "At 5:30 p.m., Smith's 3 cats left."
    assert found["right"]["cer"] == 0.0
    assert found["wrong"]["speaker"] == "ann"
    assert public(found["wrong"])["instruction"] == "loud"
    assert "instruction" not in public(found["right"])
    assert "Please hold the line." in found["wrong"]["detail"]
    assert said[1] in found["wrong"]["detail"]
    assert (found["none"]["text"], found["none"]["heard"]) == ("thank you all", None)


def test_a_recording_that_comes_later_is_a_source_from_the_first_run_on(tmp_path: Path) -> None:
    """So that the same command takes it, and is not refused for another input."""
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "a.flac").write_bytes(sound(CLIPS[0]))
    (tmp_path / "metadata.csv").write_text("a|One.\nb|Two.\n", "utf-8")
    before = plan_corpus([str(tmp_path)])
    assert before.table["reason"].to_pylist() == [None, "missing"]
    assert not before.rejected
    (tmp_path / "wavs" / "b.flac").write_bytes(sound(CLIPS[1]))
    after = plan_corpus([str(tmp_path)])
    assert after.table["reason"].to_pylist() == [None, None]
    for name in ("key", "id", "given"):
        assert before.table[name] == after.table[name]


def test_rows_of_codes_are_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"snac_codes": [[1], [1, 2], [1, 2, 3, 4]], "text": "one"}\n', "utf-8")
    with pytest.raises(ValueError, match=r"--input: rows\.jsonl:1 has codes instead"):
        plan_corpus([str(path)])


@pytest.mark.parametrize("form", [by_parquet, by_webdataset])
def test_rows_inside_a_file_are_checked_and_named_so_that_they_encode(
    form: Callable[[Path, list[Row]], Path], tmp_path: Path
) -> None:
    texts = {"one": "What is said.", "two": "Something else altogether."}
    path = form(tmp_path, [{"id": name, "text": text} for name, text in texts.items()])
    segments = plan_corpus([str(path)])
    listed = segments.table.to_pylist()
    # What was guessed of one recording does not count for the others in the file.
    transcripts = [
        heard(row, "what is said") | {"language": of, "heard_language": of, "heard_probability": 1}
        for row, of in zip(listed, ("en", "de"), strict=True)
    ]
    rows = judge_rows([], segments, transcripts, JUDGEMENT)
    assert [(row["id"], row["reason"]) for row in rows] == [("one", None), ("two", REASON)]
    write_manifest(str(tmp_path), rows)
    (kept,) = read_manifest(str(tmp_path / MANIFEST)).to_pylist()
    found, rate = ClipReader().read(kept)
    expected, its_rate = decode(sound(CLIPS[0]))
    assert rate == its_rate
    np.testing.assert_array_equal(found, expected)


def test_segments_of_a_recording_get_what_they_speak_of_its_text() -> None:
    book = "“Nobody knows,” said the old man: it was late. The wind rose, and the lamp went out."
    said = (
        "this is a recording by somebody else",
        "nobody knows said the old man it was late",
        "the wind rose and the lamp went out",
    )
    transcripts = [heard({"id": str(n), "audio": "/a.mp3"}, text) for n, text in enumerate(said)]
    transcripts.append(heard({"id": "other", "audio": "/b.mp3"}, "Nobody knows."))
    give_texts(transcripts, {"/a.mp3": book})
    segments = plan_corpus([str(DEMO / "heart.jsonl")])
    rows = judge_rows([], segments, transcripts, JUDGEMENT)
    assert [(row["text"], row["reason"]) for row in rows] == [
        (said[0], NOT_IN_TEXT),
        ("“Nobody knows,” said the old man: it was late.", None),
        ("The wind rose, and the lamp went out.", None),
        ("Nobody knows.", None),
    ]
