"""How a job reads its configuration, and where a job's output may lie."""

import re
from pathlib import Path
from typing import get_args

import pytest

from helpers.example import ROOT, load_script
from sheen.config import ConfigError, JobConfig, load_config
from sheen.encode.config import EncodeConfig
from sheen.evaluate.config import EvaluateConfig
from sheen.prepare.config import PrepareConfig
from sheen.runs.cluster import output_folder
from sheen.train.codec.config import CodecTrainConfig
from sheen.train.config import TrainConfig

REQUIRED = ["--input", "flag-in", "--output", "flag-out"]
EVALUATE = ["--model", "m", "--prompts", "p", "--output", "o"]
JOBS = [
    ("encode.py", EncodeConfig),
    ("train.py", TrainConfig),
    ("evaluate.py", EvaluateConfig),
]
OTHERS = [("", CodecTrainConfig), ("", PrepareConfig)]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, config in JOBS:
        for name in config.model_fields:
            monkeypatch.delenv(f"SHEEN_{name.upper()}", raising=False)


def load(argv: list[str]) -> EncodeConfig:
    return load_config(EncodeConfig, argv, "jobs/encode.py")


def message(argv: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(argv)
    return str(caught.value)


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text("input: file-in\noutput: file-out\nshifts: 3\nphonemes: true\n", "utf-8")
    return file


# The order


def test_a_flag_goes_over_the_environment_over_the_file_over_the_default(
    yaml_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ["--config", str(yaml_file)]
    assert load(REQUIRED).shifts == EncodeConfig.model_fields["shifts"].default == 1
    assert load(file).shifts == 3
    monkeypatch.setenv("SHEEN_SHIFTS", "5")
    assert load(file).shifts == 5
    assert load([*file, "--shifts", "7"]).shifts == 7
    assert load([*file, "--shifts=7"]).shifts == 7


def test_every_source_fills_what_the_ones_above_it_leave_open(
    yaml_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHEEN_OUTPUT", "environment-out")
    config = load([f"--config={yaml_file}", "--limit", "9"])
    assert config.model_dump() == {
        **{name: field.default for name, field in EncodeConfig.model_fields.items()},
        "config": str(yaml_file),
        "input": ["file-in"],
        "output": "environment-out",
        "shifts": 3,
        "phonemes": True,
        "limit": 9,
    }


def test_a_flag_can_switch_off_what_the_file_switches_on(yaml_file: Path) -> None:
    assert load(["--config", str(yaml_file)]).phonemes
    assert not load(["--config", str(yaml_file), "--no-phonemes"]).phonemes


def test_gpu_has_three_values() -> None:
    assert load(REQUIRED).gpu is None
    assert load([*REQUIRED, "--gpu"]).gpu is True
    assert load([*REQUIRED, "--no-gpu"]).gpu is False


def test_an_optional_field_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gave it: the default, the file, the environment, or an earlier flag."""
    (tmp_path / "job.yaml").write_text("per_voice: 3\n", "utf-8")
    monkeypatch.setenv("SHEEN_VOICE_RECORDINGS", "clips")
    given = [*EVALUATE, "--config", str(tmp_path / "job.yaml"), "--num-workers", "2"]
    config = load_config(EvaluateConfig, given, "evaluate")
    assert (config.asr, config.per_voice) == ("base", 3)
    assert (config.voice_recordings, config.num_workers) == ("clips", 2)
    left_out = ["--no-asr", "--no-per-voice", "--no-voice-recordings", "--no-num-workers"]
    config = load_config(EvaluateConfig, [*given, *left_out], "evaluate")
    assert config.asr is config.per_voice is config.voice_recordings is config.num_workers is None
    config = load_config(EvaluateConfig, [*given, "--no-asr", "--asr", "a/b"], "evaluate")
    assert config.asr == "a/b"


def test_a_list_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("voices: [heart]\n", "utf-8")
    given = [*EVALUATE, "--config", str(tmp_path / "job.yaml")]
    assert load_config(EvaluateConfig, given, "evaluate").voices == ["heart"]
    assert load_config(EvaluateConfig, [*given, "--no-voices"], "evaluate").voices is None


def test_leaving_out_is_not_switching_off() -> None:
    for flag, value in (("--no-gpu", False), ("--gpu", True)):
        config = load_config(EvaluateConfig, [*EVALUATE, flag], "evaluate")
        assert config.gpu is value


@pytest.mark.parametrize("flag", ["--no-model", "--no-seed", "--no-audio", "--no-judg"])
def test_what_must_have_a_value_cannot_be_left_out(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((ConfigError, SystemExit)) as caught:
        load_config(EvaluateConfig, [*EVALUATE, flag], "evaluate")
    assert flag in str(caught.value) + capsys.readouterr().err


def test_a_variable_without_the_prefix_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INPUT", "OUTPUT", "CODEC", "LIMIT", "MODEL", "CONFIG"):
        monkeypatch.setenv(name, "8")
    assert load(REQUIRED) == EncodeConfig.model_construct(input=["flag-in"], output="flag-out")
    assert "output" in message(["--input", "flag-in"])
    config = load_config(TrainConfig, ["--data", "d", "--output", "o"], "jobs/train.py")
    assert config.model == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("SHEEN_SHIFT", "SHEEN_SHIFTS"),
        ("sheen_num_worker", "SHEEN_NUM_WORKERS"),
        ("sheen_config", "SHEEN_CONFIG"),
        ("SHEEN_API_KEYS", "--help"),
    ],
)
def test_a_variable_that_sets_nothing_is_a_warning(
    name: str, nearest: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And no error: another command may be the one that reads it."""
    monkeypatch.setenv(name, "5")
    assert load(REQUIRED).shifts == 1
    messages = [record.getMessage() for record in caplog.records]
    [warning] = [message for message in messages if f"variable {name} " in message]
    assert nearest in warning.partition(name)[2]
    assert warning.startswith("jobs/encode.py: warning")


def test_a_variable_that_sets_a_field_is_no_warning(
    yaml_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SHEEN_CONFIG", str(yaml_file))
    monkeypatch.setenv("sheen_shifts", "5")
    assert load([]).shifts == 5
    assert not re.search("(?i)sheen_(config|shifts)", caplog.text)


def test_the_file_can_be_named_by_its_variable(
    yaml_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHEEN_CONFIG", str(yaml_file))
    assert load(REQUIRED).shifts == 3


def test_an_empty_file_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("# nothing yet\n", "utf-8")
    assert load([*REQUIRED, "--config", str(tmp_path / "job.yaml")]).input == ["flag-in"]


# The messages


@pytest.mark.parametrize(
    ("key", "near"),
    [("ouptut", "output"), ("min-seconds", "min_seconds"), ("Codec", "codec")],
)
def test_an_unknown_key_names_the_near_one(tmp_path: Path, key: str, near: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"{key}: x\n", "utf-8")
    error = message([*REQUIRED, "--config", str(file)])
    assert str(file) in error
    assert re.search(rf"unknown key '{key}'; did you mean [\w ]*\b{near}\b", error)


@pytest.mark.parametrize(
    ("flag", "near"),
    [
        ("--ouptut", "--output"),
        ("--min_seconds", "--min-seconds"),
        ("--out", "--output"),  # argparse alone would take it as an abbreviation
        ("--no-phoneme", "--phonemes"),
    ],
)
@pytest.mark.parametrize("form", ["{} x", "{}=x"])
def test_an_unknown_flag_names_the_near_one(flag: str, near: str, form: str) -> None:
    error = message([*REQUIRED, *form.format(flag).split(" ")])
    assert f"unknown flag {flag}; did you mean " in error
    assert near in error.split("did you mean")[1]


def test_with_nothing_near_all_names_are_listed(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("zzz: 1\n", "utf-8")
    names = [name for name in EncodeConfig.model_fields if name != "config"]
    error = message(["--config", str(tmp_path / "job.yaml")])
    assert all(name in error for name in names)
    assert all("--" + name.replace("_", "-") in message(["--zzz"]) for name in names)


def test_a_missing_field_names_its_flag_and_key() -> None:
    error = message(["--input", "x"])
    assert "--output" in error
    assert "'output'" in error
    assert "--input" not in error
    assert "--input" in message([])


def test_a_missing_field_of_several_words_names_its_flag() -> None:
    class Config(JobConfig):
        sample_count: int

    with pytest.raises(ConfigError, match=r"sample_count: .*--sample-count"):
        load_config(Config, [], "job")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shifts", "many"),
        ("shifts", "0"),
        ("limit", "-1"),
        ("min_seconds", "-0.5"),
        ("min_seconds", "nan"),
        ("num_workers", "1.5"),
    ],
)
def test_a_bad_value_is_named_with_its_field(
    field: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"{field}: {value}\n", "utf-8")
    for error in (
        message([*REQUIRED, "--" + field.replace("_", "-"), value]),
        message([*REQUIRED, "--config", str(file)]),
    ):
        assert error.startswith(f"{field}: ")
        assert re.search(rf"\(got '?{value}'?\)", error)
    monkeypatch.setenv(f"SHEEN_{field.upper()}", value)
    assert message(REQUIRED).startswith(f"{field}: ")


def test_all_bad_values_are_named_at_once() -> None:
    error = message([*REQUIRED, "--shifts", "many", "--limit", "0"])
    assert "shifts" in error
    assert "limit" in error


def test_a_share_of_everything_is_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"eval_share: .*less than 1.*1\.0"):
        load_config(TrainConfig, ["--data", "d", "--output", "o", "--eval-share", "1.0"], "train")


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("config", [config for _, config in [*JOBS, *OTHERS]])
def test_numbers_are_finite(config: type[JobConfig], value: str, tmp_path: Path) -> None:
    numbers = [
        name
        for name, field in config.model_fields.items()
        if field.annotation is float or float in get_args(field.annotation)
    ]
    assert numbers
    for name in numbers:
        file = tmp_path / "job.yaml"
        file.write_text(f"output: o\n{name}: .{value}\n".replace(".-", "-."), "utf-8")
        with pytest.raises(ConfigError, match=f"{name}: "):
            load_config(config, ["--config", str(file)], "job")


def test_numbers_of_a_list_are_finite(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("output: o\nlevel_weights: [1, .inf]\n", "utf-8")
    with pytest.raises(ConfigError, match=r"level_weights\.1: "):
        load_config(TrainConfig, ["--config", str(file)], "job")


@pytest.mark.parametrize(
    "value", ["wandb,tensorboard", "wandb, tensorboard", '["wandb", "tensorboard"]']
)
def test_a_list_in_a_variable_is_written_as_in_a_flag(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    argv = ["--data", "d", "--output", "o"]
    monkeypatch.setenv("SHEEN_TRACKERS", value)
    assert load_config(TrainConfig, argv, "train").trackers == ["wandb", "tensorboard"]
    monkeypatch.setenv("SHEEN_TRACKERS", "[]")
    monkeypatch.setenv("SHEEN_LEVEL_WEIGHTS", "3,1,0.5")
    monkeypatch.setenv("SHEEN_DATA", "/a/b")
    loaded = load_config(TrainConfig, argv[2:], "train")
    assert (loaded.trackers, loaded.level_weights, loaded.data) == ([], [3.0, 1.0, 0.5], ["/a/b"])


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_no_file_is_passed_over_for_another(yaml_file: Path, form: str) -> None:
    other = yaml_file.with_name("other.yaml")
    other.write_text("seed: 1\n", "utf-8")
    argv = [*form.format(yaml_file).split(), "--config", str(other)]
    found = message(argv)
    assert "--config is given 2 times" in found
    assert str(yaml_file) in found
    assert str(other) in found


def test_a_key_that_is_twice_in_a_file_is_named_with_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("null", "utf-8")
    assert load([*REQUIRED, "--config", str(file)]).shifts == 1
    file.write_text("input: i\nshifts: 2\noutput: o\nshifts: 3\n", "utf-8")
    expected = f"--config {file}: key 'shifts' is in lines 2 and 4, expected once"
    assert message(["--config", str(file)]) == expected


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yaml")
    assert f"--config {missing}: No such file" in message([*REQUIRED, "--config", missing])
    assert f"--config {tmp_path}: Is a directory" in message([*REQUIRED, f"--config={tmp_path}"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"input: [1\n", "not YAML"),
        (b"input: caf\xe9\n", "not YAML"),
        (b"- input\n- output\n", "key: value"),
        (b"just words\n", "key: value"),
    ],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(content)
    error = message([*REQUIRED, "--config", str(file)])
    assert error.startswith(f"--config {file}: ")
    assert expected in error


# The scripts


@pytest.mark.parametrize(("script", "config"), JOBS)
def test_help_lists_every_field_with_its_default(
    script: str, config: type[JobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        load_script(ROOT / "jobs" / script).main(["--help"])
    assert exited.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: jobs/{script} " in shown
    entries = [" ".join(entry.split()) for entry in re.split(r"\n  (?=-)", shown)]
    for name, field in config.model_fields.items():
        flag = "--" + name.replace("_", "-")
        (entry,) = (entry for entry in entries if re.match(rf"{flag}[ ,]", entry))
        assert field.description
        assert field.description in entry
        default = "(required)" if field.is_required() else f"(default: {field.default})"
        assert entry.endswith(default)


@pytest.mark.parametrize(("script", "config"), JOBS)
def test_a_job_reports_a_configuration_error_and_exits_2(
    script: str, config: type[JobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_script(ROOT / "jobs" / script).main(["--ouptut", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"jobs/{script}: error: unknown flag --ouptut; did you mean --output")
    assert error.count("\n") == 1


# The output folder

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def test_a_submitted_job_refuses_a_relative_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUBMITTED, "{}")
    with pytest.raises(ValueError, match=r"--output runs/codes: ") as caught:
        output_folder("--output", "runs/codes")
    assert '"$PWD/runs/codes"' in str(caught.value)
    assert "s3://" in str(caught.value)


def test_an_empty_output_is_not_the_working_directory() -> None:
    with pytest.raises(ValueError, match="--output: an empty location"):
        output_folder("--output", "")


@pytest.mark.parametrize("submitted", [True, False])
def test_an_absolute_output_stays_what_it_is(
    submitted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SUBMITTED, raising=False)
    if submitted:
        monkeypatch.setenv(SUBMITTED, "{}")
    for location in (str(tmp_path / "codes"), "s3://bucket/codes", f"file://{tmp_path}/codes"):
        assert output_folder("--output", location) == location
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_folder("--output", "~/codes") == str(tmp_path / "codes")


def test_a_relative_output_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SUBMITTED, raising=False)
    monkeypatch.chdir(tmp_path)
    assert output_folder("--output", "runs/codes") == str(tmp_path / "runs" / "codes")
