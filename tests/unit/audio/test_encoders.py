"""Formats: what two independent decoders make of the bytes, whatever the chunks were."""

import gc
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
from av.container import OutputContainer
from hypothesis import given
from hypothesis import strategies as st

from helpers.readers import READERS, check_speech, mpg123
from sheen.audio.encoders import MEDIA_TYPES, AudioEncoder
from sheen.audio.io import AudioError, decode, encode_audio, from_pcm16, to_pcm16
from sheen.audio.samples import Samples

RATE = 24_000
FORMATS = list(MEDIA_TYPES)
LEAD = {"mp3": 1105, "aac": 1024}  # samples that a decoder gives before the first one
FRAME = {"mp3": 576, "aac": 1024}  # to whose multiple the decoded length is rounded up
HEADERS = {"opus": b"OggS", "flac": b"fLaC", "wav": b"RIFF"}
HELD_BACK = {"pcm": 1, "wav": 1, "flac": 576, "opus": 960, "mp3": 1152, "aac": 2048}
COARSE_FRAME_S = 2048 / RATE
EMPTY = np.zeros(0, np.float32)


def sweep(count: int, rate: int = RATE) -> Samples:
    """A tone that begins as softly as speech and rises from 200 to 2,000 Hz in 3 s: every moment
    sounds different."""
    time = np.arange(count) / rate
    loudness = 0.5 * np.minimum(1, time / 0.05)
    return (loudness * np.sin(2 * np.pi * (200 + 300 * time) * time)).astype(np.float32)


def encoded(
    audio_format: str,
    samples: Samples,
    lengths: Sequence[int] = (),
    rate: int = RATE,
    whole: bool = False,
) -> bytes:
    """The file, from chunks of these lengths and the rest in one."""
    encoder = AudioEncoder(audio_format, rate, whole=whole)
    data = b"".join(encoder.push(chunk) for chunk in np.split(samples, np.cumsum(lengths)))
    return data + encoder.finish()


def decoded(audio_format: str, data: bytes) -> tuple[Samples, int]:
    """By ffmpeg: `[n]` and the rate."""
    if audio_format == "pcm":
        return from_pcm16(np.frombuffer(data, "<i2")), RATE
    return decode(data)


class Socket:
    """A file that gives at most so many bytes at a time, and cannot seek."""

    def __init__(self, data: bytes, most: int) -> None:
        self._file = io.BytesIO(data)
        self._most = most

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._most))


