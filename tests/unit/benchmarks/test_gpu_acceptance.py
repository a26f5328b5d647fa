"""The acceptance for a GPU, tried out on a CPU, with nothing but what a GPU machine has."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.example import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gpu_acceptance
from acceptance.runner import START_S, Outcome, Runner

BENCHMARKS = ROOT / "benchmarks"
SCRIPT = BENCHMARKS / "gpu_acceptance.py"
ABSENT = (
    "ray", "pydantic", "pydantic_settings", "pyarrow", "av", "soundfile", "sentencex", "fastapi",
    "starlette", "uvicorn", "peft", "faster_whisper", "onnxruntime",
)  # fmt: skip
"""On a machine with torch, transformers and snac."""


def run_bare(folder: Path, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run Python where none of ABSENT can be imported, nor seen to be there."""
    startup = (ROOT / "tests" / "startup" / "sitecustomize.py").read_text("utf-8")
    (folder / "sitecustomize.py").write_text(
        f"{startup}\nimport sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n", "utf-8"
    )
    paths = map(str, (folder, ROOT, BENCHMARKS))
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_every_part_runs_to_its_end_at_toy_sizes_and_none_of_its_checks_fails(
    tmp_path: Path,
) -> None:
    """Where torch, transformers and snac are, and none of ABSENT."""
    output = tmp_path / "out"
    found = run_bare(tmp_path, [str(SCRIPT), "--device", "cpu", "--small", "--output", str(output)])
    report: dict[str, Any] = json.loads((output / "acceptance.json").read_text("utf-8"))
    parts = {part["part"]: part for part in report["parts"]}
    wrong = {
        name: part["error"] or [row for row in part["rows"] if row["passed"] is False]
        for name, part in parts.items()
        if not part["passed"]
    }
    assert not wrong
    assert found.returncode == 0, found.stderr
    assert len(parts) == 10
    assert all(part["rows"] for part in parts.values())
    table = (output / "acceptance.md").read_text("utf-8").splitlines()
    assert len(table) == 2 + sum(len(part["rows"]) for part in parts.values())


def test_a_run_in_which_every_part_takes_all_of_its_time_has_time_for_each() -> None:
    assert START_S + sum(part.seconds for part in gpu_acceptance.PARTS) <= gpu_acceptance.SECONDS


def test_without_time_no_part_is_begun() -> None:
    runner = Runner("cpu", small=True, seconds=0.0)
    reported: list[Outcome] = []
    outcomes = list(runner.run(gpu_acceptance.PARTS, lambda found, row: reported.append(found)))
    assert outcomes == reported
    assert [found.part for found in outcomes] == [part.name for part in gpu_acceptance.PARTS]
    assert {(found.ended, found.error) for found in outcomes} == {("not run", "no time was left")}
    assert not any(found.passed for found in outcomes)


def test_the_references_are_small_enough_to_be_carried() -> None:
    assert (BENCHMARKS / "acceptance" / "references.npz").stat().st_size < 1_000_000


PARTS = """
import os, time

def row(bench):
    bench.row("a figure", 2, "ms", floor=1)

def fails(bench):
    row(bench)
    raise LookupError("not this time")

def hangs(bench):
    row(bench)
    time.sleep(600)

def dies(bench):
    os._exit(3)
"""


@pytest.mark.slow
def test_a_part_that_fails_hangs_or_dies_leaves_the_next_ones_measured(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(PARTS, "utf-8")
    (tmp_path / "main.py").write_text(
        """
import json, time
from acceptance.runner import Part, Runner

if __name__ == "__main__":
    names = ["fails", "hangs", "dies", "row", "hangs", "row"]
    parts = [Part(name, f"parts:{name}", 300, "") for name in names]
    parts[1] = Part("hangs", "parts:hangs", 4, "")
    runner = Runner("cpu", small=True, seconds=3000, patience=1.0)
    runner.start_s = 500
    outcomes = []
    for found in runner.run(parts, lambda *row: None):
        outcomes.append(found)
        if len(outcomes) == 4:
            runner._ends = time.monotonic() + 5
    print(json.dumps([vars(found) for found in outcomes]))
""",
        "utf-8",
    )
    found = run_bare(tmp_path, [str(tmp_path / "main.py")])
    assert found.returncode == 0, found.stderr
    failed, hung, died, ran, over, late = json.loads(found.stdout)
    assert failed["ended"] == "failed"
    assert "LookupError: not this time" in failed["error"]
    assert hung["ended"] == "stopped"
    assert died["ended"] == "died"
    assert "3" in died["error"]
    assert ran["ended"] == "finished"
    assert [len(part["rows"]) for part in (failed, hung, died, ran)] == [1, 1, 0, 1]
    assert ran["rows"][0]["share"] == 0.5
    # Five seconds before the end of the run, which has an end for all parts.
    assert (over["ended"], len(over["rows"])) == ("stopped", 1)
    assert (late["ended"], late["error"]) == ("not run", "no time was left")


def test_the_tracked_tree_is_small_enough_to_be_carried_to_a_machine() -> None:
    """With what a run needs beside it: wheels, a base's files."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    tracked = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert 0 < sum(path.stat().st_size for path in tracked if path.is_file()) < 45e6
