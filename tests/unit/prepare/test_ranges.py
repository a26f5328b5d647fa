"""A long recording in ranges: what is measured of it is what one pass over it measures."""

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.encoded_audio import by_pyav, by_soundfile
from helpers.example import VOICE, clips_of, read_clip
from sheen.prepare.cutting import analysis
from sheen.prepare.cutting.analysis import (
    GRAIN_S,
    MOST_RANGES,
    RANGE_S,
    WHOLE_FILE,
    Analysis,
    Measure,
    Range,
    analyze,
    divide,
)
from sheen.prepare.cutting.cut import CutSettings, Segment, cut

RATE = 24_000
SECONDS, SHORTEST = 84, 32
"""Of a recording in three ranges; with WARM_S before it, the last is read from GRAIN_S on."""
FEW, SHORT, WARM_S = 24, 8, 12
"""The same of one that is quickly measured. A network that remembers so little gives other
probabilities, nothing else."""

Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def spoken() -> Samples:
    """Sentences with pauses."""
    rng = np.random.default_rng(0)
    clips = [read_clip(clip, RATE) for voice in (VOICE, "am_onyx") for clip in clips_of(voice)[:15]]
    parts: list[Samples] = []
    while sum(map(len, parts)) < SECONDS * RATE:
        pause = 1e-4 * rng.standard_normal(round(rng.uniform(0.3, 1.2) * RATE))
        parts += [pause.astype(np.float32), clips[rng.integers(len(clips))]]
    return np.concatenate(parts)[: SECONDS * RATE]


@pytest.fixture
def few(spoken: Samples, monkeypatch: pytest.MonkeyPatch) -> Samples:
    """FEW seconds, to be measured in ranges of SHORT."""
    monkeypatch.setattr(analysis, "WARM_S", WARM_S)
    return spoken[: FEW * RATE]


def both(path: Path, data: bytes, shortest: int = SHORT) -> tuple[Analysis, Analysis, list[Range]]:
    """Of a file: measured in one pass, in ranges, and these, which are none for some files."""
    path.write_bytes(data)
    used: list[Range] = []

    def spread(measure: Measure, ranges: Sequence[Range]) -> Iterable[Analysis | None]:
        used.extend(ranges)
        # In any order, as workers may.
        return list(map(measure, ranges[::-1]))[::-1]

    row = {**WHOLE_FILE, "audio": str(path)}
    return analyze(row, None), analyze(row, None, spread=spread, shortest=shortest), used


def segments(of: Analysis) -> list[Segment]:
    return cut(of.probabilities, of.levels, of.seconds, CutSettings())


def assert_alike(whole: Analysis, ranged: Analysis) -> None:
    """All but the probabilities is equal, to the bit."""
    assert (ranged.count, ranged.peak, ranged.faults) == (whole.count, whole.peak, whole.faults)
    assert (ranged.fault, ranged.rate, ranged.channels) == (whole.fault, whole.rate, whole.channels)
    np.testing.assert_array_equal(ranged.levels, whole.levels)
    assert len(ranged.probabilities) == len(whole.probabilities)


@cache
def mp3(samples: bytes) -> bytes:
    """Encoding takes long."""
    return by_soundfile(np.frombuffer(samples, np.float32), RATE, "MP3")