def decoded_from_socket(data: bytes, most: int) -> Samples:
    with av.open(Socket(data, most), "r") as container:
        planar = av.AudioResampler(format="fltp")
        frames = [f for frame in container.decode(audio=0) for f in planar.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def alike(first: bytes, second: bytes) -> bool:
    """Whether they are the same file, but for the random number that Ogg gives a stream and the
    checksum of its pages."""
    pages, others = (
        [page[:10] + page[14:18] + page[22:] if page else b"" for page in data.split(b"OggS")]
        if data.startswith(b"OggS")
        else [data]
        for data in (first, second)
    )
    return pages == others


def error_against(samples: Samples, heard: Samples) -> float:
    """Root mean square of the difference, as a part of the sound's."""
    difference = heard[: len(samples)] - samples
    return float(np.sqrt(np.mean(difference**2) / np.mean(samples**2)))


@pytest.mark.parametrize("audio_format", FORMATS)
@pytest.mark.parametrize("count", [1100, 24_000, 100_003])
def test_a_decoder_hears_what_went_in(audio_format: str, count: int) -> None:
    samples = sweep(count)
    heard, rate = decoded(audio_format, encoded(audio_format, samples))
    assert rate == (48_000 if audio_format == "opus" else RATE)
    heard = heard[:: rate // RATE]
    lead, frame = LEAD.get(audio_format, 0), FRAME.get(audio_format, 1)
    assert len(heard) == -(-(lead + count) // frame) * frame
    assert len(heard) - count <= 2048
    # LAME makes what it gets 5 % softer, so that no decoder clips.
    assert error_against(samples, heard[lead:]) < (0.1 if lead or rate != RATE else 1e-3)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("count", [1, 577, 30_000])
@pytest.mark.parametrize("audio_format", FORMATS)
def test_other_readers_find_the_samples_and_the_headers_say_so(
    audio_format: str, count: int, whole: bool, tmp_path: Path
) -> None:
    data = encoded(audio_format, sweep(count), [2048] * (count // 2048), whole=whole)
    check_speech(audio_format, data, count, whole, tmp_path)


@pytest.mark.parametrize(
    ("audio_format", "reader"),
    [(name, reader) for name, readers in READERS.items() for reader in readers],
)
def test_other_readers_hear_what_went_in(
    audio_format: str, reader: Callable[[bytes, Path], Samples], tmp_path: Path
) -> None:
    samples = sweep(30_000)
    heard = reader(encoded(audio_format, samples, whole=True), tmp_path)
    leads = range(1025) if audio_format == "aac" else [0]  # that format cannot state it
    least = min(error_against(samples[:20_000], heard[lead:]) for lead in leads)
    assert least < (1e-3 if audio_format in ("flac", "wav") else 0.1)


@pytest.mark.parametrize("audio_format", FORMATS)
def test_a_whole_file_leaves_at_its_end_and_holds_the_sound_of_the_stream(
    audio_format: str,
) -> None:
    samples = sweep(30_000)
    encoder = AudioEncoder(audio_format, RATE, whole=True)
    assert not encoder.push(samples[:20_000])
    assert not encoder.push(samples[20_000:])
    whole, _ = decoded(audio_format, encoder.finish())
    streamed, _ = decoded(audio_format, encoded(audio_format, samples))
    lead = LEAD.get(audio_format, 0) if audio_format == "mp3" else 0
    assert np.array_equal(whole, streamed[lead : lead + len(whole)])


def test_the_encoder_is_the_one_that_mp3_names() -> None:
    body = encoded("mp3", sweep(5000))  # no header: what LAME itself puts into its frames
    assert b"LAME3.100" in body


def test_whole_mp3_of_every_length_is_as_long_as_it_was(tmp_path: Path) -> None:
    # LAME's last frames are padded in one of 576 ways.
    for count in range(2000, 2577, 9):
        data = encoded("mp3", sweep(count), whole=True)
        assert (count, len(mpg123(data, tmp_path))) == (count, count)


@pytest.mark.parametrize("container", ["FLAC", "WAV"])
@pytest.mark.parametrize("count", [1, 30_000])
def test_files_of_the_jobs_state_their_length(
    container: Literal["FLAC", "WAV"], count: int, tmp_path: Path
) -> None:
    data = encode_audio(sweep(count), RATE, container)
    check_speech(container.lower(), data, count, True, tmp_path)


def test_ogg_pages_leave_soon_and_the_last_says_so() -> None:
    _, *pages = encoded("opus", sweep(RATE)).split(b"OggS")
    assert len(pages) >= 2 + 50  # two headers, a page for every 20 ms
    assert pages[0][1] == 2  # flags: begins the stream
    assert [page[1] for page in pages[1:]] == [0] * (len(pages) - 2) + [4]  # ends it
    granules = [int.from_bytes(page[2:10], "little") for page in pages]
    assert granules == sorted(granules)
    assert granules[-1] == 48_000 + 312  # what was heard, and the decoder's run-up


def test_flac_holds_the_samples_of_wav() -> None:
    samples = np.concatenate([sweep(5000), np.float32([1.0, -1.0, 1.5, -1.5])])
    flac, _ = decode(encoded("flac", samples))
    assert np.array_equal(np.rint(flac * 32768), to_pcm16(samples))
    assert encoded("wav", samples)[44:] == to_pcm16(samples).tobytes()
    assert encoded("pcm", samples) == to_pcm16(samples).tobytes()


@pytest.mark.parametrize("audio_format", FORMATS)
@given(lengths=st.lists(st.sampled_from([0, 1, 2, 575, 576, 960, 2048, 3001]), max_size=8))
def test_the_bytes_do_not_depend_on_the_chunks(audio_format: str, lengths: list[int]) -> None:
    samples = sweep(6000)
    assert alike(encoded(audio_format, samples, lengths), encoded(audio_format, samples))


@pytest.mark.parametrize("audio_format", ["mp3", "opus", "aac", "flac", "wav"])
@pytest.mark.parametrize("most", [7, 1000])
def test_a_decoder_may_get_the_bytes_in_any_cut(audio_format: str, most: int) -> None:
    data = encoded(audio_format, sweep(20_000), [2048] * 9)
    assert np.array_equal(decoded_from_socket(data, most), decode(data)[0])


@pytest.mark.parametrize("audio_format", FORMATS)
def test_what_has_left_so_far_can_be_played(audio_format: str) -> None:
    samples = sweep(3 * RATE)
    encoder = AudioEncoder(audio_format, RATE)
    sent, lead = b"", LEAD.get(audio_format, 0)
    for start in range(0, len(samples), 8192):
        sent += encoder.push(samples[start : start + 8192])
        heard, rate = decoded(audio_format, sent)
        pushed = min(start + 8192, len(samples))
        # What a decoder lacks of it is held back here or, by a frame at most, in the decoder.
        assert len(heard) * RATE / rate >= pushed + lead - HELD_BACK[audio_format] - 1152
    encoder.close()
    assert error_against(samples[: 2 * RATE], heard[lead :: rate // RATE]) < 0.5


@pytest.mark.parametrize("audio_format", FORMATS)
def test_sound_leaves_after_as_many_samples_as_documented(audio_format: str) -> None:
    encoder = AudioEncoder(audio_format, RATE)
    header = encoder.push(EMPTY)
    assert header.startswith(HEADERS.get(audio_format, b""))
    assert (len(header) > 0) == (audio_format in HEADERS)
    samples = sweep(4096)
    pushed = 0
    while not encoder.push(samples[pushed : pushed + 1]):
        pushed += 1
    assert pushed + 1 == HELD_BACK[audio_format]
    encoder.close()


@pytest.mark.parametrize("audio_format", FORMATS)
def test_an_encoder_does_not_keep_a_long_stream(audio_format: str) -> None:
    encoder = AudioEncoder(audio_format, RATE)
    second = sweep(RATE)
    sizes = [len(encoder.push(second)) for _ in range(20)]
    assert min(sizes[1:]) > 0.5 * max(sizes)
    assert len(encoder.finish()) < 4096


@pytest.mark.parametrize("audio_format", [name for name in FORMATS if name != "pcm"])
@pytest.mark.parametrize("rate", [8000, 22_050, 32_000, 44_100, 96_000])
def test_every_format_is_encoded_at_other_sample_rates(audio_format: str, rate: int) -> None:
    samples = (0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)
    heard, heard_rate = decode(encoded(audio_format, samples, [1, 2048], rate))
    expected = {"opus": 48_000, "mp3": min(rate, 48_000)}.get(audio_format, rate)
    assert heard_rate == expected
    lead_s = LEAD.get(audio_format, 0) / expected
    frame_s = {"mp3": 1152, "aac": 1024}.get(audio_format, 1) / expected
    assert -0.001 <= len(heard) / heard_rate - 1.0 - lead_s <= frame_s + 0.001
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert abs(np.argmax(spectrum) * heard_rate / len(heard) - 440) < 2


@pytest.mark.parametrize("count", [1, 577])
@pytest.mark.parametrize("audio_format", FORMATS)
def test_a_stream_shorter_than_a_frame_is_a_file_of_about_its_length(
    audio_format: str, count: int
) -> None:
    data = encoded(audio_format, sweep(count))
    if audio_format == "aac":  # too short for ffmpeg to tell what it is; HTTP says what it is
        with av.open(io.BytesIO(data), "r", format="aac") as container:
            length = sum(frame.samples for frame in container.decode(audio=0))
    else:
        heard, rate = decoded(audio_format, data)
        length = len(heard) * RATE // rate
    assert 0 <= length - count <= 2048


@pytest.mark.parametrize("audio_format", FORMATS)
def test_a_stream_without_samples_is_its_header(audio_format: str) -> None:
    header = AudioEncoder(audio_format, RATE).push(EMPTY)
    assert alike(AudioEncoder(audio_format, RATE).finish(), header)
    if audio_format in ("flac", "wav"):
        with pytest.raises(AudioError, match="0 samples"):
            decode(header)


@pytest.mark.parametrize("audio_format", FORMATS)
def test_an_encoder_ends_once(audio_format: str) -> None:
    finished, left = AudioEncoder(audio_format, RATE), AudioEncoder(audio_format, RATE)
    finished.push(sweep(5000))
    finished.finish()
    finished.close()
    left.push(sweep(5000))
    left.close()
    left.close()
    for encoder in (finished, left):
        with pytest.raises(RuntimeError, match="make a new one"):
            encoder.push(EMPTY)
        with pytest.raises(RuntimeError, match="make a new one"):
            encoder.finish()


def test_close_frees_ffmpegs_encoder_at_once() -> None:
    def held() -> int:
        return sum(type(thing) in (av.AudioStream, OutputContainer) for thing in gc.get_objects())

    gc.collect()
    gc.disable()  # nothing may need it: a busy server collects seldom
    try:
        before = held()
        encoders = [AudioEncoder(name, RATE) for name in ("mp3", "opus", "aac", "flac")]
        for encoder in encoders:
            encoder.push(sweep(5000))
        assert held() == before + 2 * len(encoders)
        for encoder in encoders:
            encoder.close()
        assert held() == before
    finally:
        gc.enable()


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'ogg'.*mp3, opus, aac, flac, wav, pcm"):
        AudioEncoder("ogg", RATE)
