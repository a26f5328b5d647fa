"""cluster.yaml: what Ray itself says of it, and the promises that an edit could break unnoticed.

Owns no cloud: Ray's schema, defaults and validators run here without boto3, account or network,
and the start commands run against a stand-in for `ray`. What AWS would say is not tested.
"""

import copy
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from helpers.example import ROOT
from sheen.runs.cluster import WORKER_ENV

CLUSTER = ROOT / "cluster.yaml"
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text("utf-8"))
TOKEN_FILE = "~/.ray/auth_token"
START = {"head": "head_start_ray_commands", "worker": "worker_start_ray_commands"}


def validated(raw: dict[str, Any]) -> dict[str, Any]:
    """The config as `ray up` completes it. Raises what Ray raises for a file it would refuse."""
    jsonschema.validate(raw, SCHEMA)
    config: dict[str, Any] = prepare_config(copy.deepcopy(raw))
    validate_config(config)
    return config


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(CLUSTER.read_text("utf-8"))
    return loaded


@pytest.fixture(scope="module")
def config(raw: dict[str, Any]) -> dict[str, Any]:
    return validated(raw)


def pinned(package: str) -> str:
    lock = (ROOT / "requirements.txt").read_text("utf-8")
    found = re.search(rf"^{re.escape(package)}==(\S+)", lock, re.MULTILINE)
    assert found, f"requirements.txt pins no {package}"
    return found[1]


def container_environment(config: dict[str, Any]) -> dict[str, str]:
    options = [option.split(maxsplit=1) for option in config["docker"]["run_options"]]
    return dict(words[1].split("=", 1) for words in options if words[0] == "-e")


def run_start_commands(commands: list[str], home: Path) -> list[tuple[str, list[str]]]:
    """Run the commands with a stand-in for `ray`; the (RAY_AUTH_MODE, arguments) of each call."""
    log = home / "calls"
    stand_in = home / "sheen-env" / "bin" / "ray"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(f'#!/bin/sh\necho "$RAY_AUTH_MODE|$*" >> {log}\n', "utf-8")
    stand_in.chmod(0o755)
    for command in commands:
        environment = {
            "HOME": str(home),
            "PATH": f"{stand_in.parent}:{os.defpath}",
            "RAY_HEAD_IP": "192.0.2.1",
        }
        subprocess.run(["bash", "-c", command], env=environment, check=True, timeout=60)
    calls = [line.split("|", 1) for line in log.read_text("utf-8").splitlines()]
    return [(mode, arguments.split()) for mode, arguments in calls]


def test_ray_accepts_the_committed_cluster_yaml(config: dict[str, Any]) -> None:
    assert config["cluster_synced_files"] == []  # filled in from Ray's defaults for the provider


@pytest.mark.parametrize(
    ("where", "key", "value", "error"),
    [
        ([], "worker_nodes_max", 3, jsonschema.ValidationError),
        (["docker"], "imag", "x", jsonschema.ValidationError),
        (["available_node_types", "gpu"], "resources", None, jsonschema.ValidationError),
        (["available_node_types", "gpu"], "min_workers", 99, ValueError),
        ([], "head_node_type", "boss", ValueError),
        (["provider"], "type", "clouds", NotImplementedError),
        (["docker"], "container_name", "", AssertionError),
    ],
)
def test_ray_refuses_a_damaged_copy_of_cluster_yaml(
    raw: dict[str, Any], where: list[str], key: str, value: object, error: type[Exception]
) -> None:
    broken = copy.deepcopy(raw)
    inner = broken
    for name in where:
        inner = inner[name]
    inner[key] = value
    with pytest.raises(error):
        validated(broken)


def test_image_has_the_pinned_ray_and_cuda(config: dict[str, Any]) -> None:
    cuda = "".join(pinned("cuda-toolkit").split(".")[:2])
    assert re.fullmatch(
        rf"rayproject/ray:{re.escape(pinned('ray'))}-py3\d+-cu{cuda}", config["docker"]["image"]
    )


def test_the_head_runs_no_work_and_workers_start_when_a_job_asks(config: dict[str, Any]) -> None:
    workers = dict(config["available_node_types"])
    head = workers.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert head["max_workers"] == 0
    assert any(kind["resources"].get("GPU", 0) > 0 for kind in workers.values())
    assert any("GPU" not in kind["resources"] for kind in workers.values())
    # Nothing runs, and nothing is paid for, before a job asks.
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())


@pytest.mark.parametrize("node", START)
def test_ray_starts_with_token_authentication(
    config: dict[str, Any], node: str, tmp_path: Path
) -> None:
    calls = run_start_commands(config[START[node]], tmp_path)
    starts = [mode for mode, arguments in calls if arguments[0] == "start"]
    assert starts == ["token"]


def test_shells_on_a_node_use_token_authentication(config: dict[str, Any]) -> None:
    assert container_environment(config)["RAY_AUTH_MODE"] == "token"


def test_dashboard_listens_on_localhost_only(config: dict[str, Any], tmp_path: Path) -> None:
    calls = run_start_commands(config[START["head"]], tmp_path)
    [arguments] = [arguments for _, arguments in calls if arguments[0] == "start"]
    hosts = [word.split("=")[1] for word in arguments if word.startswith("--dashboard-host")]
    assert hosts == ["127.0.0.1"]


def test_no_port_is_opened_to_the_world(config: dict[str, Any]) -> None:
    opened = config["provider"].get("security_group", {}).get("IpPermissions", [])
    published = [o for o in config["docker"]["run_options"] if re.match(r"-p\b|--publish", o)]
    assert not opened
    assert not published


def test_cluster_yaml_holds_no_token() -> None:
    text = CLUSTER.read_text("utf-8")
    assert not re.search(r"RAY_AUTH_TOKEN\b(?!_PATH)", text)
    assert not re.search(r"HF_TOKEN|AWS_(SECRET|SESSION)|hf_\w{20}", text)
    # Ray's tokens are 64 hexadecimal digits, as are the hashes of packages.
    assert not re.search(r"[0-9a-fA-F]{32,}", re.sub(r"sha256:[0-9a-f]{64}\b", "", text))


def test_the_token_file_is_mounted_on_every_node(config: dict[str, Any]) -> None:
    # The place where Ray looks without being told, on the nodes as on the client.
    assert config["file_mounts"][TOKEN_FILE] == TOKEN_FILE


def test_mounted_files_are_in_the_repository(config: dict[str, Any]) -> None:
    local = [Path(path) for path in config["file_mounts"].values() if path != TOKEN_FILE]
    assert Path("requirements.txt") in local
    for path in local:
        assert not path.is_absolute()
        assert not str(path).startswith("~")
        assert (ROOT / path).resolve().is_relative_to(ROOT)
        assert (ROOT / path).exists()


@pytest.mark.parametrize("node", START)
def test_setup_commands_install_with_hashes_only(config: dict[str, Any], node: str) -> None:
    commands = config[f"{node}_setup_commands"]  # with what Ray's defaults add
    installs = [command for command in commands if re.search(r"\bpip\d? |\bconda ", command)]
    assert any("~/requirements.txt" in command for command in installs)
    for command in installs:
        assert "--require-hashes" in command


def test_allocator_settings_are_those_of_the_jobs(config: dict[str, Any]) -> None:
    environment = container_environment(config)
    assert {name: environment.get(name) for name in WORKER_ENV} == WORKER_ENV
