"""Folders that are copied: a target holds the source's files and no others, and is whole at every
moment; a copy made for a while is gone after it.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.example import CODEC
from helpers.trees import names, tree
from sheen.codec.info import describe_codec
from sheen.codec.snac import load_codec
from sheen.engine.voice import load_voice
from sheen.storage import files, folders, uris
from sheen.train import inputs, job
from sheen.train.checkpoints import MODEL_FOLDER, STATE_FILE, RunStore, Snapshot

OLD = {"a.bin": b"old", "model-2-of-2.bin": b"old", "deep/er/c.bin": b"old"}
NEW = {"a.bin": b"new", "deep/b.bin": b"new", "deep/er/d.bin": b"new"}
State = dict[str, bytes]


def fill(location: str, content: State) -> str:
    for path, data in content.items():
        files.write_bytes(uris.join(location, path), data)
    return location


def read(location: str) -> State:
    """Every file below a location; {} where nothing is."""
    filesystem, path = uris.open_filesystem(location)
    return {
        os.path.relpath(found, path): filesystem.open_input_file(found).read()
        for found in files.list_files(location, recursive=True)
    }


@pytest.fixture
def memory() -> Iterator[str]:
    """Stands for an object store: nothing on it can be renamed as a whole."""
    yield "memory://sheen-folders"
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists("/sheen-folders"):
        filesystem.rm("/sheen-folders", recursive=True)


@pytest.fixture(params=["path", "uri", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> str:
    places = {"path": str(tmp_path), "uri": tmp_path.as_uri(), "memory": memory}
    return places[request.param]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def states_during(act: Callable[[], object], look: Callable[[], State]) -> list[State]:
    """Each state that a reader could find, or a kill leave: looked at before every line of Python
    that the project, `tempfile` or `shutil` executes, each once in a row.
    """
    states: list[State] = []

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        path = frame.f_code.co_filename
        if "/sheen/" not in path and not path.endswith(("tempfile.py", "shutil.py")):
            return None
        found = look()
        if not states or states[-1] != found:
            states.append(found)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return [*states, look()] if states[-1] != look() else states


@pytest.mark.parametrize("old", [{}, OLD, NEW, {"deep": b"a file"}], ids=len)
def test_a_copy_holds_the_files_of_its_source_and_no_others(
    place: str, old: State, tmp_path: Path, temporary: Path
) -> None:
    source = fill(uris.join(place, "source"), NEW)
    target = fill(uris.join(place, "above", "target"), old)
    folders.copy_folder(source, target)
    assert read(target) == read(source) == NEW
    assert files.list_names(uris.join(place, "above")) == ["target"]
    assert names(temporary) == set()


def test_a_folder_is_copied_between_a_disk_and_a_store(memory: str, tmp_path: Path) -> None:
    disk = str(tmp_path / "disk")
    folders.copy_folder(fill(uris.join(memory, "source"), NEW), disk)
    folders.copy_folder(disk, fill(uris.join(memory, "target"), OLD))
    assert read(disk) == read(uris.join(memory, "target")) == NEW


def test_on_a_disk_a_target_is_old_or_new_at_every_moment(tmp_path: Path) -> None:
    source, target = (str(tmp_path / name) for name in ("source", "target"))
    fill(source, NEW), fill(target, OLD)
    states = states_during(lambda: folders.copy_folder(source, target), lambda: read(target))
    if not can_exchange(tmp_path):
        pytest.skip("needs temporary files on a filesystem that can exchange two folders")
    assert states == [OLD, NEW]


def can_exchange(folder: Path) -> bool:
    first, second = folder / "first", folder / "second"
    first.mkdir(), second.mkdir()
    return folders._exchange(str(first), str(second))


def test_where_folders_cannot_be_exchanged_a_target_is_old_missing_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS: a moment without a target, and no other state."""
    monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    source, target = (str(tmp_path / name) for name in ("source", "target"))
    fill(source, NEW), fill(target, OLD)
    states = states_during(lambda: folders.copy_folder(source, target), lambda: read(target))
    assert states == [OLD, {}, NEW]
    assert names(tmp_path) == {"source", "target"}


def test_on_a_store_files_of_two_folders_never_stand_together(memory: str) -> None:
    source, target = (uris.join(memory, name) for name in ("source", "target"))
    fill(source, NEW), fill(target, OLD)
    for state in states_during(lambda: folders.copy_folder(source, target), lambda: read(target)):
        assert state.items() <= OLD.items() or state.items() <= NEW.items()


def test_a_copy_that_fails_changes_nothing(place: str, tmp_path: Path, temporary: Path) -> None:
    target = fill(uris.join(place, "target"), OLD)
    with pytest.raises(OSError, match="nothing"):
        folders.copy_folder(uris.join(place, "nothing"), target)
    with pytest.raises(OSError, match="absent"):
        fill_half(target)
    assert read(target) == OLD
    assert set(files.list_names(place)) <= {"target", "temporary"}
    assert names(temporary) == set()


