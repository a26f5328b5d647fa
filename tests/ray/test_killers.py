"""A row that kills or hangs its process is named and refused, and every other row is done.

The real jobs and their real workers; in those, a decoder that calls abort() or loops for marked
bytes, because what really crashes one is mended as soon as it is known.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from helpers.example import CODEC, DIGITS, ROOT
from sheen.runs.attempts import MAX_CRASHES, Attempts

WORKERS = """
    import importlib.util, os, sys
    import ray
    from sheen.runs import cluster

    def for_decoders():  # in each worker
        from sheen.audio import io as audio
        decode = audio.decode

        def marked(data):
            if data.startswith(b"ABORT"):
                os.abort()
            while data.startswith(b"HANG"):  # holds Python's lock nearly always
                pass
            return decode(data)

        audio.decode = marked

    def for_speakers():
        from sheen.engine.voice import Voice
        spoken = Voice.spoken

        def killing(self, text):
            if text == "kill":
                os.abort()
            return spoken(self, text)

        Voice.spoken = killing

    set_up = for_speakers if "evaluate" in sys.argv[1] else for_decoders
    ray.init(
        "local", num_cpus=2, include_dashboard=False,
        runtime_env={"env_vars": cluster.WORKER_ENV, "worker_process_setup_hook": set_up},
    )
    spec = importlib.util.spec_from_file_location("job", sys.argv[1])
    if "encode" in sys.argv[1]:
        from sheen.encode import job as encode_job
        encode_job.DECODE_LIMIT_S = 10
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    sys.exit(job.main(sys.argv[2:]))
"""


def run_job(name: str, tmp_path: Path, **flags: Any) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(WORKERS))
    words = [sys.executable, str(script), str(ROOT / "jobs" / f"{name}.py")]
    for flag, value in flags.items():
        words += [f"--{flag.replace('_', '-')}", str(value)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(words, capture_output=True, text=True, timeout=500, env=environment)


def rows_in(folder: Path) -> dict[str, dict[str, Any]]:
    found = [row for path in sorted(folder.rglob("*.parquet")) for row in read(path)]
    assert len({row["id"] for row in found}) == len(found), "a row stands twice"
    return {row["id"]: row for row in found}


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return rows


def test_recordings_that_kill_or_hang_the_decoder(tmp_path: Path) -> None:
    """Two of them in one block, so that finding one is not the end."""
    (tmp_path / "crash.wav").write_bytes(b"ABORT")
    (tmp_path / "hang.wav").write_bytes(b"HANG")
    wavs = DIGITS / "corpus" / "wavs"
    audio = {f"slt-000{n}": str(wavs / f"slt-000{n}.flac") for n in (1, 2, 3)}
    audio |= {"crash": "crash.wav", "hang": "hang.wav"}
    lines = [json.dumps({"id": k, "audio": v, "text": "five six"}) for k, v in audio.items()]
    lines = [lines[0], lines[3], lines[4], lines[1], lines[2]]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    done = run_job(
        "encode", tmp_path, input=tmp_path / "in.jsonl", output=tmp_path / "out", codec=CODEC,
        min_text_rate=0,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = rows_in(tmp_path / "out" / "rows")
    assert {name: row["reason"] for name, row in rows.items()} == {
        "slt-0001": None, "slt-0002": None, "slt-0003": None,
        "crash": "decoder crashed", "hang": "decoder hung",
    }  # fmt: skip
    assert "crash.wav" in rows["crash"]["detail"]
    assert "not done after 10 s" in rows["hang"]["detail"]
    assert "rejected, decoder crashed: 1" in done.stdout


def test_a_prompt_that_kills_its_speaker(trained: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"id": text, "text": text}) for text in ("one", "kill", "two")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    done = run_job(
        "evaluate", tmp_path, model=trained / "checkpoint", prompts=tmp_path / "prompts.jsonl",
        output=tmp_path / "out", voices='["slt"]', max_seconds=0.3, num_workers=1, asr="None",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = rows_in(tmp_path / "out" / "rows")
    assert {name: row["reason"] for name, row in rows.items()} == {
        "one": None, "kill": "speaking crashed", "two": None
    }  # fmt: skip


def test_a_recording_that_kills_the_codecs_trainer(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "crash.wav").write_bytes(b"ABORT")
    for n in (1, 2, 3):
        (data / f"{n}.flac").symlink_to(DIGITS / "corpus" / "wavs" / f"slt-000{n}.flac")
    done = run_job(
        "train_codec", tmp_path, data=data, output=tmp_path / "out", codec=CODEC, max_steps=2,
        segments=2, segment_seconds=0.2, log_every=1, eval_recordings=0, save_every=10,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
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


@pytest.fixture(autouse=True)
def _apart(request: pytest.FixtureRequest) -> None:
    """The trained model first: it needs a cluster, which the jobs here must not join."""
    if "trained" in request.fixturenames:
        request.getfixturevalue("trained")
    assert "RAY_ADDRESS" not in os.environ
    assert ray is not None
