"""Experiment trackers: scalars, audio and images of a run in TensorBoard and W&B.

Owns the protocol of a tracker and its two implementations. A tracker never stops a run: its first
exception is logged with its traceback and disables it until the run is started again; missed
records are counted and reported at the end. `metrics.jsonl` is the complete record of a run. Only
problems found by `check_trackers`, before any worker starts, are errors. A library is imported when
its tracker is opened.

A run that starts at step 0 is a new run in every tracker, and a resumed one has no step twice:
TensorBoard hides the records after the checkpoint of the interrupted run; W&B cannot remove
records, so repeated ones are skipped.
"""

import atexit
import importlib.util
import io
import logging
import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pyarrow import fs

from sheen.storage import files, uris
from sheen.train.checkpoints import RUN

logger = logging.getLogger(__name__)

PROJECT = "sheen"
"""W&B's project, unless the environment names another."""
KEY_FILE = "tracking_key"


@dataclass(frozen=True)
class Run:
    """Arguments of a tracker.

    folder: local folder for a tracker's files; synced to `output` if that is a URI (`remote`). key:
    identifies the run in W&B, the same when it is resumed.
    """

    output: str
    fields: dict[str, Any]
    first_step: int
    remote: bool
    folder: Path
    key: str


class Tracker(Protocol):
    """`sync` makes all records so far readable in the run's output; `close` ends the run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def audio(self, step: int, name: str, waveform: NDArray[np.float32], rate: int) -> None: ...
    def image(self, step: int, name: str, png: bytes) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in `<output>/tensorboard`, by torch's writer.

    tensorboardX is not used: its flush omits queued records, and its queue blocks forever on a full
    disk.
    """

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = run.folder / "tensorboard"
        self._target = uris.join(run.output, "tensorboard") if run.remote else None
        purge = run.first_step + 1 if run.first_step else 0
        self._writer = SummaryWriter(str(self._folder), purge_step=purge)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def audio(self, step: int, name: str, waveform: NDArray[np.float32], rate: int) -> None:
        self._writer.add_audio(name, waveform, step, sample_rate=rate)

    def image(self, step: int, name: str, png: bytes) -> None:
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def sync(self) -> None:
        if self._target is None:
            self._writer.flush()
            return
        # A closed writer begins another file at its next event, so each is copied only once.
        self._writer.close()
        _add_files(self._folder, self._target)
        for part in self._folder.iterdir():
            part.unlink()

    def close(self) -> None:
        self.sync()
        self._writer.close()


class WandB:
    """A W&B run, configured by WANDB_* variables and by default named after the output; an offline
    run's folder is copied there."""

    def __init__(self, run: Run) -> None:
        import wandb

        self._wandb, env = wandb, os.environ.get
        self._run = wandb.init(  # arguments override the environment, which is thus read here
            project=env("WANDB_PROJECT", PROJECT),
            name=env("WANDB_NAME", uris.name(run.output)),
            id=env("WANDB_RUN_ID", run.key),
            dir=env("WANDB_DIR", str(run.folder)),
            config=run.fields,
            allow_val_change=True,  # a resumed run may have other values of some fields
            resume="allow",
            reinit="create_new",
        )
        self._copy_to = uris.join(run.output, "wandb") if run.remote else None

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        if step >= self._run.starting_step:  # W&B warns about each earlier one
            self._run.log(dict(values), step=step)

    def audio(self, step: int, name: str, waveform: NDArray[np.float32], rate: int) -> None:
        self.scalars(step, {name: self._wandb.Audio(waveform, sample_rate=rate)})

    def image(self, step: int, name: str, png: bytes) -> None:
        self.scalars(step, {name: self._wandb.Image(Image.open(io.BytesIO(png)))})

    def sync(self) -> None:
        if self._copy_to is not None and self._run.offline:
            folder = Path(self._run.sync_dir)
            _add_files(folder, uris.join(self._copy_to, folder.name))

    def close(self) -> None:
        self._run.finish()
        if self._run.offline:
            # `finish` does not wait for W&B's process to write the last records; this does.
            self._wandb.teardown()
        self.sync()


