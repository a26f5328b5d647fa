"""Nothing that this project starts can be used from another machine without a secret.

Each way of starting runs between two machines of network namespaces (ports.py). What listens,
and what it answers to the other machine, which has no token, must be what docs/ports.md says.
"""

import functools
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.example import ROOT
from helpers.knocking import answer
from helpers.ports import SAID
from sheen.runs import cluster

TIMEOUT_S = 560
PATHS = ROOT / "tests" / "startup", ROOT, ROOT / "tests"
MACHINES = {
    "job": "job",
    "demo": "demo",
    "tests": "tests",
    "README": "readme",
    "server": "server",
    "serve run": "serve",
    "head": "cluster",
    "worker": "cluster",
}
"""Column of docs/ports.md -> the way of starting that has that machine."""
SOAKED = ("job", "demo", "tests", "README", "server")
"""Of these, those that other machines reach start with `serve run` and `cluster`, by the same code.
The others listen on loopback alone, as tests/ray/test_loopback.py sees from inside."""
ON_ONE_MACHINE = ("job", "demo", "tests", "README", "server")
REMOTE = ("serve run", "head", "worker")
LOOPBACK = "127.0.0.1"
Table = dict[tuple[str, str], dict[str, str]]
ISOLATED = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
if os.geteuid():
    ISOLATED += ["--user", "--map-root-user"]


def documented() -> Table:
    """(process, port) -> column -> what docs/ports.md says."""
    lines = (ROOT / "docs" / "ports.md").read_text("utf-8").splitlines()
    rows = [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in lines
        if re.match(r"\| .* \|$", line)
    ]
    header, *body = rows
    assert header == ["process", "port", *MACHINES]
    return {(row[0], row[1]): dict(zip(MACHINES, row[2:], strict=True)) for row in body}


@contextmanager
def short_folder() -> Iterator[Path]:
    """Paths of Ray's sockets have at most 107 bytes: pytest's own folders are too long."""
    folder = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def refusal() -> str | None:
    """Why there can be no namespaces here, in the words of what was refused."""
    try_it = "ip link add here type veth peer name there && mount --bind /etc/hosts /etc/hosts"
    try:
        subprocess.run(
            [*ISOLATED, "sh", "-ec", try_it], check=True, capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError as error:
        return str(error)
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    return None


@functools.cache
def started(way: str) -> dict[str, Any]:
    """What ports.py found, once what is documented listens."""
    if (why := refusal()) is not None:
        pytest.skip(f"needs network namespaces, which are not permitted here: {why}")
    expected = {
        key(machine): [
            [process, place, port]
            for (process, port), cells in documented().items()
            for place in places(cells[machine])
        ]
        for machine, name in MACHINES.items()
        if name == way
    }
    with short_folder() as folder:
        words = [sys.executable, "-m", "helpers.ports", way, str(folder)]
        # Killed on a timeout, and all that it started with it.
        done = subprocess.run(
            [*ISOLATED, *words, json.dumps(expected)],
            capture_output=True, text=True, timeout=TIMEOUT_S,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PATHS))},
        )  # fmt: skip
        log = folder / "log"
        said = done.stderr[-3000:] + (
            log.read_text("utf-8", "replace")[-3000:] if log.exists() else ""
        )
        assert not done.returncode, said
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        assert result["ready"], said
    return result


def doors(machine: str) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(process, place, port, what it answered) of each socket that listens."""
    found = started(MACHINES[machine])
    answers = found["answers"][key(machine)]
    return [(*kind, answers[str(number)]) for *kind, number in found["doors"][key(machine)]]


def key(machine: str) -> str:
    """ports.py's name of it: the way's, but for the way that has two."""
    return machine if MACHINES[machine] == "cluster" else MACHINES[machine]


def places(cell: str) -> list[str]:
    """Where to wait for a port: not for one in brackets, which may open late or not at all."""
    return [] if cell == "–" or cell.startswith("(") else cell.split(": ")[0].split(", ")


def table(machine: str) -> dict[tuple[str, str], str]:
    """(process, port) -> the cell that says what was seen."""
    found: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
    for process, place, port, reply in doors(machine):
        where, says = found.setdefault((process, port), (set(), set()))
        where.add(place)
        if place != LOOPBACK and "closed" not in reply:  # that of a worker which has just ended
            says.add(answer(reply))
    return {
        door: ", ".join(sorted(where)) + (": " + ", ".join(sorted(says)) if says else "")
        for door, (where, says) in found.items()
    }


def columns(names: Iterable[str]) -> list[Any]:
    """As parameters."""
    return [pytest.param(n, marks=pytest.mark.soak) if n in SOAKED else n for n in names]


@pytest.mark.parametrize("machine", columns(MACHINES))
def test_the_ports_that_listen_are_those_of_the_documentation(machine: str) -> None:
    seen = table(machine)
    said = {
        door: cells[machine].strip("()")
        for door, cells in documented().items()
        if cells[machine] != "–" and (places(cells[machine]) or door in seen)
    }
    assert seen == said
    assert not started(MACHINES[machine])["intruder"]


@pytest.mark.parametrize("machine", columns(ON_ONE_MACHINE))
def test_on_one_machine_nothing_is_reached_and_no_token_is_left(machine: str) -> None:
    assert {place for _, place, _, _ in doors(machine)} == {LOOPBACK}
    assert all("closed" in reply for *_, reply in doors(machine))
    if machine != "server":  # Ray's own: drain, in a process of its own, finds it there
        assert ".ray" not in started(MACHINES[machine])["home"]


@pytest.mark.parametrize("machine", columns(REMOTE))
def test_ports_that_ask_for_the_token_let_it_in(machine: str) -> None:
    """Else a refusal would say nothing."""
    asked, let_in = set(), set()
    for process, _, _, reply in doors(machine):
        if "grpc" in reply:
            asked.add(process)
            # NOT_FOUND: Ray client's port, which knows no such client.
            if {"OK", "NOT_FOUND"} & set(reply["with the token"]):
                let_in.add(process)
    assert asked == let_in != set()


@pytest.mark.parametrize("machine", columns(REMOTE))
def test_metrics_hold_no_text_and_no_key(machine: str) -> None:
    token = started(MACHINES[machine])["token"]
    assert token
    figures = [
        reply["http"]["GET /metrics"][1]
        for *_, reply in doors(machine)
        if "http" in reply and answer(reply) == "figures"
    ]
    assert figures
    for text in figures:
        assert token not in text
        assert SAID not in text
        if machine != "serve run":
            assert not re.search(r'"[^"]*/\w+/', text), "a path"


def test_a_token_is_in_a_file_that_its_owner_alone_may_read(tmp_path: Path) -> None:
    settings = cluster.loopback_settings(tmp_path)
    path = Path(settings["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text()) == 64
    assert stat.S_IMODE(cluster.token_folder().stat().st_mode) == 0o700
    with pytest.raises(FileExistsError):
        cluster.write_token(tmp_path)  # of another cluster: never taken over
