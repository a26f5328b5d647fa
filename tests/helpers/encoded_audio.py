"""Samples as files of any container and codec, by libsndfile or by ffmpeg."""

import io

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def by_soundfile(
    samples: NDArray[np.float32], rate: int, container: str, subtype: str | None = None
) -> bytes:
    file = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(file, "w", rate, channels, subtype, format=container) as target:
        # A minute of Vorbis at once is more than libsndfile's stack holds.
        for start in range(0, len(samples), 4096):
            target.write(samples[start : start + 4096])
    return file.getvalue()


def by_pyav(
    samples: NDArray[np.float32],
    rate: int,
    container: str,
    codec: str,
    later: tuple[float, float] = (0.0, 0.0),
) -> bytes:
    """Of `[n, channels]`. `later`: from which second of it on timestamps are later, and by how many
    seconds, as of a recorder that leaves silence out."""
    file = io.BytesIO()
    layout = LAYOUTS[samples.shape[1]]
    with av.open(file, "w", format=container) as target:
        stream = target.add_stream(codec, rate=rate, layout=layout)
        pieces: list[av.AudioFrame | None] = [None]
        if len(samples):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples.T), format="fltp", layout=layout
            )
            frame.sample_rate, frame.pts = rate, 0
            converter = av.AudioResampler(
                stream.codec_context.format,
                layout,
                rate,
                frame_size=stream.codec_context.frame_size or 1024,
            )
            pieces = [*converter.resample(frame), *converter.resample(None), None]
        for piece in pieces:
            for packet in stream.encode(piece):
                assert packet.pts is not None
                if packet.pts * packet.time_base >= later[0]:
                    packet.pts += round(later[1] / packet.time_base)
                    packet.dts = packet.pts
                target.mux(packet)
    return file.getvalue()
