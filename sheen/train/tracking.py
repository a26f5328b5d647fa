"""Where a run's scalars, sounds and pictures go besides `metrics.jsonl`.

Owns the trackers of rank 0: which are open, and what they are opened with. It is never the record
of a run: that is `metrics.jsonl`, which has all scalars whatever happens here. What is done with
each library is the business of `tracking_backends`.

A tracker never stops a run. The first exception out of one is logged as a warning with its
traceback and takes that tracker off until the run's next start; what it misses is counted and said
at the end. Only what `check_trackers` finds, before any worker starts, is an error.
"""

import importlib.util
import logging
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheen.storage import files, uris
from sheen.train.trackers import BACKENDS, Run, Tracker, check_mlflow_uri

logger = logging.getLogger(__name__)

TRACKERS = tuple(BACKENDS)
# The client of MLflow is a package of its own.
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}
KEY_FILE = "tracking_key"


class Trackers:
    """The open trackers of a run. No method raises what a tracker raised.

    missed: of each tracker that is off, how many records (a row of scalars, a sound, a picture)
    came after its failure.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: Run,
        temporary: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        self.missed: Counter[str] = Counter()
        self._off: list[str] = []
        self._temporary = temporary
        self._open: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            with self._guard(name):
                self._open[name] = BACKENDS[name](run)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._record(lambda tracker: tracker.scalars(step, values))

    def audio(self, step: int, name: str, waveform: NDArray[np.float32], sample_rate: int) -> None:
        """A sound `[n]`, clipped to -1..1, under `audio/<name>`; n may be 0. sample_rate: Hz."""
        # Not all take fewer samples than two; silence as short says that nothing was spoken.
        heard = np.clip(waveform, -1.0, 1.0) if len(waveform) > 1 else np.zeros(2, np.float32)
        self._record(lambda tracker: tracker.audio(step, f"audio/{name}", heard, sample_rate))

    def image(self, step: int, name: str, png: bytes) -> None:
        """A PNG file's bytes, under `image/<name>`: a sound's picture may have the sound's name."""
        self._record(lambda tracker: tracker.image(step, f"image/{name}", png))

    def sync(self) -> None:
        """Bring all so far to where it will be read; for a checkpoint."""
        self._each(lambda tracker: tracker.sync())

    def close(self) -> None:
        """Bring all there, end the runs, and say what was missed. May be called again."""
        self._each(lambda tracker: tracker.close())
        self._open.clear()
        if self._temporary is not None:
            self._temporary.cleanup()
        for name in self._off:
            logger.warning("tracker %s was off and missed %d records", name, self.missed[name])
        self._off.clear()

    def _record(self, tell: Callable[[Tracker], None]) -> None:
        self.missed.update(self._off)
        self._each(tell)

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            with self._guard(name):
                tell(tracker)

    @contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception:  # whatever it is, the training is worth more
            self._open.pop(name, None)
            self._off.append(name)
            logger.warning(
                "tracker %s failed and is off; metrics.jsonl goes on", name, exc_info=True
            )


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError for names that are none, and for what a tracker lacks on this machine."""
    _check_names(names)
    for name in names:
        spec = importlib.util.find_spec(name)
        # A folder of that name, such as the one W&B writes, is found too, but without an origin.
        if spec is None or spec.origin is None:
            raise ValueError(
                f"--trackers {name} needs the package {PACKAGES[name]}, which is not installed: "
                f"pip install {PACKAGES[name]}"
            )
    if "mlflow" in names:
        check_mlflow_uri()


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"--trackers {name}: no such tracker (known: {', '.join(TRACKERS)})")


def open_trackers(
    names: Sequence[str], output: str, run_name: str, fields: dict[str, Any], first_step: int
) -> Trackers:
    """Open the named trackers of a run; by rank 0 alone.

    output: absolute path or URI. fields: the run's configuration, as JSON has it. first_step:
    optimizer steps done already, 0 for a run that starts. Raises ValueError for unknown names.
    """
    _check_names(names)
    remote = bool(names) and uris.is_uri(output)
    temporary = None
    if remote:  # deleted when the trackers close, or with the process that never closed them
        temporary = tempfile.TemporaryDirectory(prefix="sheen-", ignore_cleanup_errors=True)
    folder = Path(output if temporary is None else temporary.name)
    key = _claim_key(output, run_name, first_step) if {"wandb", "mlflow"} & set(names) else ""
    return Trackers(
        names, Run(output, run_name, fields, first_step, remote, folder, key), temporary
    )


def _claim_key(output: str, run_name: str, first_step: int) -> str:
    """What W&B and MLflow know a run by: drawn when it starts, kept in the run's folder.

    Not a hash of output and name: with the folder deleted and the run started afresh, W&B would
    keep the old run's rows and drop the new ones, or refuse the id of a run deleted there.
    """
    location = uris.join(output, run_name, KEY_FILE)
    if first_step and files.exists(location):
        return files.read_bytes(location).decode()
    key = uuid.uuid4().hex
    files.write_bytes(location, key.encode())
    return key
