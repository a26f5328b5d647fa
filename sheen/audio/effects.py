"""Effects: silence cut off, loudness, tempo; samples in, samples out.

Owns what a recording loses at its ends, and ffmpeg's `atempo` (it overlaps and adds
windows of the waveform where they match best) with the promise that n samples become exactly
n / speed, in whatever chunks they come, and that silence of a stated length stays as long as it is.
Knows nothing of codecs, text, formats or requests.
"""

import math
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph

from sheen.audio.samples import KEPT_SILENCE_S, NO_SAMPLES, Samples

PEAK = 0.99


def trim(samples: Samples, sample_rate: int, threshold_db: float) -> Samples:
    """Samples without the silence at both ends, below `threshold_db` of full scale, of which
    KEPT_SILENCE_S is kept; empty where nothing is louder."""
    loud = np.flatnonzero(np.abs(samples) >= 10 ** (threshold_db / 20))
    if not len(loud):
        return samples[:0]
    kept = round(KEPT_SILENCE_S * sample_rate)
    return samples[max(0, loud[0] - kept) : loud[-1] + 1 + kept]


def to_loudness(samples: Samples, sample_rate: int, lufs: float) -> Samples:
    """Samples scaled to an integrated loudness, see `loudness_lufs`, or as near as PEAK allows.

    A clip shorter than the 0.4 s that the measure needs is returned unchanged.
    """
    measured = loudness_lufs(samples, sample_rate)
    if measured is None:
        return samples
    gain = min(10 ** ((lufs - measured) / 20), PEAK / max(float(np.abs(samples).max()), 1e-9))
    return samples * np.float32(gain)


def loudness_lufs(samples: Samples, sample_rate: int) -> float | None:
    """Integrated loudness (ITU-R BS.1770, torchaudio's); None for silence, and for a clip shorter
    than the 0.4 s that it needs."""
    if len(samples) < 0.4 * sample_rate:
        return None
    import torch  # here, see `io.resampled`
    from torchaudio.functional import loudness

    measured = float(loudness(torch.from_numpy(samples)[None], sample_rate))
    return measured if math.isfinite(measured) else None


SLOWEST, FASTEST = 0.25, 4.0
"""The range of the speech API's `speed`."""

_SLOWEST_FILTER = 0.5  # what one atempo can do; below it two are chained
_BLOCK_S = 0.02


