"""Recordings as training segments: selection, split, cropping, and reading ahead.

Owns the sampling of segments. The k-th segment of a run is a function of the seed and k alone, so
a resumed run gets the segments that the interrupted one would have got, and workers read only the
recordings they need, wherever those are stored. An unreadable recording is counted, and another
one replaces it.
"""

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyarrow import fs
from torch import Tensor

from sheen.audio.io import AudioError, decode_audio
from sheen.data.corpus import AUDIO_SUFFIXES, METADATA_FILE, plain_rows
from sheen.runs.attempts import MAX_CRASHES, Attempts, BlockAttempts, crash_reason
from sheen.runs.output import sample_digests
from sheen.storage import files, uris

READ_AHEAD = 2
"""Steps whose segments are read before they are asked for."""
READ_LIMIT_S = 300.0
"""A recording that takes longer ends its process, in a process that replaces a crashed one."""
ATTEMPTS = 20
"""Recordings tried for one segment before the data counts as unreadable."""
SPEED_STEPS = 20
"""Speeds are multiples of 1/20: resampling filters of such ratios are small."""


@dataclass(frozen=True)
class Recordings:
    """Paths or URIs, split once: the same seed and folder give the same split."""

    train: list[str]
    evaluation: list[str]
    summary: dict[str, Any]

    def names_digest(self) -> str:
        """Their number, and a hash of their names in order, without the folders."""
        names = [PurePosixPath(path).name for path in (*self.train, *self.evaluation)]
        digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape"))
        return f"{len(names)} recordings, names sha256 {digest.hexdigest()}"

    def sample(self) -> dict[str, str | None]:
        """Hashes of some of the recordings, see `sample_digests`."""
        return sample_digests([*self.train, *self.evaluation])


def find_recordings(location: str, held_out: int, seed: int) -> Recordings:
    """The recordings of a folder (with metadata.csv, or any audio files in it) or a manifest.

    Raises ValueError when there are none, or no more than are to be held out.
    """
    dropped: dict[str, int] = {}
    kind = files.kind(location)
    if kind == fs.FileType.Directory and not files.exists(uris.join(location, METADATA_FILE)):
        paths = [
            path
            for path in files.list_below(location)
            if uris.name(path).lower().endswith(AUDIO_SUFFIXES)
        ]
        if not paths:
            raise ValueError(
                f"--data {location}: no audio files ({', '.join(AUDIO_SUFFIXES)}) and no "
                f"{METADATA_FILE} in this folder"
            )
    else:
        paths = []
        for row in plain_rows(location):
            # A codec needs no text.
            if row["reason"] in (None, "no text"):
                paths.append(row["audio"])
            else:
                dropped[row["reason"]] = dropped.get(row["reason"], 0) + 1
        paths = sorted(set(paths))
    if len(paths) <= held_out:
        raise ValueError(
            f"--data {location}: {len(paths)} usable recordings, and --eval-recordings {held_out} "
            f"holds out {held_out}: none is left to train on"
        )
    order = np.random.default_rng(seed).permutation(len(paths))
    chosen = set(order[:held_out].tolist())
    return Recordings(
        train=[path for index, path in enumerate(paths) if index not in chosen],
        evaluation=[paths[index] for index in sorted(chosen)],
        summary={
            "event": "data",
            "train_recordings": len(paths) - held_out,
            "eval_recordings": held_out,
            "dropped": dropped,
        },
    )


