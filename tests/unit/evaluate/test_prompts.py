"""Evaluation in voices from recordings: which file is whose, and that they are spoken in."""

import io
import json
from pathlib import Path
from typing import Any

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
from sheen.evaluate.prompts import check_enrolled, plan_prompts, read_references, references_digest
from sheen.evaluate.speak_stage import SpeakWorker
from sheen.lm.checkpoint import CheckpointInfo, PromptInfo
from sheen.rng import step_seed
from sheen.scoring.speaker_id import ALL, read_speakers

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


def config_of(**fields: Any) -> EvaluateConfig:
    return EvaluateConfig(model="m", prompts="p", output="o", **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [("a", "A tired old man."), ("b", None), ("c", "A child.")]),
        (
            {"voices": ["A child.", "A queen."]},
            [("b", "A child."), ("b", "A queen."), ("c", "A child.")],
        ),
    ],
)
def test_a_prompt_keeps_the_description_of_its_voice(
    fields: dict[str, Any], expected: list[tuple[str, str | None]]
) -> None:
    """Of a model whose speakers are described in words, which has no list of them."""
    info = CheckpointInfo.model_construct(voices=[], prompt=PromptInfo(name="maya1"))
    listed = [Prompt("a", "one", "A tired old man."), Prompt("b", "two")]
    listed.append(Prompt("c", "three", "A child."))
    plan = plan_prompts(listed, info, config_of(**fields))
    assert [(prompt.id, prompt.speaker) for prompt in plan.prompts] == expected
    assert sum(plan.skipped.values()) == (1 if fields else 0)
    with_reference = plan_prompts(listed, info, config_of(), ["ann"])
    assert [prompt.speaker for prompt in with_reference.prompts] == [
        "A tired old man.", "ann", "A child.",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="a voice cannot be named 'all'"):
        plan_prompts([Prompt("a", "one", ALL)], info, config_of())


def test_a_model_with_one_voice_that_has_no_name_ignores_those_of_prompts() -> None:
    info = CheckpointInfo.model_construct(voices=[])
    plan = plan_prompts([Prompt("a", "one", "A tired old man.")], info, config_of())
    assert plan.prompts == [Prompt("a", "one")]


def test_a_voice_is_the_same_in_either_form_of_unicode(tmp_path: Path) -> None:
    composed, typed = "Zo\u00eb", " Zoe\u0308 "
    path = manifest(tmp_path, *[{"speaker": name, "text": WORDS} for name in (typed, composed)])
    assert list(read_references(path)) == [composed]
    speakers = read_speakers(path, 24_000)
    assert {name: len(clips) for name, clips in speakers.items()} == {composed: 2}
    info = CheckpointInfo.model_construct(voices=["heart"])
    config = config_of(voices=[typed], untrained_voices=[typed])
    assert plan_prompts([Prompt("a", "one", composed)], info, config).prompts[0].speaker == composed


def test_recordings_of_other_voices_than_those_that_speak_are_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing would be measured of these voices, and no word said of it."""
    prompts = [Prompt("a", "one", "heart"), Prompt("b", "two", "liam")]
    with pytest.raises(ValueError, match=r"--voice-recordings r: .* of heart, liam; it has Heart"):
        check_enrolled("r", ["Heart", "ann"], prompts)
    with pytest.raises(ValueError, match="of the voice without a name"):
        check_enrolled("r", ["heart", "ann"], [Prompt("a", "one")])
    check_enrolled("r", ["heart", "liam", "ann"], prompts)
    assert not caplog.records
    check_enrolled("r", ["heart", "ann"], prompts)
    assert "r: no recordings of liam; it has heart, ann" in caplog.text


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
