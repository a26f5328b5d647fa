"""A row that kills or hangs its process is named and refused, and every other row is done.

The real jobs and their real workers; in those, a decoder that calls abort() or loops for marked
bytes, because what really crashes one is mended as soon as it is known.
"""

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from helpers.example import CODEC, RATE, ROOT, VOICE, VOICES, clips_of, flac, load_script
from helpers.opened import record_files
from helpers.recogniser import tiny_en
from helpers.tasks import as_tasks
from sheen.encode import job as encode_job
from sheen.evaluate import job as evaluate_job
from sheen.evaluate.speak_stage import SpeakWorker
from sheen.prepare import job as prepare_job
from sheen.prepare.stages import pipelines
from sheen.prepare.stages.transcribe import TranscribeWorker
from sheen.runs.attempts import MAX_CRASHES, MAX_LOSSES, Attempts
from sheen.train.codec import job as codec_job

Work = Callable[..., Any]


def run_job(name: str, **flags: Any) -> int:
    words = [
        word
        for flag, value in flags.items()
        for word in (f"--{flag.replace('_', '-')}", str(value))
    ]
    status: int = load_script(ROOT / "jobs" / f"{name}.py").main(words)
    return status


def with_a_marked_decoder(module: str, name: str) -> Work:
    """A function of the package, as workers do it whose decoder dies of marked bytes. It is sent
    to them by value: they cannot import this file."""

    def work(given: Any, **named: Any) -> Any:
        import importlib

        import av

        decode = av.open

        def marked(file: Any, *given: Any, **named: Any) -> Any:
            start = file.read(5)
            file.seek(0)
            if start == b"ABORT":
                os.abort()
            while start[:4] == b"HANG":  # holds Python's lock nearly always
                pass
            return decode(file, *given, **named)

        av.open = marked
        try:
            return getattr(importlib.import_module(module), name)(given, **named)
        finally:
            av.open = decode

    return work


def a_killing_speaker() -> type[SpeakWorker]:
    class Speaker(SpeakWorker):
        def speak(self, table: pa.Table) -> pa.Table:
            if any(row["text"] == "kill" and not row.get("reason") for row in table.to_pylist()):
                os.abort()
            return super().speak(table)

    return Speaker


def rows_in(folder: Path) -> dict[str, dict[str, Any]]:
    found = [row for path in sorted(folder.rglob("*.parquet")) for row in read(path)]
    assert len({row["id"] for row in found}) == len(found), "a row stands twice"
    return {row["id"]: row for row in found}


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return rows