def fill_half(target: str) -> None:
    with folders.replacing(target) as folder:
        (folder / "half.bin").write_bytes(b"half")
        (folder / "absent").read_bytes()


def test_what_the_copy_would_delete_first_is_refused(memory: str) -> None:
    target = fill(uris.join(memory, "target"), OLD)
    for source in (target, uris.join(target, "deep")):
        with pytest.raises(ValueError, match=r"target, which holds it"):
            folders.copy_folder(source, target)
    assert read(target) == OLD


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    source, real = str(tmp_path / "source"), str(tmp_path / "disk" / "real")
    fill(source, NEW), fill(real, OLD)
    (tmp_path / "target").symlink_to(real)
    folders.copy_folder(source, str(tmp_path / "target"))
    assert (tmp_path / "target").is_symlink()
    assert read(real) == NEW


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    source = fill(str(tmp_path / "source"), NEW)
    (tmp_path / "target").write_bytes(b"mine")
    with pytest.raises(OSError, match="target"):
        folders.copy_folder(source, str(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == b"mine"


def test_others_may_read_what_was_copied(tmp_path: Path) -> None:
    """What `tempfile` makes is its owner's alone."""
    (tmp_path / "usual").mkdir()
    folders.copy_folder(fill(str(tmp_path / "source"), NEW), str(tmp_path / "target"))
    assert (tmp_path / "target").stat().st_mode == (tmp_path / "usual").stat().st_mode


# Copies for a while


def test_a_local_folder_is_itself_or_a_copy_that_goes(memory: str, temporary: Path) -> None:
    local = fill(str(temporary.parent / "local"), NEW)
    for location in (local, Path(local).as_uri()):
        with folders.local_folder(location) as folder:
            assert folder == Path(local)
    assert read(local) == NEW
    with folders.local_folder("owner/name") as folder:  # a hub id
        assert str(folder) == "owner/name"

    fill(memory, NEW)
    with folders.local_folder(memory) as folder:
        assert tree(folder) == NEW
    with pytest.raises(LookupError), folders.local_folder(memory):
        raise LookupError
    assert names(temporary) == set()


def test_a_local_copy_without_weights_holds_all_other_files(memory: str, temporary: Path) -> None:
    fill(memory, {"config.json": b"{}", "deep/tokenizer.model": b"t", "model-1.safetensors": b"w"})
    fill(memory, {"codec/config.json": b"{}", "codec/pytorch_model.bin": b"w"})
    with folders.local_folder(memory, weights=False) as folder:
        assert set(tree(folder)) == {"config.json", "deep/tokenizer.model", "codec/config.json"}


def test_a_voice_from_a_store_leaves_no_copy_and_speaks(
    checkpoint: Path, memory: str, temporary: Path
) -> None:
    folders.copy_folder(str(checkpoint), memory)
    voice = load_voice(memory)
    assert names(temporary) == set()
    codes = [np.full((1, 3 * n), 7, np.int16) for n in (1, 2, 4)]
    assert voice.codec.decode(codes).equal(load_codec(str(CODEC)).decode(codes))
    assert names(temporary) == set()


def test_a_driver_reads_a_tokenizer_and_no_weights(
    checkpoint: Path, memory: str, temporary: Path
) -> None:
    for path in ("config.json", "sheen.json", "tokenizer.json", "tokenizer_config.json"):
        files.write_bytes(uris.join(memory, path), (checkpoint / path).read_bytes())
    info, tokenizer, extends = inputs.plan_checkpoint(memory, describe_codec(str(CODEC)))
    assert not extends
    assert info.codec.sha256 == describe_codec(str(CODEC)).sha256
    assert tokenizer("four")["input_ids"]
    assert names(temporary) == set()


@pytest.mark.parametrize("half", [False, True])
def test_a_checkpoint_is_published_at_once_with_its_codec(
    checkpoint: Path, tmp_path: Path, half: bool
) -> None:
    model, target = checkpoint, tmp_path / "checkpoint"
    fill(str(target), OLD)
    codec = describe_codec(str(CODEC))
    states = states_during(
        lambda: job._export(str(model), str(target), codec, str(CODEC), half, None),
        lambda: dict.fromkeys(sorted(path.name for path in target.rglob("*")), b""),
    )
    assert len(states) == 2, states
    assert "pytorch_model.bin" in states[1]
    assert set(tree(target)) == set(tree(model))


def test_a_run_in_a_store_keeps_no_copy(memory: str, temporary: Path) -> None:
    class Files:
        def write(self, folder: Path, weights: dict[str, Tensor]) -> None:
            folder.mkdir()
            (folder / "state").write_bytes(bytes(weights["state"].tolist()))

    store = RunStore(memory, keep=1)
    for step, text in ((1, b"first"), (1, b"second")):
        store.save(step, Snapshot(Files(), {"state": torch.tensor([*text])}, {"step": step}))
        store.wait()
    with store.open_latest() as latest:
        assert latest is not None
        assert tree(latest / MODEL_FOLDER) == {"state": b"second"}
        assert names(latest) == {MODEL_FOLDER, STATE_FILE}
    assert names(temporary) == set()
