"""`sheen serve`: the config that `--model` stands for."""

import pytest
import yaml

from helpers.example import CHECKPOINT, ROOT
from sheen.serve.drain import runs_serve
from sheen.serve.run import main, serve_config


def test_the_config_for_a_model_is_the_shipped_one_with_that_model() -> None:
    shipped = yaml.safe_load((ROOT / "serve_config.yaml").read_text("utf-8"))
    [application] = shipped["applications"]
    assert shipped == serve_config(application["args"]["model"], "127.0.0.1", 8000, "none")


@pytest.mark.parametrize(("host", "auth"), [("127.0.0.1", "none"), ("0.0.0.0", "keys")])
def test_print_config_writes_yaml_that_opens_the_door_to_this_machine_alone(
    host: str, auth: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(CHECKPOINT.parent)
    words = ["--model", CHECKPOINT.name, "--host", host, "--port", "8123", "--print-config"]
    # Whoever uses the config need not be in this folder.
    words += ["--codec", f"{CHECKPOINT.name}/codec", "--info", "x.json"]
    assert main(words) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    source = {"codec": str(CHECKPOINT / "codec"), "info": str(CHECKPOINT.parent / "x.json")}
    assert config == serve_config(str(CHECKPOINT), host, 8123, auth, source=source)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "give either a config or --model"),
        (["a.yaml", "--model", "b"], "give either a config or --model"),
        (["--model", "nothing"], "no checkpoint in"),
        (["nothing.yaml"], "nothing.yaml: not a config of Ray Serve"),
        (["a.yaml", "--port", "0"], "--port: only with --model; set this in a.yaml"),
        (["a.yaml", "--auth", "keys", "--gpu"], "--auth, --gpu: only with --model"),
    ],
)
def test_what_cannot_be_served_is_refused_before_ray_starts(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(words)
    assert exited.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command_line", "runs"),
    [
        ("/env/bin/python /env/bin/serve run serve_config.yaml", True),
        ("/env/bin/python /env/bin/sheen serve --model voice", True),
        ("python -m sheen serve serve_config.yaml", True),
        ("python -m sheen.serve.run serve_config.yaml", True),
        ("python -m sheen.serve.drain", False),
        ("python jobs/train.py --output served", False),
        ("/env/bin/python /env/bin/sheen encode --output sheen", False),
    ],
)
def test_a_drain_ends_every_form_of_serve_run_and_nothing_else(
    command_line: str, runs: bool
) -> None:
    assert runs_serve(command_line) is runs
