"""The store of checkpoints: what is half written is never opened."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sheen.storage import files, uris
from sheen.train.checkpoints import (
    MODEL_FOLDER,
    Files,
    RunStore,
    Snapshot,
    StorageFull,
    check_run_fingerprint,
    load,
)


@dataclass(frozen=True)
class Text:
    """A model's files: this text."""

    text: str

    def write(self, folder: Path, weights: dict[str, Tensor]) -> None:
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "state").write_text(self.text)


def save(store: RunStore, step: int, model: Files, best: bool = False) -> None:
    snapshot = Snapshot(model, {}, {} if best else {"step": step})
    store.save(step, snapshot, {} if best else None)
    store.wait()


def read(location: str | None, model: str = MODEL_FOLDER) -> str:
    assert location is not None
    return files.read_bytes(uris.join(location, model, "deep", "state")).decode()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_last_is_opened_and_the_oldest_go(tmp_path: Path, scheme: str) -> None:
    store = RunStore(f"{scheme}{tmp_path}", keep=2)
    assert store.latest() is None
    with store.open_latest() as folder:
        assert folder is None
    for step in (1, 2, 3):
        save(store, step, Text(f"step {step}"))
        if step < 3:
            save(store, step, Text(f"best {step}"), best=True)
    assert read(store.latest()) == "step 3"
    assert read(store.best(), "") == "best 2"
    with RunStore(f"{scheme}{tmp_path}", keep=2).open_latest() as folder:
        assert folder is not None
        assert (folder / MODEL_FOLDER / "deep" / "state").read_text() == "step 3"
        assert load(folder) == {"step": 3}
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"checkpoints.json", "step-00000002", "step-00000003", "best-00000002"}


def test_a_step_saved_again_replaces_the_first(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path), keep=2)
    save(store, 1, Text("first"))
    save(store, 1, Text("second"))
    assert read(store.latest()) == "second"
    assert json.loads((tmp_path / "run" / "checkpoints.json").read_text())["checkpoints"] == [
        "step-00000001"
    ]


def test_what_a_kill_left_is_neither_opened_nor_kept(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path), keep=2)
    save(store, 1, Text("whole"))
    # Killed between the rename and the list, and killed while writing.
    (tmp_path / "run" / "step-00000002").mkdir()
    (tmp_path / "run" / "sheen-abc.tmp" / "step-00000003").mkdir(parents=True)
    assert read(store.latest()) == "whole"
    save(store, 4, Text("next"))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"checkpoints.json", "step-00000001", "step-00000004"}


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """A process saves without end and is killed; what it leaves is opened, again and again."""
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from sheen.train.checkpoints import RunStore, Snapshot
        store = RunStore(sys.argv[1], keep=1)
        class Files:
            def write(self, folder: Path, weights) -> None:
                folder.mkdir()
                for name in ("first", "last"):
                    (folder / name).write_text(str(step) * 100_000)
        for line in sys.stdin:
            if child := os.fork():
                os.waitpid(child, 0)
                print("dead", flush=True)
                continue
            print(os.getpid(), flush=True)
            step = int(line)
            while True:
                store.save(step, Snapshot(Files(), {}, {"step": step}))
                store.wait()
                step += 1
                print(step, flush=True)
        """
    )
    step = 0
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for _ in range(5):
                print(step, file=process.stdin, flush=True)
                writer = int(process.stdout.readline())
                for _ in range(3):
                    step = int(process.stdout.readline())
                os.kill(writer, signal.SIGKILL)
                while process.stdout.readline() != "dead\n":
                    pass
                with RunStore(str(tmp_path), keep=1).open_latest() as folder:
                    assert folder is not None
                    model, saved = folder / MODEL_FOLDER, load(folder)["step"]
                    first, last = (model / "first").read_text(), (model / "last").read_text()
                assert first == last == str(saved) * 100_000
                step += 10
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_failed_write_loses_nothing_and_says_what_is_left(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path), keep=1)
    save(store, 1, Text("whole"))

    class Full:
        def write(self, folder: Path, weights: dict[str, Tensor]) -> None:
            folder.mkdir()
            (folder / "half").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageFull, match=r"No space .*last complete checkpoint is .*00001"):
        save(store, 2, Full())
    assert read(store.latest()) == "whole"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoints.json",
        "step-00000001",
    }


def test_a_best_model_that_waits_gives_way_and_a_checkpoint_waits_for_all(tmp_path: Path) -> None:
    store, go_on, written = RunStore(str(tmp_path), keep=2), threading.Event(), list[int]()

    class Late:
        def write(self, folder: Path, weights: dict[str, Tensor]) -> None:
            assert go_on.wait(60)
            folder.mkdir(exist_ok=True)
            written.append(int(weights["step"]))

    def snapshot(step: int, *, resumable: bool = False) -> Snapshot:
        return Snapshot(Late(), {"step": torch.tensor(step)}, {"step": step} if resumable else {})

    store.save(1, snapshot(1, resumable=True))
    dropped = snapshot(2)
    held = weakref.ref(dropped)
    store.save(2, dropped, {"loss": 2.0})
    del dropped
    assert held() is not None
    store.save(3, snapshot(3), {"loss": 1.0})
    assert held() is None, "it holds memory"
    assert not written
    assert not store.failed
    threading.Timer(0.2, go_on.set).start()
    store.save(4, snapshot(4, resumable=True), {"loss": 0.5})
    assert written[:2] == [1, 3]
    store.close()
    assert written == [1, 3, 4, 4]
    assert store.best_metric() == {"loss": 0.5}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoints.json",
        "step-00000001",
        "step-00000004",
        "best-00000004",
    }


def test_a_run_that_saved_nothing_is_no_hindrance(tmp_path: Path) -> None:
    """Its weights or data may have been what kept it from starting, and are others now."""

    def claim(weights: str) -> None:
        fields = {"seed": 0, "num_workers": 1}
        check_run_fingerprint(str(tmp_path), fields, {"num_workers"}, {"model content": weights})

    claim("torn")
    claim("whole")
    save(RunStore(str(tmp_path), keep=1), 1, Text("learned"))
    claim("whole")
    with pytest.raises(ValueError, match="model content was 'whole', now 'others'"):
        claim("others")


def test_a_run_that_starts_again_has_no_best_model_of_the_one_before(tmp_path: Path) -> None:
    """That run found a best model, but was killed before its first checkpoint."""
    save(RunStore(str(tmp_path), keep=1), 100, Text("of other data"), best=True)
    check_run_fingerprint(str(tmp_path), {"seed": 0}, set(), {})
    store = RunStore(str(tmp_path), keep=1)
    assert store.best() is None
    save(store, 1, Text("own"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "run.json",
        "checkpoints.json",
        "step-00000001",
    }