@pytest.mark.parametrize("ends", ["crashed", pytest.param("hung", marks=pytest.mark.soak)])
def test_recordings_that_kill_or_hang_the_decoder_are_rejected_and_the_others_encoded(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, ends: str,
) -> None:  # fmt: skip
    """With one that hangs comes one that crashes in the same block: finding one is not the end."""
    work = with_a_marked_decoder("sheen.encode.stages", "decode_blocks")
    monkeypatch.setattr(encode_job, "decode_blocks", work)
    if ends == "hung":
        monkeypatch.setattr(encode_job, "DECODE_LIMIT_S", 10)
    (tmp_path / "crash.wav").write_bytes(b"ABORT")
    (tmp_path / "hang.wav").write_bytes(b"HANG")
    clips = {clip.id: clip for clip in clips_of(VOICES[0])[:3]}
    # At the codec's rate: a process that resamples starts twice as long, and many die here.
    for name, clip in clips.items():
        (tmp_path / f"{name}.flac").write_bytes(flac(clip, RATE))
    audio = {name: f"{name}.flac" for name in clips}
    audio |= {"crash": "crash.wav"} | ({"hang": "hang.wav"} if ends == "hung" else {})
    lines = [
        json.dumps({"id": k, "audio": v, "text": "five six seven eight"}) for k, v in audio.items()
    ]
    lines = [lines[0], *lines[3:], lines[1], lines[2]]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    assert not run_job(
        "encode", input=tmp_path / "in.jsonl", output=tmp_path / "out", codec=CODEC,
        num_workers=1,
    )  # fmt: skip
    rows = rows_in(tmp_path / "out" / "rows")
    expected = dict.fromkeys(clips) | {"crash": "decoder crashed"}
    if ends == "hung":
        expected["hang"] = "decoder hung"
        assert "not done after 10 s" in rows["hang"]["detail"]
    assert {name: row["reason"] for name, row in rows.items()} == expected
    assert "crash.wav" in rows["crash"]["detail"]
    assert "rejected, decoder crashed: 1" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_recording_that_killed_the_decoder_is_known_when_it_is_replaced(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, rows: bool,
) -> None:  # fmt: skip
    """By what its workers noted: before the pages the driver opens only what looks different."""
    stage, name = ("transcribe", "read_segments") if rows else ("cut", "cut_sources")
    work = with_a_marked_decoder(f"sheen.prepare.stages.{stage}", name)
    monkeypatch.setattr(pipelines, name, work)
    looked_at: list[str] = []
    opened, write = record_files(monkeypatch), prepare_job.write_manifest

    def write_manifest(*given: Any) -> None:
        assert [path for path in opened if path.endswith(".opus")] == looked_at
        write(*given)

    monkeypatch.setattr(prepare_job, "write_manifest", write_manifest)
    raw = tmp_path / "raw"
    raw.mkdir()
    data = [clip.path.read_bytes() for clip in clips_of(VOICES[0])[8:11]]
    names = ["1.opus", "crash.opus"]
    for audio, content in zip(names, (data[0], b"ABORT"), strict=True):
        (raw / audio).write_bytes(content)
    words = ["--output", str(tmp_path / "out"), "--asr", tiny_en(), "--num-workers", "1"]
    words += ["--no-num-speakers", "--review-rows", "0", "--input"]
    words += [f"local://{raw}/rows.jsonl", "--check"] if rows else [f"local://{raw}"]
    if rows:
        lines = [json.dumps({"id": audio, "audio": audio, "text": ""}) for audio in names]
        (raw / "rows.jsonl").write_text("\n".join(lines) + "\n")
    main = load_script(ROOT / "jobs" / "prepare.py").main

    def prepared() -> list[list[dict[str, Any]]]:
        opened.clear()
        # Cutting ends before transcribing begins; reading rows, which is killed else, does not.
        with nullcontext() if rows else as_tasks(TranscribeWorker):
            assert main(words) == 0
        for path in (tmp_path / "out").rglob("*.parquet"):
            for row in read(path):
                assert row["file"]["size"] == (raw / Path(row["audio"]).name).stat().st_size
        files = [tmp_path / "out" / name for name in ("manifest.jsonl", "rejected.jsonl")]
        return [list(map(json.loads, file.read_text().splitlines())) for file in files]

    first = prepared()
    (crashed,) = first[1]
    assert (Path(crashed["audio"]).name, crashed["reason"]) == ("crash.opus", "decoder crashed")
    assert prepared() == first
    (raw / "crash.opus").write_bytes(data[1])
    looked_at.append(str(raw / "crash.opus"))
    (one, other), rejected = prepared()
    assert ([one], rejected) == (first[0], [])
    assert other["audio"] == crashed["audio"]
    (raw / "crash.opus").write_bytes(data[2])
    capsys.readouterr()
    assert main(words) == 2
    assert "crash.opus: it is another recording" in capsys.readouterr().err


