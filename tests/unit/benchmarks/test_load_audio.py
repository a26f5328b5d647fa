"""What the load tool makes of bytes: when they can be played, and what a listener hears of them."""

import contextlib
import io
import sys

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.example import RATE, ROOT
from sheen.audio.io import wav_header

sys.path.append(str(ROOT / "benchmarks"))
from listener import Listener
from serve_audio import Chunk, Undecodable, playable, wav_layout

SILENCE_S = 0.5
SILENCE = np.zeros(round(SILENCE_S * RATE), "<i2")
TONE = (8000 * np.sin(np.arange(RATE) * 0.2 + 1)).astype("<i2")  # a second


def test_a_listener_runs_dry_between_chunks() -> None:
    listener = Listener(1000)
    tenth = np.full(100, 0.5, np.float32)
    listener.came(10.0, np.zeros(100, np.float32))
    listener.came(10.02, tenth)  # early: it waits for the silence
    assert listener.audible == pytest.approx(10.1)
    listener.came(10.2, tenth)  # in time to the millisecond
    assert listener.underruns == 0
    listener.came(10.5, tenth)
    listener.came(10.5, tenth)  # with the one before
    assert (listener.underruns, listener.missed_s) == (1, pytest.approx(0.2))
    assert listener.seconds == pytest.approx(0.5)
    assert listener.plays_until == pytest.approx(10.7)


def encoded(pcm: NDArray[np.int16], audio_format: str) -> bytes:
    """A stream of the format, with pages of Ogg as a server would send them."""
    codec, container, options = {
        "mp3": ("libmp3lame", "mp3", {"write_xing": "0"}),
        "opus": ("libopus", "ogg", {"page_duration": "100000"}),
        "aac": ("aac", "adts", {}),
        "flac": ("flac", "flac", {}),
    }[audio_format]
    target = io.BytesIO()
    with av.open(target, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        # The coder wants frames of its own size.
        stream.codec_context.open()
        parts = av.AudioResampler(
            stream.codec_context.format, "mono", RATE, stream.codec_context.frame_size or 1024
        )
        for part in [*parts.resample(frame), *parts.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return target.getvalue()


@pytest.mark.parametrize("audio_format", ["mp3", "opus", "aac", "flac", "wav"])
def test_compressed_audio_is_playable_when_its_bytes_have_come(audio_format: str) -> None:
    pcm = np.concatenate([SILENCE, TONE])
    if audio_format == "wav":
        data = wav_header(RATE) + pcm.astype("<i2").tobytes()
    else:
        data = encoded(pcm, audio_format)
    pieces = [data[at : at + 300] for at in range(0, len(data), 300)]
    chunks = [Chunk(float(number), piece) for number, piece in enumerate(pieces)]
    rate, parts = playable(chunks, audio_format, 8000)

    samples = np.concatenate([part.samples for part in parts])
    # Coders put up to two frames of their own around the audio.
    assert len(samples) / rate == pytest.approx(len(pcm) / RATE, abs=0.1)
    onset = np.flatnonzero(np.abs(samples) > 0.05)[0] / rate
    assert onset == pytest.approx(SILENCE_S, abs=0.1)
    times = [part.at for part in parts]
    assert times == sorted(times)
    assert times[-1] == len(chunks) - 1
    # Of half of the bytes comes no sample that only the other half holds.
    half = len(chunks) // 2
    early = sum(len(part.samples) for part in parts if part.at < half)
    with contextlib.suppress(Undecodable):  # of a packet cut in two
        _, cut = playable(chunks[:half], audio_format, 8000)
        assert early <= sum(len(part.samples) for part in cut)
    assert 0 < early < len(samples)


def test_bytes_that_are_no_audio_are_not_decoded() -> None:
    for audio_format in ("mp3", "opus", "aac", "flac", "wav"):
        with pytest.raises(Undecodable):
            playable([Chunk(0.0, b"speech" * 100)], audio_format, RATE)
    stereo = bytearray(wav_header(RATE))
    stereo[22] = 2
    with pytest.raises(Undecodable, match="2 channels"):
        wav_layout(bytes(stereo))
