"""TensorBoard, W&B and MLflow behind one interface: scalars, audio, image, sync, close.

Owns what each library is asked to do, where it keeps it, and how a resumed run goes on in what it
had. Each library is imported only when its tracker is opened, and raises as it likes: what an
exception means for the run is decided in `tracking`.

A run that starts at step 0 is a new one everywhere. A resumed one shows no step twice: TensorBoard
hides what the killed run wrote after its checkpoint; W&B and MLflow take no rows back, so there
those rows stay and the repeated ones are left out.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pyarrow import fs

from sheen.audio.io import to_pcm16, wav_header
from sheen.storage import uris

PROJECT = "sheen"
"""W&B's project and MLflow's experiment, unless the environment names another."""
KEY_TAG = "sheen.run"


@dataclass(frozen=True)
class Run:
    """What a tracker is opened with.

    folder: on this machine, for what a tracker writes: `output`, or when that is `remote` (a URI)
    a temporary one. key: the same for all starts of one run.
    """

    output: str
    name: str
    fields: dict[str, Any]
    first_step: int
    remote: bool
    folder: Path
    key: str


class TensorBoard:
    """Event files in `<output>/tensorboard/<run name>`.

    Written by torch's writer and not by tensorboardX, whose flush leaves out what is still queued,
    and whose queue would block the training for good when the disk is full.
    """

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = run.folder / "tensorboard" / run.name
        self._target = uris.join(run.output, "tensorboard", run.name) if run.remote else None
        # At step 0 too: a run that starts again does not show the one before it.
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
        _copy_into(self._folder, self._target)
        for part in self._folder.iterdir():
            part.unlink()

    def close(self) -> None:
        self.sync()
        self._writer.close()


class WandB:
    """A run on W&B, as the WANDB_* variables say; of an offline one, its folder to be sent."""

    def __init__(self, run: Run) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            # What is given here wins over the environment, so that is asked first.
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            id=os.environ.get("WANDB_RUN_ID", run.key),
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            config=run.fields,
            allow_val_change=True,  # a resumed run may have other values of some fields
            resume="allow",
            reinit="create_new",
        )
        self._copy_to = uris.join(run.output, "wandb") if run.remote else None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, dict(values))

    def audio(self, step: int, name: str, waveform: NDArray[np.float32], rate: int) -> None:
        self._log(step, {name: self._wandb.Audio(waveform, sample_rate=rate)})

    def image(self, step: int, name: str, png: bytes) -> None:
        self._log(step, {name: self._wandb.Image(Image.open(io.BytesIO(png)))})

    def _log(self, step: int, values: dict[str, Any]) -> None:
        # W&B would leave out earlier ones too, with a warning for each.
        if step >= self._run.starting_step:
            self._run.log(values, step=step)

    def sync(self) -> None:
        if self._copy_to is not None and self._run.offline:
            folder = Path(self._run.sync_dir)
            _copy_into(folder, uris.join(self._copy_to, folder.name))

    def close(self) -> None:
        self._run.finish()
        self.sync()


class MLflow:
    """A run on the server that MLFLOW_TRACKING_URI names; sounds and pictures are artifacts.

    Every call waits for the server, and an error shows at once. One that is gone costs the run,
    once, what MLFLOW_HTTP_REQUEST_MAX_RETRIES and MLFLOW_HTTP_REQUEST_TIMEOUT allow.
    """

    def __init__(self, run: Run) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        check_mlflow_uri()
        self._client, self._metric = MlflowClient(), Metric
        experiment = self._experiment()
        found = self._client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{run.key}'")
        # Of each metric, the last step that the run has from an earlier start.
        self._seen: dict[str, int] = {}
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            for name in found[0].data.metrics:
                history = self._client.get_metric_history(self._id, name)
                self._seen[name] = max(metric.step for metric in history)
        else:
            created = self._client.create_run(
                experiment, tags={KEY_TAG: run.key}, run_name=run.name
            )
            self._id = created.info.run_id
            # Not after a resume: MLflow refuses another value of a parameter.
            params = [Param(name, str(value)) for name, value in run.fields.items()]
            self._client.log_batch(self._id, params=params, synchronous=True)

    def _experiment(self) -> str:
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = round(time.time() * 1000)
        metrics = [
            self._metric(name, value, now, step)
            for name, value in values.items()
            if step > self._seen.get(name, -1)
        ]
        self._client.log_batch(self._id, metrics=metrics, synchronous=True)

    def audio(self, step: int, name: str, waveform: NDArray[np.float32], rate: int) -> None:
        wav = wav_header(rate, len(waveform)) + to_pcm16(waveform).tobytes()
        self._artifact(name, f"step-{step:06d}.wav", wav)

    def image(self, step: int, name: str, png: bytes) -> None:
        self._artifact(name, f"step-{step:06d}.png", png)

    def _artifact(self, folder: str, name: str, data: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="sheen-") as local:
            path = Path(local) / name
            path.write_bytes(data)
            self._client.log_artifact(self._id, str(path), folder)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        self._client.set_terminated(self._id)


Tracker = TensorBoard | WandB | MLflow
# A tracker is named as its module is.
BACKENDS: dict[str, Callable[[Run], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def check_mlflow_uri() -> None:
    """Raise ValueError where the environment names no server."""
    # MLflow would otherwise start a database in the working directory, which Ray deletes.
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ValueError(
            "--trackers mlflow: the environment variable MLFLOW_TRACKING_URI is not set; it is the "
            "address of the MLflow server"
        )


def _copy_into(folder: Path, target: str) -> None:
    """Copy a local folder's files, leaving what else `target` holds."""
    filesystem, path = uris.open_filesystem(target)
    filesystem.create_dir(path, recursive=True)
    local = fs.LocalFileSystem()
    fs.copy_files(str(folder), path, source_filesystem=local, destination_filesystem=filesystem)
