"""Parts of recordings: the same as cut from the whole, for what the part costs."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.encoded_audio import by_pyav, by_soundfile
from sheen.audio.io import AudioError, decode
from sheen.audio.stream import PREROLL_S, AudioFile

RATE = 16_000
SECONDS = 8


def voice(seconds: float = SECONDS, rate: int = RATE, noise: float = 0.0) -> NDArray[np.float32]:
    """`[n, 1]`: harmonics whose pitch and level move, so that no two places are alike."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (120 * time + 15 * np.sin(0.9 * time))
    wave = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 12))
    wave = 0.15 * wave * (1 + 0.8 * np.sin(11 * time) * np.sin(0.31 * time))
    wave += noise * np.random.default_rng(7).standard_normal(len(time))
    return wave.astype(np.float32)[:, None]


KINDS: dict[str, tuple[str, str | None]] = {
    "wav": ("WAV", None), "w64": ("W64", None), "aiff": ("AIFF", None), "au": ("AU", None),
    "caf": ("CAF", "ALAC_16"), "flac": ("FLAC", None), "mp3": ("MP3", None),
    "vorbis": ("OGG", "VORBIS"), "opus": ("ogg", "libopus"), "webm": ("webm", "libopus"),
    "m4a": ("ipod", "aac"), "aac": ("adts", "aac"), "ts": ("mpegts", "aac"),
    "mka": ("matroska", "aac"), "ac3": ("ac3", "ac3"),
    "mp3 without a header": ("mp3", "libmp3lame"),
}  # fmt: skip
READ_ON = {"caf", "opus", "vorbis", "webm", "ts", "mka", "ac3"}
"""Kinds without an exact place to seek to."""


