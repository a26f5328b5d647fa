"""A preparation that is killed ends as if it had never been, with the same bytes in its manifest.

The real job and its real workers, for `make soak`: on two nodes the driver, a worker and a node are
killed, each three times at random moments. What an interruption leaves is resumed by
`test_prepare.py` too.
"""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers.example import RATE, ROOT, VOICE, clips_of, load_script, read_clip
from helpers.killed import KINDS, committed, interrupt
from helpers.recogniser import tiny_en
from sheen.prepare.output import MANIFEST, REJECTED, TRANSCRIPTS

SEGMENTS = 6
"""Each is a block."""

main = load_script(ROOT / "jobs" / "prepare.py").main


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two voices with pauses, each long enough for an embedding."""
    clips = [*clips_of(VOICE)[-SEGMENTS // 2 :], *clips_of("am_onyx")[-SEGMENTS // 2 :]]
    noise = 1e-4 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    parts = [part for clip in clips for part in (noise, read_clip(clip))]
    path = tmp_path_factory.mktemp("raw") / "long.flac"
    soundfile.write(path, np.concatenate([*parts, noise]), RATE)
    return path


def arguments(recording: Path, output: Path) -> list[str]:
    flags = ["--input", str(recording), "--output", str(output), "--asr", tiny_en()]
    # Drawing players takes as long as transcribing.
    return [*flags, "--review-rows", "0"]


def result(output: Path) -> list[bytes]:
    return [(output / name).read_bytes() for name in (MANIFEST, REJECTED)]


@pytest.fixture(scope="module")
def expected(
    ray_cluster: None, recording: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[bytes]:
    """What an uninterrupted run of two workers writes."""
    output = tmp_path_factory.mktemp("whole") / "prepared"
    assert main(arguments(recording, output)) == 0
    found = result(output)
    assert found[0].count(b"\n") == SEGMENTS
    assert b'"speaker": "speaker-2"' in found[0]
    return found


@pytest.mark.soak
@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_a_preparation_killed_at_any_moment_ends_as_if_it_had_not_been(
    kind: str, turn: int, recording: Path, expected: list[bytes], tmp_path: Path
) -> None:
    draws = random.Random(f"{os.environ['TEST_SHEEN_SEED']} {kind} {turn}")
    when = draws.randrange(1, SEGMENTS - 1)
    print(f"{kind}, turn {turn}: after {when} blocks")
    output, log = tmp_path / "prepared", tmp_path / "job.log"
    folder = output / TRANSCRIPTS
    flags = arguments(recording, output)
    interrupt(kind, "prepare", flags, log, "TranscribeWorker", folder, when)
    finished, left = (output / MANIFEST).exists(), committed(folder)
    assert finished or len(left) >= when
    assert finished or kind != "worker", "a worker that dies is replaced"
    assert main([*flags, "--num-workers", "1"]) == 0
    assert result(output) == expected
    assert not committed(folder), "they are merged"
