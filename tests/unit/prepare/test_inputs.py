"""Texts that the input has: found, read, and set against what is heard."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from helpers.corpora import CLIPS, by_parquet, by_webdataset, sound
from helpers.example import DEMO, RATE, RECORDINGS, VOICE, clips_of, read_clip
from sheen import blocks
from sheen.audio.io import decode
from sheen.data.clips import ClipReader
from sheen.data.corpus import read_manifest
from sheen.data.readers.forms import FORMS
from sheen.prepare.config import PrepareConfig
from sheen.prepare.cutting.cut import PAUSE, CutSettings
from sheen.prepare.inputs import (
    CutCorpus,
    cut_corpus,
    find_input,
    is_corpus,
    plan_corpus,
    recordings_of_corpus,
    rows_to_cut,
)
from sheen.prepare.manifest import (
    NOT_IN_TEXT,
    SEGMENT_BITS,
    Criteria,
    Segments,
    give_texts,
    jsonl_row,
    output_rows,
    write_manifest,
)
from sheen.prepare.output import CUT_SCHEMA, CUTS, MANIFEST, TRANSCRIPT_SCHEMA
from sheen.prepare.rejections.quality import QualityLimits
from sheen.prepare.rejections.reasons import TEXT_DIFFERS, Limits, TextLimits
from sheen.prepare.stages.cut import _cut
from sheen.prepare.stages.pipelines import cut_all
from sheen.prepare.stages.transcribe import _read_all

Row = dict[str, Any]
CRITERIA = Criteria(Limits(), QualityLimits(), TextLimits(), None)


def heard(row: Row, text: str, language: str | None = "en") -> Row:
    told = {"text": text, "seconds": 2.5, "language": language}
    return dict.fromkeys(TRANSCRIPT_SCHEMA.names) | row | told


def test_inputs_with_rows_of_texts_are_corpora(tmp_path: Path) -> None:
    assert is_corpus(str(RECORDINGS))
    (tmp_path / "a.mp3").touch()
    assert not is_corpus(str(tmp_path))
    (tmp_path / "about.json").write_text("{}", "utf-8")
    assert not is_corpus(str(tmp_path))
    (tmp_path / "metadata.csv").write_text("a|Hello.\n", "utf-8")
    assert is_corpus(str(tmp_path))


@pytest.mark.parametrize("name", FORMS)
def test_no_form_of_input_is_taken_for_recordings(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    (tmp_path / (form.marker or f"rows{form.suffix}")).touch()
    assert is_corpus(str(tmp_path))
    assert is_corpus(str(tmp_path / f"ROWS{form.suffix}".upper())) is (form.suffix is not None)


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
    rows = output_rows([], segments, transcripts, CRITERIA)
    found = {row["id"]: row for row in rows}
    assert {name: row["reason"] for name, row in found.items()} == {
        "gone": "missing", "right": None, "wrong": TEXT_DIFFERS, "none": None,
    }  # fmt: skip
    assert found["right"]["text"] == "At 5:30 p.m., Smith's 3 cats left."
    assert found["right"]["cer"] == 0.0
    assert found["wrong"]["speaker"] == "ann"
    assert jsonl_row(found["wrong"])["instruction"] == "loud"
    assert "instruction" not in jsonl_row(found["right"])
    assert "Please hold the line." in found["wrong"]["detail"]
    assert said[1] in found["wrong"]["detail"]
    assert (found["none"]["text"], found["none"]["heard"]) == ("thank you all", None)


@pytest.mark.parametrize(
    ("asked", "language", "alike"),
    [(None, "en", True), ("en", "en", True), ("en", None, True), (None, "de", False),
     (None, None, False)],
)  # fmt: skip
def test_english_numbers_are_spelt_alike_whatever_asr_found_the_language(
    asked: str | None, language: str | None, alike: bool
) -> None:
    """By `--language` where it tells none."""
    row = {"id": "a", "audio": "/a.mp3", "given": "At 5:30 p.m. it costs $24.99."}
    said = "at five thirty pm it costs twenty four dollars and ninety nine cents"
    empty = Segments(TRANSCRIPT_SCHEMA.empty_table(), [])
    criteria = replace(CRITERIA, language=asked)
    (rows_out,) = output_rows([], empty, [heard(row, said, language)], criteria)
    assert (rows_out["reason"], rows_out["text_doubtful"]) == (
        (None, False) if alike else (TEXT_DIFFERS, True)
    )


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


def test_a_recording_that_is_gone_after_it_was_cut_is_counted_and_what_was_cut_stays(
    tmp_path: Path,
) -> None:
    """Whether it is longer than a segment or not. Of an LJSpeech folder it is known to be missing
    before anything is read, of other forms only then: the rest of the run is the same."""
    folder, output, settings = tmp_path / "corpus", tmp_path / "out", CutSettings(1.0, 6.0)
    (folder / "wavs").mkdir(parents=True)
    clips = clips_of(VOICE)[8:11]
    long = np.concatenate([read_clip(clip) for clip in clips])
    soundfile.write(folder / "wavs" / "long.flac", long, RATE)
    soundfile.write(folder / "wavs" / "short.flac", read_clip(clips[0]), RATE)
    (folder / "metadata.csv").write_text("long|Long.\nshort|Short.\nlater|Later.\n", "utf-8")
    config = PrepareConfig(
        input=[str(folder)], output=str(output), min_seconds=1.0, max_seconds=6.0
    )

    def plan() -> tuple[pa.Table, CutCorpus]:
        """What there is to cut, and what to transcribe once it is cut."""
        planned = plan_corpus(config.input)
        table = rows_to_cut(planned, settings.max_seconds)
        done = blocks.merged_keys(str(output / CUTS))
        rows = table.filter(pa.array(~np.isin(table["key"].to_numpy(), done))).to_pylist()
        if rows:  # as a task does
            cut = pa.Table.from_pylist([_cut(row, settings) for row in rows], schema=CUT_SCHEMA)
            blocks.commit(str(output / CUTS), cut)
        cuts = cut_all(table, config, str(output), []).to_pylist()
        return table, cut_corpus(planned, cuts, settings)

    _, before = plan()
    assert len(before.segments.table) > 2
    assert set(before.segments.table["reason"].to_pylist()) == {None}
    for name in ("long", "short"):
        (folder / "wavs" / f"{name}.flac").unlink()
    (folder / "wavs" / "other.flac").touch()
    table, after = plan()
    assert table["reason"].to_pylist() == ["missing"] * 3
    for name in ("key", "id", "start"):
        assert after.segments.table[name] == before.segments.table[name]
    assert after.segments.rejected == before.segments.rejected
    (later,) = after.segments.rejected
    assert (later["id"], later["reason"]) == ("later", "missing")
    assert "no recording 'later' in" in later["detail"]
    # Those that are not transcribed yet.
    rows = after.segments.table.to_pylist()
    found = _read_all(ClipReader(), rows, {}, None, lambda _: nullcontext())
    assert {row["reason"] for row in found} == {"missing"}


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
    rows = output_rows([], segments, transcripts, CRITERIA)
    assert [(row["id"], row["reason"]) for row in rows] == [("one", None), ("two", TEXT_DIFFERS)]
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
    key = 3 << SEGMENT_BITS
    transcripts = [
        heard({"key": key + n, "id": str(n), "audio": "/a.mp3"}, text)
        for n, text in enumerate(said)
    ]
    other = {"key": 4 << SEGMENT_BITS, "id": "other", "audio": "/b.mp3"}
    transcripts.append(heard(other, "Nobody knows."))
    give_texts(transcripts, {3: book})
    segments = plan_corpus([str(RECORDINGS)])
    rows = output_rows([], segments, transcripts, CRITERIA)
    assert [(row["text"], row["reason"]) for row in rows] == [
        (said[0], NOT_IN_TEXT),
        ("“Nobody knows,” said the old man: it was late.", None),
        ("The wind rose, and the lamp went out.", None),
        ("Nobody knows.", None),
    ]


def test_long_rows_are_cut_and_their_texts_divided_while_short_ones_stay_as_they_are(
    tmp_path: Path,
) -> None:
    clips = clips_of(VOICE)[8:14]
    pause = 1e-4 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    parts = [part for clip in clips for part in (pause, read_clip(clip))]
    soundfile.write(tmp_path / "long.flac", np.concatenate(parts), RATE)
    soundfile.write(tmp_path / "short.flac", read_clip(clips[0])[: RATE // 2], RATE)
    soundfile.write(tmp_path / "silent.flac", np.zeros(30 * RATE, np.float32), RATE)
    seconds = sum(map(len, parts)) / RATE
    # Without the first clip: the part begins in the pause after it.
    start = 1 + len(read_clip(clips[0])) / RATE + 0.5
    text = " ".join(clip.text for clip in clips)
    lines = [
        {"id": "long", "audio": "long.flac", "text": text, "speaker": "ann"},
        {"id": "part", "audio": "long.flac", "start": start, "end": seconds, "text": text},
        {"id": "known", "audio": "long.flac", "start": start, "end": start + 2, "text": "Known."},
        {"id": "short", "audio": "short.flac", "text": "Short."},
        {"id": "silent", "audio": "silent.flac", "text": "Nothing."},
        {"id": "gone", "audio": "gone.flac", "text": "Gone."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    settings = CutSettings(1.0, 6.0)
    planned = plan_corpus([str(path)])
    table = rows_to_cut(planned, settings.max_seconds)
    assert table["name"].to_pylist() == ["long", "part", "short", "silent", "gone"]
    corpus = cut_corpus(planned, [_cut(row, settings) for row in table.to_pylist()], settings)
    rows = corpus.segments.table.to_pylist()
    assert [row["key"] for row in rows] == sorted({row["key"] for row in rows})
    by_id = {row["id"]: row for row in rows}
    assert by_id["short"]["given"] == "Short."
    assert (by_id["known"]["start"], by_id["known"]["given"]) == (start, "Known.")
    assert [(row["id"], row["reason"]) for row in corpus.segments.rejected] == [
        ("silent", "no speech"),
        ("gone", "missing"),
    ]
    whole, part = (
        [row for row in rows if row["id"].startswith(f"{name}-")] for name in ("long", "part")
    )
    assert len(whole) == len(clips)
    assert {row["given_speaker"] for row in whole} == {"ann"}
    # The same places, counted from the recording's first sample.
    for one, another in zip(whole[1:], part, strict=True):
        assert another["start"] == pytest.approx(one["start"], abs=0.05)
        assert another["end"] == pytest.approx(one["end"], abs=0.05)

    said = {
        row["key"]: clip.text.lower()
        for group, spoken in ((whole, clips), (part, clips[1:]))
        for row, clip in zip(group, spoken, strict=True)
    }
    transcripts = [heard(row, said.get(row["key"], row["given"])) for row in rows]
    for row in transcripts:
        row["seconds"] = None if row["reason"] else 2.5
    give_texts(transcripts, corpus.texts)
    rows_out = output_rows([], corpus.segments, transcripts, CRITERIA)
    kept = {row["id"]: row for row in rows_out if row["reason"] is None}
    for row, clip in zip(whole, clips, strict=True):
        assert kept[row["id"]]["text"] == clip.text
        assert kept[row["id"]]["end_at"] == PAUSE or row is whole[-1]
    sources = recordings_of_corpus([*transcripts, *corpus.segments.rejected], corpus.long)
    told = {Path(source["audio"]).name: source["seconds"] for source in sources}
    assert told["long.flac"] == pytest.approx(seconds + seconds - start + 2.5, abs=0.01)
    assert told["silent.flac"] == 30


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"check": True, "max_seconds": 20}, "--max-seconds has no effect with --check"),
        ({"check": True, "channels": "each"}, "--channels has no effect with --check"),
        ({"channels": "each"}, "--channels each has no effect on rows with texts"),
        ({"check": True, "input": str(DEMO / VOICE)}, "--check needs rows with texts"),
    ],
)
def test_flags_without_effect_on_rows_with_texts_are_refused(
    fields: dict[str, Any], said: str
) -> None:
    given = {"input": str(RECORDINGS), "output": "/nowhere"} | fields
    with pytest.raises(ValueError, match=said):
        find_input(PrepareConfig(**given))


def test_the_only_text_of_a_folder_is_used_where_it_is_what_is_read() -> None:
    """And not where it is something else, such as notes, which would reject everything."""
    book = "“Nobody knows,” said the old man: it was late. The wind rose, and the lamp went out."
    said = {
        "/1.mp3": "nobody knows said the old man it was late",
        "/2.mp3": "the wind rose and the lamp went out",
        "/3.mp3": "this is a recording by somebody else",
        "/4.mp3": "",
    }

    def given(shared: dict[int, str]) -> list[str | None]:
        rows = [
            heard({"key": key << SEGMENT_BITS, "id": audio, "audio": audio}, text)
            for key, (audio, text) in enumerate(said.items())
        ]
        used = give_texts(rows, {}, shared)
        assert used in (set(), {*shared})
        return [row["given"] for row in rows]

    assert given(dict.fromkeys(range(4), book)) == [
        "“Nobody knows,” said the old man: it was late.",
        "The wind rose, and the lamp went out.", "", "",
    ]  # fmt: skip
    assert given(dict.fromkeys(range(4), "Recorded on Monday, in the blue room.")) == [None] * 4
    assert given({2: book, 3: book}) == [None] * 4


def test_texts_are_those_of_the_files_beside_the_recordings(tmp_path: Path) -> None:
    for name in ("1.mp3", "2.mp3", "3.mp3"):
        (tmp_path / name).touch()
    (tmp_path / "2.en.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nSecond.\n", "utf-8")
    (tmp_path / "book.txt").write_text("A whole book.", "utf-8")
    fields = {"input": str(tmp_path), "output": "/nowhere"}
    found = find_input(PrepareConfig(**fields))
    assert (found.texts, found.shared) == ({1: "Second."}, dict.fromkeys((0, 2), "A whole book."))
    assert found.sources.skipped == {".txt": 1}
    # What cannot be read need not be theirs.
    (tmp_path / "book.txt").write_bytes(b"caf\xe9")
    assert find_input(PrepareConfig(**fields)).shared == {}
    found = find_input(PrepareConfig(**fields, texts=False))
    assert (found.texts, found.shared) == ({}, {})
