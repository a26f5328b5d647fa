"""The recordings that clips are read from, to see how much of each was decoded, and the files that
this process opens, to see how many."""

from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from sheen.audio.stream import AudioFile
from sheen.data import clips


def record_opened(monkeypatch: pytest.MonkeyPatch) -> list[AudioFile]:
    """A list to which each recording is added as `sheen.data.clips` opens it."""
    opened: list[AudioFile] = []

    class Known(AudioFile):
        def __init__(self, file: Any, channel: int | None = None) -> None:
            super().__init__(file, channel)
            opened.append(self)

    monkeypatch.setattr(clips, "AudioFile", Known)
    return opened


def record_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list to which the path of each `local://` file is added as this process opens it."""
    paths: list[str] = []
    open_one = LocalFileSystem._open

    def known(self: LocalFileSystem, path: str, *given: Any, **named: Any) -> Any:
        paths.append(path)
        return open_one(self, path, *given, **named)

    monkeypatch.setattr(LocalFileSystem, "_open", known)
    return paths
