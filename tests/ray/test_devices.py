"""Where workers and tasks run: on the GPUs that Ray reserved, on the CPUs of nodes that join."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from helpers.example import ROOT
from helpers.placed import GPUS, NOTES, TOGETHER, notes
from sheen.runs.cluster import WORKER_CPUS

WAIT_S = 1500


def placed(
    kind: str, folder: Path, corpus: Path, other: str, **variables: str
) -> subprocess.Popen[bytes]:
    """A process of `helpers.placed`, which logs and notes into `folder`."""
    places = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | variables
    environment |= {"PYTHONPATH": places, NOTES: str(folder / "notes.jsonl")}
    command = [sys.executable, "-m", "helpers.placed", kind, str(folder), str(corpus), other]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


@pytest.mark.soak
@pytest.mark.timeout(2 * WAIT_S)
def test_every_worker_computes_on_the_gpu_that_ray_reserved_for_it(
    corpus: Path, base: Path, tmp_path: Path
) -> None:
    with placed("gpus", tmp_path, corpus, str(base)) as process:
        assert process.wait(WAIT_S) == 0, (tmp_path / "log").read_text()[-3000:]
    found: dict[str, dict[int, str]] = {}
    cpus: dict[str, set[float]] = {}
    for line in notes(tmp_path / "notes.jsonl"):
        if "worker" in line:
            assert [line["gpu"]] == line["reserved"]
            found.setdefault(line["worker"], {})[line["process"]] = line["gpu"]
            cpus.setdefault(line["worker"], set()).add(line["cpus"])
    for worker in ("TranscribeWorker", "EncodeWorker", "SpeakWorker", "Backend"):
        assert sorted(found[worker].values()) == ["0", "1"], worker
    # Of two runs of training.
    assert sorted(found["WorkerGroup"].values()) == ["0", "0", "1", "1"]
    assert cpus["EncodeWorker"] == {WORKER_CPUS}
    assert cpus["WorkerGroup"] == cpus["Backend"] == {0.5}


@pytest.mark.soak
@pytest.mark.timeout(2 * WAIT_S)
def test_an_encoding_on_a_cluster_at_rest_runs_on_the_nodes_that_join_it(
    corpus: Path, tmp_path: Path
) -> None:
    """And there decodes several recordings at a time: its first task waits for a second one."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        with placed("late", tmp_path, corpus, cluster.address, **{TOGETHER: "2"}) as process:
            while not (tmp_path / "codes" / "run.json").exists():
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            joined = {cluster.add_node(num_cpus=2, num_gpus=1).node_id for _ in range(GPUS)}
            assert process.wait(WAIT_S) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        cluster.shutdown()
    lines = notes(tmp_path / "notes.jsonl")
    workers = [line for line in lines if "worker" in line]
    assert {line["worker"] for line in workers} == {"EncodeWorker"}
    assert {line["node"] for line in workers} == joined
    assert all(line["reserved"] == [line["gpu"]] for line in workers)
    ran = [line for line in lines if "task" in line]
    assert {line["task"] for line in ran} == {"decode_blocks", "write_blocks"}
    assert {line["node"] for line in ran} <= joined
    assert {line["cpus"] for line in ran if line["task"] == "decode_blocks"} == {1.0}
