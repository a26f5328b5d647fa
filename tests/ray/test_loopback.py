"""Who can reach the cluster that a job starts, and use it.

That cluster is the one of the tests here. On one machine, from inside: tests/e2e/test_open_doors.py
asks from another one.
"""

import os
from pathlib import Path

import ray

from helpers import knocking
from helpers.workers import LOOPBACK, listening

ROLES = {"GCS", "raylet", "agent", "runtime env agent", "driver", "worker"}
EXPORTERS = {(role, "figures") for role in ("agent", "autoscaler", "dashboard")}


def test_all_that_listens_is_on_loopback_and_wants_the_token(
    ray_cluster: None, tmp_path: Path
) -> None:
    ray.get(ray.remote(lambda: 0).options(num_cpus=0).remote())  # so that there is a worker
    found = listening()
    assert {door.address for door in found} <= LOOPBACK, found
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    intruder = tmp_path / "intruder"
    answers = knocking.knock("127.0.0.1", [door.port for door in found], token, str(intruder))
    said, let_in = set(), set()
    for door in found:
        reply = answers[door.port]
        # Of a worker that has just ended; of Serve's proxy and a browser, where their tests ran.
        if "closed" in reply or ("http" in reply and door.role in ("worker", "driver")):
            continue
        said.add((door.role, knocking.answer(reply)))
        if "OK" in reply.get("with the token", ()):
            let_in.add(door.role)
    assert said - EXPORTERS == {(role, "token") for role in ROLES}
    assert not intruder.exists()
    # Else a refusal would say nothing.
    assert let_in == ROLES - {"runtime env agent"}, "it speaks HTTP alone"