class SegmentReader:
    """Batches of segments for one rank, read by threads while the step before computes.

    `unreadable` maps each recording that could not be used to the reason. Where the rank's process
    has ended before, as `attempts` says, one recording is read at a time, and one that kills its
    process, or takes READ_LIMIT_S, is unreadable.

    With `speed_perturbation` s each segment is played at a speed drawn log-uniformly from
    1 / (1 + s) to 1 + s, by resampling (Ko et al., "Audio Augmentation for Speech Recognition",
    2015: 0.1).
    """

    def __init__(
        self,
        paths: list[str],
        *,
        sample_rate: int,
        samples: int,
        per_rank: int,
        rank: int,
        world: int,
        seed: int,
        speed_perturbation: float = 0.0,
        attempts: Attempts | None = None,
    ) -> None:
        self.unreadable: dict[str, str] = {}
        self._attempts = attempts
        self._block = ("recordings", rank)
        past = attempts.begin(self._block) if attempts is not None else BlockAttempts(1)
        self._careful = past.starts > 1
        self._turn = Lock()
        for path, crashes in past.crashes.items():
            if len(crashes) >= MAX_CRASHES:
                reason, detail = crash_reason("decoder", crashes)
                self.unreadable[str(path)] = f"{reason} ({detail})"
        self._paths = paths
        self._sample_rate = sample_rate
        self._samples = samples
        self._per_rank, self._rank, self._world = per_rank, rank, world
        self._seed = seed
        self._speed_perturbation = speed_perturbation
        self._epoch = (-1, np.zeros(0, np.int64))

    def batches(self, start: int, stop: int) -> Iterator[Tensor]:
        """Float32 `[per_rank, samples]` of the steps `start` to `stop` (exclusive)."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            ahead: list[list[Future[NDArray[np.float32]]]] = []
            for step in range(start, stop + READ_AHEAD):
                if step < stop:
                    ahead.append([pool.submit(self._segment, *plan) for plan in self._plan(step)])
                if step >= start + READ_AHEAD:
                    # A worker that waits for ever would never be started anew.
                    wait_s = 2 * READ_LIMIT_S
                    segments = [future.result(timeout=wait_s) for future in ahead.pop(0)]
                    yield torch.from_numpy(np.stack(segments))

    def _plan(self, step: int) -> list[tuple[int, int]]:
        """`(position in the run, recording)` of this rank's segments."""
        first = (step * self._world + self._rank) * self._per_rank
        planned = []
        for position in range(first, first + self._per_rank):
            epoch, at = divmod(position, len(self._paths))
            if self._epoch[0] != epoch:
                order = np.random.default_rng((self._seed, epoch)).permutation(len(self._paths))
                self._epoch = (epoch, order)
            planned.append((position, int(self._epoch[1][at])))
        return planned

    def _segment(self, position: int, recording: int) -> NDArray[np.float32]:
        draw = np.random.default_rng((self._seed, 1, position))
        sample_rate = self._sample_rate_of(position)
        for _ in range(ATTEMPTS):
            path = self._paths[recording]
            # Drawn whether or not the recording can be read, so that a repaired file does not
            # move the others.
            share = draw.random()
            recording = int(draw.integers(len(self._paths)))
            waveform = self.read(path, sample_rate)
            if waveform is None:
                continue
            start = int(share * max(0, len(waveform) - self._samples + 1))
            cut = waveform[start : start + self._samples]
            return np.pad(cut, (0, self._samples - len(cut)))
        path, reason = next(iter(self.unreadable.items()))
        raise ValueError(
            f"{ATTEMPTS} recordings in a row could not be read; {len(self.unreadable)} so far, "
            f"the first {path}: {reason}"
        )

    def _sample_rate_of(self, position: int) -> int:
        """The rate (Hz) to decode at, so that at the codec's rate the segment has its speed."""
        if not self._speed_perturbation:
            return self._sample_rate
        # Of its own, so that the segments are the same ones at any speed.
        draw = np.random.default_rng((self._seed, 2, position))
        limit = math.log1p(self._speed_perturbation)
        steps = round(SPEED_STEPS * math.exp(draw.uniform(-limit, limit)))
        return round(self._sample_rate * SPEED_STEPS / steps)

    def read(self, path: str, sample_rate: int | None = None) -> NDArray[np.float32] | None:
        """A whole recording `[n]` at `sample_rate` (Hz; default: the reader's), or None when it
        cannot be used: then `unreadable` says why."""
        rate = self._sample_rate if sample_rate is None else sample_rate
        if path in self.unreadable:
            return None
        if self._careful:
            with self._turn:
                return self._read_alone(path, rate)
        return self._read(path, rate)

    def _read_alone(self, path: str, sample_rate: int) -> NDArray[np.float32] | None:
        assert self._attempts is not None
        self._attempts.at(self._block, path)
        try:
            with self._attempts.limit(path, READ_LIMIT_S):
                return self._read(path, sample_rate)
        finally:
            self._attempts.at(self._block, None)

    def _read(self, path: str, sample_rate: int) -> NDArray[np.float32] | None:
        try:
            return decode_audio(files.read_bytes(path), sample_rate)
        except FileNotFoundError:
            self.unreadable[path] = "missing"
        except AudioError as error:
            self.unreadable[path] = error.reason
        except (OSError, ValueError) as error:  # a ValueError: no file can have such a name
            self.unreadable[path] = f"unreadable ({error})"
        return None


def sample_names(paths: list[str]) -> list[str]:
    """Names of these recordings' sample files: their stems, numbered where several are equal."""
    stems = [PurePosixPath(path).stem for path in paths]
    return [
        f"{stem}-{index}" if stem in stems[:index] + stems[index + 1 :] else stem
        for index, stem in enumerate(stems)
    ]
