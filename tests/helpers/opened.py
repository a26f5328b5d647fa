"""The recordings that clips are read from, to see how much of each was decoded."""

from typing import Any

import pytest

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
