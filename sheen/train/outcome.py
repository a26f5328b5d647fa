"""What a run leaves behind: metrics, checkpoints, the best model, and how the prompts sounded.

Owns what goes into each and where; when is the loop's business, and which checkpoint counts the
store's.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sheen.core import checkpoint, files
from sheen.core.audio import encode_audio
from sheen.core.checkpoint import CheckpointInfo
from sheen.core.model import SpeechLM, save_model
from sheen.report.clips import Clip, clip_row, save_png
from sheen.train import state
from sheen.train.audition import Spoken
from sheen.train.config import TrainConfig
from sheen.train.learner import merge_adapters
from sheen.train.store import RunStore
from sheen.train.tracking import open_trackers

SAMPLES_FOLDER = "samples"


class Outcome:
    """One rank's hand in what is written: only the first writes."""

    def __init__(
        self,
        output: str,
        rows: list[dict[str, Any]],
        info: CheckpointInfo,
        tokenizer: Any,
        config: TrainConfig,
        store: RunStore,
        *,
        first_step: int,
        writes: bool,
    ) -> None:
        self.store = store
        self._output = output
        self._info, self._tokenizer, self._config = info, tokenizer, config
        self._writes = writes
        self.log = state.MetricsLog(output, rows, writes=writes)
        names = config.trackers if writes else []
        self._trackers = open_trackers(
            names, output, config.run_name, config.model_dump(mode="json"), first_step
        )
        metric = config.best_metric or ""
        self._best = min((row[metric] for row in rows if metric in row), default=float("inf"))

    def add(self, row: dict[str, Any]) -> None:
        self.log.add(row)
        numbers = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and name not in ("step", "steps")
        }
        self._trackers.scalars(row["step"], numbers)

    def improved(self, row: dict[str, Any]) -> bool:
        """Whether the row has the lowest value yet of the metric that chooses the best model."""
        value = row.get(self._config.best_metric or "")
        if value is None or not value < self._best:
            return False
        self._best = value
        return True

    def speak(self, step: int, spoken: Sequence[Spoken], sample_rate: int) -> None:
        """Write the prompts' audio as WAV, and give it to the trackers with its spectrogram."""
        for item in spoken:
            target = files.join(
                self._output, SAMPLES_FOLDER, f"step-{step:06d}", f"{item.name}.wav"
            )
            files.write_bytes(target, encode_audio(item.waveform, sample_rate, "WAV"))
            self._trackers.audio(step, item.name, item.waveform, sample_rate)
            if len(item.waveform):
                image = io.BytesIO()
                save_png(clip_row([Clip(item.prompt.text, item.waveform, sample_rate)]), image)
                self._trackers.image(step, item.name, image.getvalue())

    def keep_best(self, step: int, model: SpeechLM, weights: dict[str, Tensor]) -> None:
        """Make this the best model; the one before goes when this one is whole."""
        if self._writes:
            self.store.keep_best(step, lambda folder: self._write_model(folder, model, weights))

    def save(self, step: int, model: SpeechLM, weights: dict[str, Tensor], **parts: Any) -> None:
        """A checkpoint: the model as transformers opens it, and the state that goes on from it."""
        if not self._writes:
            return

        def write(folder: Path) -> None:
            self._write_model(folder / state.MODEL_FOLDER, model, weights)
            state.save(folder, **parts, rows=self.log.rows)

        self.log.sync()
        self._trackers.sync()
        self.store.save(step, write)

    def _write_model(self, folder: Path, model: SpeechLM, weights: dict[str, Tensor]) -> None:
        folder.mkdir(exist_ok=True)
        if self._config.lora_rank:
            weights = merge_adapters(model, weights)
        save_model(model, self._tokenizer, folder, weights)
        checkpoint.write_info(folder, self._info)

    def close(self) -> None:
        self._trackers.close()
