"""A published speaker-verification model as the judge of voices.

Owns loading one by id and turning clips into its embeddings. The models (x-vectors on WavLM or
wav2vec 2.0) are trained on thousands of speakers, so two clips compare by their cosine alone, of
speakers that no profile knows too. What needs no download is in `sheen.judge.timbre`.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

from sheen.judge.timbre import Metric, prepare

# Parts of an x-vector model that only its training used.
_UNUSED = ("classifier.", "objective.")


class SpeakerEmbedding:
    """A judge by a transformers x-vector model, such as `microsoft/wavlm-base-plus-sv`.

    `model` is a hub id or a folder with the model and its feature extractor. Clips are embedded
    one at a time, so no padding enters. ValueError when it cannot be loaded, or when its speaker
    head is missing: transformers would fill it with random numbers.
    """

    metric: Metric = "cosine"

    def __init__(self, model: str, device: str = "cpu") -> None:
        folder = Path(model).expanduser()
        if model.startswith(("/", ".", "~")) and not folder.is_dir():
            raise ValueError(f"speaker model {model!r}: no such folder")
        source = str(folder) if folder.is_dir() else model
        try:
            self._extractor = AutoFeatureExtractor.from_pretrained(source)
            loaded, report = AutoModelForAudioXVector.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"speaker model {model!r}: neither a folder of an x-vector model nor one that the "
                f"hub gave ({error})"
            ) from error
        missing = sorted(key for key in report["missing_keys"] if not key.startswith(_UNUSED))
        if missing:
            raise ValueError(
                f"speaker model {model!r}: no x-vector model, its weights lack {missing[0]} and "
                f"{len(missing) - 1} more"
            )
        self._model = loaded.eval().requires_grad_(False).to(device)
        self._device = torch.device(device)
        # By its weights: a path of one machine means nothing on the next.
        digest = hashlib.sha256()
        for key, tensor in sorted(loaded.state_dict().items()):
            if not key.startswith(_UNUSED):
                digest.update(key.encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        self.model = model
        self.name = f"x-vector {type(loaded).__name__} {digest.hexdigest()[:16]}"

    @torch.inference_mode()
    def embed(self, waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        """The embedding `[D]` of a clip `[n]`, of length 1; see VoiceJudge."""
        rate = int(self._extractor.sampling_rate)
        clip = prepare(waveform, sample_rate, rate)
        inputs = self._extractor(clip, sampling_rate=rate, return_tensors="pt")
        # Without a mask: one clip has no padding, and some models were trained without one.
        point = self._model(inputs["input_values"].to(self._device)).embeddings[0].float().cpu()
        return torch.nn.functional.normalize(point, dim=0).numpy()


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Similarity of two embeddings `[D]`, from -1 to 1."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