@pytest.mark.soak
def test_a_recording_that_gives_nothing_is_rejected_and_not_waited_for(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody writes to."""
    monkeypatch.setattr(pipelines, "READ_LIMIT_S", 10)
    os.mkfifo(tmp_path / "hang.wav")
    clip = clips_of(VOICES[0])[8].path
    words = ["--input", str(tmp_path / "hang.wav"), "--input", str(clip), "--asr", tiny_en()]
    words += ["--output", str(tmp_path / "out"), "--num-workers", "1", "--no-num-speakers"]
    assert load_script(ROOT / "jobs" / "prepare.py").main(words) == 0
    (rejected,) = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert (rejected["id"], rejected["reason"]) == ("hang", "decoder hung")
    assert "not done after 10 s" in rejected["detail"]
    assert len((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()) == 1


@pytest.mark.soak
def test_a_prompt_that_kills_its_worker_is_rejected_and_the_others_spoken(
    ray_cluster: None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_job, "SpeakWorker", a_killing_speaker())
    lines = [json.dumps({"id": text, "text": text}) for text in ("one", "kill", "two")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    assert not run_job(
        "evaluate", model=checkpoint, prompts=tmp_path / "prompts.jsonl",
        output=tmp_path / "out", voices=json.dumps([VOICE]), max_seconds=0.3, num_workers=1,
        asr="None",
    )  # fmt: skip
    rows = rows_in(tmp_path / "out" / "rows")
    assert {name: row["reason"] for name, row in rows.items()} == {
        "one": None, "kill": "speaking crashed", "two": None
    }  # fmt: skip


@pytest.mark.soak
def test_a_recording_that_kills_the_codecs_trainer_is_left_out_and_named(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = with_a_marked_decoder("sheen.train.codec.trainer", "train_loop")
    monkeypatch.setattr(codec_job, "train_loop", work)
    data = tmp_path / "data"
    data.mkdir()
    (data / "crash.wav").write_bytes(b"ABORT")
    for n, clip in enumerate(clips_of(VOICES[0])[:3]):
        (data / f"{n}.flac").write_bytes(flac(clip))
    assert not run_job(
        "train_codec", data=data, output=tmp_path / "out", codec=CODEC, max_steps=2,
        segments=2, segment_seconds=0.2, eval_recordings=0, save_every=10,
    )  # fmt: skip
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert list(last["unreadable"]) == [str(data / "crash.wav")]
    assert last["unreadable"][str(data / "crash.wav")].startswith("decoder crashed")


def test_a_row_is_refused_after_as_many_deaths_and_not_before(ray_cluster: None) -> None:
    """The count alone: each begin without an end is a death of the row that was last noted."""
    attempts = Attempts()
    table = pa.table({"key": [7, 8], "reason": pa.nulls(2, pa.string()),
                      "detail": pa.nulls(2, pa.string()), "pcm": [b"a", b"b"]})  # fmt: skip
    block = ("stage", 7)
    assert attempts.begin(block).starts == 1
    for crashes in range(MAX_CRASHES):
        past = attempts.begin(block)
        assert len(past.crashes.get(8, [])) == crashes
        attempts.at(block, 7)
        attempts.at(block, 8)
    done = attempts.guard("stage", table, lambda part: part)
    assert done["reason"].to_pylist() == [None, "stage crashed"]
    assert done["pcm"].to_pylist() == [b"a", None]
    assert attempts.begin(block).starts == 1, "a block that ended begins anew"


def test_a_row_is_not_refused_for_nodes_that_were_lost_under_it(ray_cluster: None) -> None:
    """But for so many that it ends them itself. Each begin without an end is a lost process."""
    attempts = Attempts()
    block, table = ("stage", 8), pa.table({"key": [8], "reason": pa.nulls(1, pa.string())})

    def lose(node: str) -> list[Any]:
        noted = attempts._board.at.remote((attempts._job, block), 8, node)
        ray.get(noted)  # as `at` does it on that node
        return attempts.begin(block).crashes[8]

    attempts.begin(block)
    for number in range(MAX_LOSSES - 1):
        assert lose(f"{number:056x}") == []
    for crashes in range(1, MAX_CRASHES):
        assert len(lose(ray.get_runtime_context().get_node_id())) == crashes
    assert attempts.guard("stage", table, lambda part: part)["reason"].to_pylist() == [None]

    attempts.begin(block)
    for number in range(MAX_LOSSES):
        lose(f"{number:056x}")
    done = attempts.guard("stage", table, lambda part: part)
    assert done["reason"].to_pylist() == ["stage crashed"]