FILES: dict[str, Callable[[Samples], bytes]] = {
    "mp3": lambda samples: mp3(samples.tobytes()),
    "flac": lambda samples: by_soundfile(samples, RATE, "FLAC"),
    # Slower, so a little longer.
    "wav at 22.05 kHz": lambda samples: by_soundfile(samples, 22_050, "WAV"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_ranges_together_are_the_recording(kind: str, spoken: Samples, tmp_path: Path) -> None:
    whole, ranged, used = both(tmp_path / "long", FILES[kind](spoken), SHORTEST)
    assert [start for start, _ in used] == list(range(0, len(used) * SHORTEST, SHORTEST))
    assert len(used) == 3
    assert_alike(whole, ranged)
    np.testing.assert_allclose(ranged.probabilities, whole.probabilities, atol=0.1)
    expected, found = segments(whole), segments(ranged)
    assert len(found) == len(expected) > 10
    for one, other in zip(expected, found, strict=True):
        assert (other.start, other.end) == pytest.approx((one.start, one.end), abs=0.07)


@pytest.mark.slow
def test_the_noise_of_aac_is_all_that_ranges_change(spoken: Samples, tmp_path: Path) -> None:
    """Half a minute that a recorder left out stays in its place."""
    samples = spoken[: (SECONDS - 30) * RATE, None]
    data = by_pyav(samples, RATE, "ipod", "aac", (10.0, 30.0))
    whole, ranged, used = both(tmp_path / "long.m4a", data, SHORTEST)
    assert len(used) == 3
    assert ranged.count == whole.count
    np.testing.assert_allclose(ranged.levels, whole.levels, atol=1e-4)
    assert len(segments(ranged)) == len(segments(whole))


def unstated(samples: Samples) -> bytes:
    """A FLAC whose header does not say how long it is, as of a stream."""
    data = bytearray(by_soundfile(samples, RATE, "FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "encode",
    [
        pytest.param(partial(by_soundfile, rate=RATE, container="OGG", subtype="OPUS"), id="opus"),
        pytest.param(unstated, id="no length"),
    ],
)
def test_without_a_length_or_a_place_to_seek_to_a_recording_is_read_in_one_pass(
    encode: Callable[[Samples], bytes], few: Samples, tmp_path: Path
) -> None:
    assert len(divide(FEW, SHORT)) == 3
    whole, same, used = both(tmp_path / "long", encode(few))
    assert not used
    assert_alike(whole, same)
    assert whole.seconds == pytest.approx(FEW, abs=0.1)
    np.testing.assert_array_equal(same.probabilities, whole.probabilities)


def cut_short(samples: Samples) -> bytes:
    """In the second range."""
    data = mp3(samples.tobytes())
    return data[: len(data) * (SHORT + 1) // FEW]


def not_a_number(samples: Samples) -> bytes:
    samples = samples.copy()
    samples[(FEW - 3) * RATE + 7] = np.nan
    return by_soundfile(samples, RATE, "WAV", "FLOAT")


def joined(samples: Samples) -> bytes:
    """With the tags between them, which cannot be decoded. The header is that of the first."""
    tag = b"ID3\x04\0\0\0\0\x10\0" + bytes(2048)
    return b"".join(
        tag + by_soundfile(part, RATE, "MP3") for part in np.split(samples, [(FEW - 1) * RATE])
    )


def hole(samples: Samples) -> bytes:
    """From 2 to 7 s, where decoding for the last range would begin."""
    data = bytearray(mp3(samples.tobytes()))
    first, last = (len(data) * second // FEW for second in (2, 7))
    data[first:last] = bytes(last - first)
    return bytes(data)


def stated_longer(samples: Samples) -> bytes:
    """Its header says MOST_RANGES times what is there."""
    data = bytearray(by_soundfile(samples, RATE, "FLAC"))
    data[22:26] = struct.pack(">I", MOST_RANGES * FEW * RATE)
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut_short, hole, joined, not_a_number, stated_longer])
def test_of_a_damaged_recording_ranges_use_what_one_pass_uses(
    damage: Callable[[Samples], bytes], few: Samples, tmp_path: Path
) -> None:
    whole, ranged, used = both(tmp_path / "long", damage(few))
    assert len(used) > 1
    assert_alike(whole, ranged)


def test_where_a_range_cannot_be_reached_the_recording_is_read_in_one_pass(
    few: Samples, tmp_path: Path
) -> None:
    path = tmp_path / "long.flac"
    path.write_bytes(by_soundfile(few, RATE, "FLAC"))
    row = {**WHOLE_FILE, "audio": str(path)}

    def spread(measure: Measure, ranges: Sequence[Range]) -> list[Analysis | None]:
        return [measure(ranges[0]), *[None for _ in ranges[1:]]]

    found = analyze(row, None, spread=spread, shortest=SHORT)
    assert found.probabilities.tolist() == analyze(row, None).probabilities.tolist()


@pytest.mark.parametrize("seconds", [0, 1, 899, 901, 3599.9, 10_800, 36_000, 1e6])
def test_a_recording_is_divided_by_its_length_alone(seconds: float) -> None:
    ranges = divide(seconds)
    assert 1 <= len(ranges) <= MOST_RANGES
    assert ranges[0][0] == 0
    assert ranges[-1][1] is None
    assert [end for _, end in ranges[:-1]] == [start for start, _ in ranges[1:]]
    for start, end in ranges[:-1]:
        assert end is not None
        assert end - start >= RANGE_S
        assert start % GRAIN_S == 0
    assert len(ranges) == 1 or seconds - ranges[-1][0] >= RANGE_S / 2