def file_of(kind: str, samples: NDArray[np.float32]) -> bytes:
    container, codec = KINDS[kind]
    if container.islower():
        assert codec is not None
        rate = 48_000 if codec in ("libopus", "ac3") else RATE
        return by_pyav(np.repeat(samples, rate // RATE, axis=0), rate, container, codec)
    return by_soundfile(samples, RATE, container, codec)


def test_one_channel_is_read_by_itself_and_one_that_is_not_there_refused() -> None:
    samples = np.concatenate([voice(), 0.5 * voice(noise=0.1)], axis=1)
    data = by_soundfile(samples, RATE, "FLAC")
    for channel in (0, 1):
        with AudioFile(io.BytesIO(data), channel) as file:
            part = file.read(1.0, 2.0)
            whole = np.concatenate(list(file.blocks()))
        np.testing.assert_allclose(whole, samples[:, channel], atol=1e-4)
        np.testing.assert_array_equal(part, whole[RATE : 2 * RATE])
    refused = pytest.raises(AudioError, match="channel 2 is asked for, counted from 0, and it has")
    with AudioFile(io.BytesIO(data), 2) as file, refused:
        file.read(0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_what_the_whole_has_there_and_the_same_whatever_was_read_before(
    kind: str,
) -> None:
    data = file_of(kind, voice())
    whole, rate = decode(data)
    parts = [(0, 1.5), (0.1, 2), (0.4, 0.9), (3, 4.25), (4.2, 5), (5.5, 7), (7.5, None)]
    with AudioFile(io.BytesIO(data)) as file:
        assert file.rate == rate
        in_order = [file.read(*part) for part in parts]
        assert file.samples == len(whole)
        np.testing.assert_array_equal(np.concatenate(list(file.blocks())), whole)
        in_disorder = {place: file.read(*parts[place]) for place in (6, 2, 5, 0, 1, 4, 3)}
    for place, (start, end) in enumerate(parts):
        expected = whole[round(start * rate) : None if end is None else round(end * rate)]
        assert len(in_order[place]) == len(expected)
        # The noise in some of AAC's bands is another one.
        atol = 5e-3 if kind in ("m4a", "aac") else 1e-4
        np.testing.assert_allclose(in_order[place], expected, atol=atol)
        np.testing.assert_array_equal(in_disorder[place], in_order[place])


def test_the_noise_of_aac_does_not_depend_on_what_was_read_before() -> None:
    data = by_pyav(voice(noise=0.1), RATE, "ipod", "aac")
    with AudioFile(io.BytesIO(data)) as file:
        alone = file.read(5, 7)
        for start in (1, 3, 4.5):
            file.read(start, start + 2)
            np.testing.assert_array_equal(file.read(5, 7), alone)


class Counted(io.BytesIO):
    """A file that knows how many of its bytes were read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize("kind", ["mp3", "flac", "m4a"])
def test_parts_anywhere_are_exact_from_their_first_sample_to_the_file_s_end(kind: str) -> None:
    data = file_of(kind, voice(6.3))
    whole, rate = decode(data)
    end = len(whole) / rate
    with AudioFile(io.BytesIO(data)) as file:
        for start in [*np.arange(0.1, end, 0.087), *(end - np.array([0.2, 0.05, 0.01]))]:
            expected = whole[round(start * rate) : round((start + 0.3) * rate)]
            np.testing.assert_allclose(file.read(start, start + 0.3), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "buffers"), [("mp3", 2), ("flac", 8)])
def test_many_parts_of_a_long_file_cost_their_own_length_and_one_reading(
    kind: str, buffers: int
) -> None:
    seconds, count = 96, 30
    file = Counted(file_of(kind, np.tile(voice(), (seconds // SECONDS, 1))))
    size = len(file.getvalue())
    with AudioFile(file) as audio:
        starts = np.linspace(1, seconds - 2, count)
        lengths = [len(audio.read(start, start + 0.5)) for start in starts]
        assert set(lengths) == {round(0.5 * audio.rate)}
        # A frame, at either end, of up to 0.13 s: FLAC's at 16 kHz is the longest.
        assert audio.decoded < count * (0.5 + PREROLL_S + 2 * 0.3) * audio.rate
    # What a seek reads again are buffers of 32 KB; where there is no index, it bisects.
    assert file.count < 2 * size + count * (buffers << 15)


@pytest.mark.parametrize("kind", sorted(READ_ON))
def test_where_no_seek_is_exact_a_file_is_decoded_once_for_all_parts_in_order(kind: str) -> None:
    with AudioFile(io.BytesIO(file_of(kind, voice()))) as file:
        for start in np.arange(0.5, SECONDS - 2, 0.25):  # each begins before the last one ends
            assert len(file.read(start, start + 1)) == file.rate
        assert file.decoded < (SECONDS + 1) * file.rate


@pytest.mark.slow
def test_reading_one_part_of_a_long_file_decodes_no_more_than_the_part() -> None:
    with AudioFile(io.BytesIO(file_of("mp3", voice(20)) * 30)) as file:
        assert max(map(len, file.blocks())) < 2 * file.rate
        length = file.samples
        assert length is not None
        assert abs(length / file.rate - 600) < 4
        before = file.decoded
        assert len(file.read(300, 301)) == file.rate
        assert file.decoded - before < (1 + PREROLL_S + 0.5) * file.rate


@pytest.mark.parametrize(("container", "codec"), [("ipod", "aac"), ("matroska", "aac")])
def test_silence_that_a_recorder_left_out_is_time(container: str, codec: str) -> None:
    samples = voice(8)
    plain, _ = decode(by_pyav(samples, RATE, container, codec))
    with AudioFile(io.BytesIO(by_pyav(samples, RATE, container, codec, (4.0, 2.5)))) as file:
        whole = np.concatenate(list(file.blocks()))
        # Timestamps of Matroska's are whole milliseconds.
        assert abs(len(whole) - len(plain) - 2.5 * RATE) <= RATE / 1000
        assert not whole[round(4.2 * RATE) : round(6.2 * RATE)].any()
        for start in (0, 1, 3.9, 5, 7):
            expected = whole[round(start * RATE) : round((start + 1) * RATE)]
            np.testing.assert_allclose(file.read(start, start + 1), expected, atol=5e-3)


@pytest.mark.parametrize("container", ["ipod", "matroska", "mpegts"])
def test_second_zero_is_the_first_sample_whatever_its_timestamp(container: str) -> None:
    samples = voice(6)
    plain, _ = decode(by_pyav(samples, RATE, container, "aac"))
    with AudioFile(io.BytesIO(by_pyav(samples, RATE, container, "aac", (-1.0, 7.0)))) as file:
        # An edit list may give the time before the first sample, and then it is silence.
        whole = np.concatenate(list(file.blocks()))
        np.testing.assert_allclose(whole[-RATE:], plain[-RATE:], atol=5e-3)
        part = file.read(2.0, 3.0)
        np.testing.assert_allclose(part, whole[2 * RATE : 3 * RATE], atol=5e-3)


def test_the_end_of_the_file_ends_a_part() -> None:
    with AudioFile(io.BytesIO(file_of("mp3", voice(3)))) as file:
        assert len(file.read(2.5, 9.0)) == pytest.approx(0.5 * RATE, abs=0.1 * RATE)
        assert file.samples is not None
        assert len(file.read(5.0, 6.0)) == 0


def test_what_is_there_of_a_cut_file_is_read() -> None:
    data = file_of("flac", voice(4))
    with AudioFile(io.BytesIO(data[: len(data) // 2])) as file:
        length = sum(map(len, file.blocks())) / RATE
        assert 1 < length < 3
        assert all(abs(second - length) < 0.5 for second in file.faults)
        assert len(file.read(0.5, 1.0)) == RATE // 2
        assert len(file.read(length - 0.5, 3.5, strict=False)) == pytest.approx(RATE / 2, abs=1)


def test_what_cannot_be_decoded_is_silence_and_the_rest_stays_in_its_place() -> None:
    """Three MP3s put together with their tags, as people join files."""
    samples = voice(5)
    one = by_pyav(samples, RATE, "mp3", "libmp3lame")
    tag = b"ID3\x04\0\0\0\0\x10\0" + bytes(2048)
    data = tag + one + tag + one + tag + one
    with AudioFile(io.BytesIO(data)) as file:
        whole = np.concatenate(list(file.blocks()))
        assert len(whole) / RATE == pytest.approx(15, abs=0.5)
        faults = sorted(file.faults)
        assert all(4.5 < second < 10.5 for second in faults)
        for start in (1.0, 6.0, 8.5, 12.0, 13.5):
            expected = whole[round(start * RATE) : round((start + 1) * RATE)]
            np.testing.assert_allclose(file.read(start, start + 1), expected, atol=1e-4)
        for second in faults:
            with pytest.raises(AudioError, match=f"decoding failed at {second:.2f} s"):
                file.read(second - 0.5, second + 0.5)
            assert len(file.read(second - 0.5, second + 0.5, strict=False)) == RATE


def test_parts_joined_of_several_rates_keep_their_time() -> None:
    joined = by_soundfile(voice(3, 24_000), 24_000, "MP3")
    joined += by_soundfile(voice(3, 44_100), 44_100, "MP3")
    with AudioFile(io.BytesIO(joined)) as file:
        assert file.rate == 24_000
        assert sum(map(len, file.blocks())) / 24_000 == pytest.approx(6, abs=0.2)
        assert len(file.read(4, 5)) == 24_000


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"no sound at all" * 99, "unreadable"), (bytes(4000), "unreadable")],
)
def test_what_is_no_audio_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(AudioError) as caught:
        AudioFile(io.BytesIO(data))
    assert caught.value.reason == reason


def test_a_connection_that_breaks_is_no_fault_of_the_file() -> None:
    class Broken(io.BytesIO):
        left = 1

        def read(self, size: Any = -1, /) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise ConnectionResetError("gone")
            return super().read(size)

    data = by_soundfile(voice(), RATE, "WAV")
    with pytest.raises(ConnectionResetError, match="gone"):
        list(AudioFile(Broken(data)).blocks())