class Tempo:
    """Samples in, samples at `speed` out: 2.0 takes half as long, 0.5 twice as long.

    `push` the samples in order, then `finish` once. All that they return, put together, is
    round(n / speed) samples, the same for every chunking. At 1.0 what is pushed comes back as it
    is. At other speeds and 24 kHz the first output comes after 1,440 to 2,880 samples of input (60
    to 120 ms).
    """

    def __init__(self, speed: float, sample_rate: int) -> None:
        """sample_rate: of input and output, Hz. Raises ValueError for a speed outside 0.25..4."""
        if not SLOWEST <= speed <= FASTEST:
            raise ValueError(f"speed is {speed}: expected a number from {SLOWEST} to {FASTEST}")
        self._speed = speed
        self._rate = sample_rate
        self._block = round(_BLOCK_S * sample_rate)
        self._graph = None if speed == 1.0 else _graph(speed, sample_rate)
        self._waiting = NO_SAMPLES  # less than a block of input
        self._made: list[Samples] = []  # output ahead of what the input so far is due
        self._made_samples = 0
        self._taken = 0
        self._given = 0
        self._finished = False

    def push(self, samples: Samples) -> Samples:
        """The next samples `[n]`, float32; returns what is ready of the output `[m]`, often none.

        Raises RuntimeError after `finish`.
        """
        self._check_open()
        if self._graph is None:
            return samples
        self._taken += len(samples)
        self._waiting = np.concatenate([self._waiting, samples])
        # What atempo makes depends on how its input is cut (and a sample alone at speed 4 makes it
        # fail), so it always gets blocks of one size.
        whole = len(self._waiting) - len(self._waiting) % self._block
        for start in range(0, whole, self._block):
            self._filter(self._graph, self._waiting[start : start + self._block])
        self._waiting = self._waiting[whole:]
        # At high speeds atempo runs ahead by part of a window; were that given away, speech that
        # ends here would be too long.
        return self._give(math.floor(self._taken / self._speed))

    def finish(self) -> Samples:
        """The rest of the output `[m]`. Raises RuntimeError the second time."""
        self._check_open()
        self._finished = True
        if self._graph is None:
            return NO_SAMPLES
        due = round(self._taken / self._speed)
        # Flushed, atempo drops up to a window for every filter (all of it, if the speech is
        # shorter). Silence behind the speech pushes it out; what is made of the silence is cut.
        block = np.zeros(self._block, np.float32)
        block[: len(self._waiting)] = self._waiting
        while self._given + self._made_samples < due:
            self._filter(self._graph, block)
            block = np.zeros(self._block, np.float32)
        rest = self._give(due)
        self._graph, self._made, self._waiting = None, [], NO_SAMPLES
        return rest

    def _check_open(self) -> None:
        if self._finished:
            raise RuntimeError("this Tempo is finished: make a new one for more samples")

    def _filter(self, graph: Graph, block: Samples) -> None:
        frame = av.AudioFrame.from_ndarray(block[None], format="flt", layout="mono")
        frame.sample_rate = self._rate
        graph.push(frame)
        while (pulled := _pull(graph)) is not None:
            self._made.append(pulled)
            self._made_samples += len(pulled)

    def _give(self, due: int) -> Samples:
        """The finished samples up to sample `due` of the output."""
        made = np.concatenate([NO_SAMPLES, *self._made])
        count = min(len(made), due - self._given)
        self._made, self._made_samples = [made[count:]], len(made) - count
        self._given += count
        return made[:count]


class Stretch:
    """As `Tempo`, for a stream whose parts each have a tempo of their own, or none."""

    def __init__(self, speed: float, sample_rate: int) -> None:
        """Raises ValueError for a speed outside 0.25..4."""
        self._speed, self._sample_rate = speed, sample_rate
        self._rate = 1.0
        self._tempo: Tempo | None = Tempo(speed, sample_rate)

    def push(self, samples: Samples, rate: float | None = 1.0) -> Samples:
        """The next samples `[n]`, at `rate` times the speed, or as they are where it is None;
        returns what is ready of the output `[m]`. All of one rate that follow each other are
        stretched together. Raises ValueError for a product outside 0.25..4."""
        if rate is None:
            return np.concatenate([self.finish(), samples])
        before = self.finish() if rate != self._rate else NO_SAMPLES
        self._rate = rate
        if self._tempo is None:
            self._tempo = Tempo(self._speed * rate, self._sample_rate)
        ready = self._tempo.push(samples)
        return np.concatenate([before, ready]) if len(before) else ready

    def seconds(self, samples: int, rate: float | None) -> float:
        """The duration at the output of so many samples pushed at a rate."""
        return samples / self._sample_rate / (1.0 if rate is None else self._speed * rate)

    def finish(self) -> Samples:
        """The rest of the output `[m]`."""
        rest = NO_SAMPLES if self._tempo is None else self._tempo.finish()
        self._tempo = None
        return rest


def _graph(speed: float, sample_rate: int) -> Graph:
    graph = Graph()
    time_base = Fraction(1, sample_rate)
    source = graph.add_abuffer(
        sample_rate=sample_rate, format="flt", layout="mono", time_base=time_base
    )
    speeds = [speed] if speed >= _SLOWEST_FILTER else [_SLOWEST_FILTER, speed / _SLOWEST_FILTER]
    filters = [graph.add("atempo", tempo=f"{one:.9f}") for one in speeds]
    graph.link_nodes(source, *filters, graph.add("abuffersink")).configure()
    return graph


def _pull(graph: Graph) -> Samples | None:
    try:
        frame = graph.pull()
    except BlockingIOError:  # needs more input
        return None
    assert isinstance(frame, av.AudioFrame)
    samples: Samples = frame.to_ndarray()[0]
    return samples
