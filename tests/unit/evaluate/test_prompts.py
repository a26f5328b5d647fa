"""Evaluation in voices from recordings: which file is whose, and that they are spoken in."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

import sheen
from helpers.example import CHECKPOINT
from helpers.speaking import assert_close
from sheen.audio.io import encode_audio, to_pcm16
from sheen.data.prompts import Prompt
from sheen.evaluate.config import EvaluateConfig
from sheen.evaluate.job import speaker_arguments, with_absolute_paths
from sheen.evaluate.output import PROMPT_SCHEMA
from sheen.evaluate.prompts import plan_prompts, read_references, references_digest
from sheen.evaluate.speak_stage import SpeakWorker
from sheen.lm.checkpoint import CheckpointInfo
from sheen.rng import step_seed

WORDS = "four two seven one"


def manifest(folder: Path, *rows: dict[str, str]) -> str:
    at = np.arange(48_000) / 24_000
    tone = (0.3 * np.sin(2 * np.pi * 200 * at)).astype(np.float32)
    (folder / "a.wav").write_bytes(encode_audio(tone, 24_000, "WAV"))
    path = folder / "references.jsonl"
    path.write_text("".join(json.dumps({"audio": "a.wav"} | row) + "\n" for row in rows))
    return str(path)


def test_the_first_row_of_a_speaker_is_the_reference(tmp_path: Path) -> None:
    rows = [{"speaker": "ann", "text": WORDS}, {"speaker": "ann", "text": "other"}, {"text": "x"}]
    found = read_references(manifest(tmp_path, *rows))
    assert list(found) == ["ann"]
    assert found["ann"].text == WORDS
    assert found["ann"].data == (tmp_path / "a.wav").read_bytes()
    other = read_references(manifest(tmp_path, {"speaker": "ann", "text": "other"}))
    assert references_digest(found) != references_digest(other)


def test_a_file_without_speakers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no row has a speaker"):
        read_references(manifest(tmp_path, {"text": "one"}))
    with pytest.raises(ValueError, match=r"jsonl:1: no text"):
        read_references(manifest(tmp_path, {"speaker": "ann", "text": ""}))


def test_prompts_may_be_for_voices_of_recordings() -> None:
    info = CheckpointInfo.model_construct(voices=["heart"])
    config = EvaluateConfig(model="m", prompts="p", output="o", voices=["ann"])
    listed = [Prompt("a", "one", "ann"), Prompt("b", "one"), Prompt("c", "one", "heart")]
    plan = plan_prompts(listed, info, config, ["ann"])
    assert [(prompt.id, prompt.speaker) for prompt in plan.prompts] == [("a", "ann"), ("b", "ann")]
    with pytest.raises(ValueError, match="the checkpoint already has the voice 'heart'"):
        plan_prompts(listed, info, config, ["heart"])


@pytest.mark.slow
def test_a_worker_speaks_as_the_python_api_does(tmp_path: Path) -> None:
    found = read_references(manifest(tmp_path, {"speaker": "ann", "text": WORDS}))
    arguments = {"references": found, "reference_form": "one-turn"}
    worker = SpeakWorker(str(CHECKPOINT), "cpu", [], {}, 5, 3.0, 1, **arguments)  # type: ignore[arg-type]
    prompt = {"key": 3, "id": "a", "text": "four two", "speaker": "ann"}
    [row] = worker(pa.Table.from_pylist([prompt], schema=PROMPT_SCHEMA)).to_pylist()
    assert row["reason"] is None
    assert row["expected_seconds"] == pytest.approx(
        2.0 / len(WORDS) * len("four two"), rel=0.2
    )  # of phonemes
    with sheen.load(str(CHECKPOINT), device="cpu", max_seconds=3.0) as speaker:
        reference = speaker.reference(tmp_path / "a.wav", WORDS, form="one-turn")
        audio = speaker.synthesize("four two", reference=reference, seed=step_seed(5, 3))
    spoken = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")[0]
    assert_close(spoken, to_pcm16(audio.samples))
    with pytest.raises(ValueError, match=r"--references: ann: ref_audio: .* was not trained"):
        SpeakWorker(str(CHECKPOINT), "cpu", [], {}, 5, 3.0, 1, references=found)


def test_workers_speak_in_the_dtype_of_the_config(checkpoint: Path) -> None:
    config = EvaluateConfig(
        model=str(checkpoint), prompts="p", output="o", dtype="bfloat16", max_seconds=0.2
    )
    worker = SpeakWorker(**speaker_arguments(config, config.model))
    worker._engine.close()
    assert worker._voice.dtype == "bfloat16"


def test_what_workers_open_has_no_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    for name in ("kept/info.json", "kept/codec"):
        (tmp_path / name).touch()
    given = EvaluateConfig(
        model="m", prompts="p", output="o", codec="kept/codec", info="kept/info.json"
    )
    found = with_absolute_paths(given)
    assert (found.codec, found.info) == (f"{tmp_path}/kept/codec", f"{tmp_path}/kept/info.json")
    published = given.model_copy(update={"codec": "hubertsiuzdak/snac_24khz", "info": None})
    assert with_absolute_paths(published) == published
