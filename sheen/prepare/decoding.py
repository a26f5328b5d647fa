"""A recording of any length as mono blocks at one rate, in the order of time.

Owns decoding of what does not fit into memory: a file is read, decoded, mixed and resampled a block
at a time. Sample 0 is the first that the decoder gives, wherever a container's clock begins. What
stands before a fault is used, and the fault is told. Whole files are `sheen.audio.io`'s.

Shapes: n samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import av
import numpy as np
from av.container import InputContainer

from sheen.audio.io import ANY_TAGS, HIGHEST_RATE, LOWEST_RATE, AudioError
from sheen.audio.samples import Samples
from sheen.storage import uris


class AudioStream:
    """The first audio stream of an open binary file, once from its beginning to its end.

    After the last block, `fault` says why it ended early (None: it did not), and `seconds` how much
    was decoded. Raises AudioError where nothing can be decoded at all.
    """

    def __init__(self, file: Any, sample_rate: int) -> None:
        """`file`: seekable, open while blocks are read. `sample_rate`: of the blocks, Hz."""
        self._file = file
        self._rate = sample_rate
        self.source_rate = 0
        """Of the file's first frame, Hz; 0 before it was read."""
        self.channels = 0
        self.seconds = 0.0
        self.fault: str | None = None

    def __iter__(self) -> Iterator[Samples]:
        """Blocks `[n]`, each of what a few packets hold. Raises AudioError."""
        given = 0
        try:
            with av.open(self._file, "r", **ANY_TAGS) as container:
                if not container.streams.audio:
                    raise AudioError("unreadable", "the file holds no audio stream")
                for samples in self._blocks(container):
                    given += len(samples)
                    yield samples
        except AudioError:
            raise
        except av.FFmpegError as error:
            self._end(given, error.strerror or str(error))
        except (ValueError, TypeError, MemoryError) as error:
            self._end(given, f"{type(error).__name__}: {error}")
        self.seconds = given / self._rate
        if not given:
            raise AudioError("empty", "the file holds 0 samples")

    def _end(self, given: int, why: str) -> None:
        if not given:
            raise AudioError("unreadable", f"decoding failed: {why}")
        self.fault = f"decoding failed after {given / self._rate:.2f} s: {why}"

    def _blocks(self, container: InputContainer) -> Iterator[Samples]:
        shape: tuple[object, ...] | None = None
        packed = resampler = None
        for frame in container.decode(container.streams.audio[0]):
            if shape != (shape := (frame.sample_rate, frame.format.name, frame.layout.name)):
                if not LOWEST_RATE <= frame.sample_rate <= HIGHEST_RATE:
                    raise AudioError(
                        "unreadable",
                        f"its header states a sample rate of {frame.sample_rate} Hz, expected "
                        f"{LOWEST_RATE} to {HIGHEST_RATE}",
                    )
                if resampler is not None:
                    yield from _arrays(resampler.resample(None))
                # Mixed here and not by ffmpeg, which makes stereo of equal channels 3 dB louder.
                packed = av.AudioResampler(format="flt")
                resampler = av.AudioResampler(format="flt", layout="mono", rate=self._rate)
            self.source_rate = self.source_rate or frame.sample_rate
            self.channels = max(self.channels, frame.layout.nb_channels)
            assert packed is not None
            assert resampler is not None
            for converted in packed.resample(frame):
                channels = frame.layout.nb_channels
                mono = converted.to_ndarray().reshape(-1, channels).mean(axis=1)[None]
                mixed = av.AudioFrame.from_ndarray(mono.astype(np.float32), "flt", "mono")
                mixed.sample_rate = frame.sample_rate
                yield from _arrays(resampler.resample(mixed))
        if resampler is not None:
            yield from _arrays(resampler.resample(None))


def _arrays(frames: list[av.AudioFrame]) -> Iterator[Samples]:
    for frame in frames:
        samples: Samples = frame.to_ndarray()[0]
        if not np.isfinite(samples).all():
            raise AudioError("unreadable", "some samples are not finite numbers")
        yield samples


def read_rows(rows: Sequence[Mapping[str, Any]], sample_rate: int) -> list[Samples]:
    """The samples of rows with `audio`, `start` and `end`, in the order given."""
    found: dict[int, Samples] = {}
    order = sorted(range(len(rows)), key=lambda place: rows[place]["audio"])
    for audio, group in groupby(order, key=lambda place: rows[place]["audio"]):
        filesystem, path = uris.open_filesystem(audio)
        with uris.network_errors(audio), filesystem.open_input_file(path) as file:
            whole = np.concatenate(list(AudioStream(file, sample_rate)))
        for place in group:
            start, end = rows[place]["start"], rows[place]["end"]
            found[place] = whole[round(start * sample_rate) : round(end * sample_rate)]
    return [found[place] for place in range(len(rows))]