def _add_files(folder: Path, target: str) -> None:
    """Copy a local folder's files to `target`, keeping what else it holds."""
    filesystem, path = uris.open_filesystem(target)
    filesystem.create_dir(path, recursive=True)
    local = fs.LocalFileSystem()
    fs.copy_files(str(folder), path, source_filesystem=local, destination_filesystem=filesystem)


# By package name.
TRACKERS: dict[str, Callable[[Run], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


class Trackers:
    """The open trackers of a run. No method raises a tracker's exception.

    missed: number of records after the failure of each disabled tracker.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: Run,
        temporary: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        self.missed: Counter[str] = Counter()
        self._disabled: list[str] = []
        self._temporary = temporary
        self._open: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            with self._guard(name):
                self._open[name] = TRACKERS[name](run)

    def __bool__(self) -> bool:
        """Whether there are any trackers, disabled ones included."""
        return bool(self._open or self._disabled)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._record(lambda tracker: tracker.scalars(step, values))

    def audio(self, step: int, name: str, waveform: NDArray[np.float32], sample_rate: int) -> None:
        """A waveform `[n]`, clipped to -1..1, under `audio/<name>`; n may be 0."""
        # Some trackers need at least two samples.
        clip = np.clip(waveform, -1.0, 1.0) if len(waveform) > 1 else np.zeros(2, np.float32)
        self._record(lambda tracker: tracker.audio(step, f"audio/{name}", clip, sample_rate))

    def image(self, step: int, name: str, png: bytes) -> None:
        """A PNG file under `image/<name>`."""
        self._record(lambda tracker: tracker.image(step, f"image/{name}", png))

    def sync(self) -> None:
        """Sync the trackers for a checkpoint, see `Tracker`."""
        self._each(lambda tracker: tracker.sync())

    def close(self) -> None:
        """End the run and report what was missed. May be called again."""
        self._each(lambda tracker: tracker.close())
        self._open.clear()
        if self._temporary is not None:
            self._temporary.cleanup()
            atexit.unregister(self.close)
        for name in self._disabled:
            logger.warning("tracker %s was off and missed %d records", name, self.missed[name])
        self._disabled.clear()

    def _record(self, tell: Callable[[Tracker], None]) -> None:
        self.missed.update(self._disabled)
        self._each(tell)

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            with self._guard(name):
                tell(tracker)

    @contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception:  # no error of a tracker may stop the training
            self._open.pop(name, None)
            self._disabled.append(name)
            text = "tracker %s failed and is off; metrics.jsonl continues"
            logger.warning(text, name, exc_info=True)


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError for unknown names, and for missing packages."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"--trackers {name}: no such tracker (known: {', '.join(TRACKERS)})")
        spec = importlib.util.find_spec(name)
        # A folder of that name, such as W&B's output, is found too, but has no origin.
        if spec is None or spec.origin is None:
            raise ValueError(
                f"--trackers {name} needs the package {name}, which is not installed: "
                f"pip install {name}"
            )


def open_trackers(
    names: Sequence[str], output: str, fields: dict[str, Any], first_step: int
) -> Trackers:
    """Open the named trackers of a run; only on rank 0.

    output: absolute path or URI. fields: the run's configuration, as in JSON. first_step: optimizer
    steps done already, 0 for a run that starts.
    """
    remote = bool(names) and uris.is_uri(output)
    temporary = None
    if remote:  # deleted when the trackers are closed or the process ends
        temporary = tempfile.TemporaryDirectory(prefix="sheen-", ignore_cleanup_errors=True)
    folder = Path(output if temporary is None else temporary.name)
    key = _run_key(output, first_step) if "wandb" in names else ""
    run = Run(output, fields, first_step, remote, folder, key)
    trackers = Trackers(names, run, temporary)
    if temporary is not None:
        # For a process that ends without closing them: before the folder goes, into which
        # TensorBoard's thread would otherwise still write.
        atexit.register(trackers.close)
    return trackers


def _run_key(output: str, first_step: int) -> str:
    """A random key, drawn when a run starts and stored in its folder.

    A hash of the output would repeat when a run is started again in a deleted folder: W&B
    would keep the old run's records and drop the new ones, or reject the id of a deleted run.
    """
    location = uris.join(output, RUN, KEY_FILE)
    if first_step and files.exists(location):
        return files.read_bytes(location).decode()
    key = uuid.uuid4().hex
    files.write_bytes(location, key.encode())
    return key
