"""The codec job: recordings -> a folder that `snac.SNAC.from_pretrained` opens.

Owns what happens before and after the workers run: finding recordings and codec, refusing what
cannot work, resuming, and exporting the last average.
"""

import hashlib
import math
from typing import Any

import ray
import torch
from snac import SNAC

from sheen.audio import spectral
from sheen.codec import discriminators
from sheen.codec.asr_features import AsrFeatureLoss, open_asr_encoder, weights_sha256
from sheen.codec.info import CODEC_FOLDER
from sheen.codec.snac import open_codec
from sheen.codec.training import AVERAGE_DECAY
from sheen.runs import cluster
from sheen.runs.attempts import Attempts
from sheen.runs.output import RECORDINGS, output_lock
from sheen.storage import folders, uris
from sheen.train import checkpoints
from sheen.train.checkpoints import RunStore
from sheen.train.codec.config import CODEC_FREE_FIELDS, CodecTrainConfig
from sheen.train.codec.data import find_recordings
from sheen.train.codec.trainer import (
    ADVERSARIAL_WEIGHT,
    ASR_FEATURES_WEIGHT,
    RESTART_PATIENCE,
    STFT_WEIGHT,
    segment_samples,
    train_loop,
)
from sheen.train.launcher import fit
from sheen.train.learning.metrics_log import last_metrics
from sheen.train.tracking import check_trackers


def _content(model: SNAC) -> str:
    """A hash of the weights that training starts from."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy().data)
    return digest.hexdigest()


def run(config: CodecTrainConfig) -> dict[str, Any]:
    """Train; returns the last metrics. Raises ValueError for what the user must change."""
    output = cluster.output_folder("--output", config.output)
    if uris.contains(config.data, output):
        raise ValueError(
            f"--output {output} is inside --data {config.data}, where its audio samples would "
            "count as recordings when the run resumes; give another folder"
        )
    _check_stage(config)
    check_trackers(config.trackers)
    torch.manual_seed(config.seed)  # of random weights
    model, codec_config = open_codec(config.codec, config.from_scratch)
    _check_segments(config.segment_seconds, model)
    if config.codes_stay and config.half:
        _check_half(model, config.codec)
    recordings = find_recordings(uris.absolute(config.data), config.eval_recordings, config.seed)
    fields, asr_features = config.model_dump(), None
    # None as where there was no field.
    fields["quantizer_dropout"] = config.quantizer_dropout or None
    fields["speed_perturbation"] = config.speed_perturbation or None
    fields["adversarial"] = config.adversarial or None
    fields["decoder_only"] = config.decoder_only or None
    fields["compile"] = bool(config.compile)
    fields["num_workers"] = config.num_workers or 1
    # Other constants make another run, too.
    fields["stft_weight"] = STFT_WEIGHT
    fields["restart_patience"] = RESTART_PATIENCE
    fields["average_decay"] = AVERAGE_DECAY
    if config.adversarial:
        fields["adversarial_weight"] = ADVERSARIAL_WEIGHT
    if config.asr_features is not None:  # identified by its weights, wherever they are
        fields["asr_features_weight"] = ASR_FEATURES_WEIGHT
        asr_features, fields["asr_features"] = _open_asr_features(
            config.asr_features, model, config.segment_seconds
        )
    summary = recordings.summary
    print(
        f"{summary['train_recordings']} recordings to train on, {summary['eval_recordings']} held "
        f"out, dropped {summary['dropped'] or 'none'}; codec at {model.sampling_rate} Hz with "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters",
        flush=True,
    )
    content = {
        "data content": recordings.names_digest(),
        RECORDINGS: recordings.sample(),
        "codec content": _content(model),
    }
    with output_lock(output):
        checkpoints.check_run_fingerprint(output, fields, CODEC_FREE_FIELDS, content)
        cluster.connect()
        fit(
            train_loop,
            {
                "config": config.model_dump(),
                "recordings": recordings,
                "codec": ray.put((codec_config, model.state_dict())),
                "asr_features": None if asr_features is None else ray.put(asr_features),
                "output": output,
                "attempts": Attempts(),
            },
            config,
            output,
        )
        last = RunStore(output, config.keep_checkpoints).latest()
        assert last is not None, "a run that ended well has saved"
        folders.copy_folder(
            uris.join(last, checkpoints.MODEL_FOLDER), uris.join(output, CODEC_FOLDER)
        )
        return last_metrics(output)


OF_CODES = ("from_scratch", "quantizer_dropout", "commitment_weight")
"""Fields that act on encoder and codebooks alone."""


def _check_stage(config: CodecTrainConfig) -> None:
    """Refuse fields of another stage."""
    if not config.codes_stay:
        return
    changed = [
        f"--{name.replace('_', '-')}"
        for name in OF_CODES
        if getattr(config, name) != CodecTrainConfig.model_fields[name].default
    ]
    if changed:
        stage = "--adversarial" if config.adversarial else "--decoder-only"
        raise ValueError(
            f"{stage} does not go with {', '.join(changed)}: it leaves encoder and codebooks of "
            "--codec as they are; leave these flags out"
        )


def _check_segments(seconds: float, model: SNAC) -> None:
    """Refuse segments that are shorter than the losses need."""
    shortest = max(*spectral.WINDOWS, *discriminators.WINDOWS) // 2 + 1
    if (samples := segment_samples(seconds, model)) < shortest:
        raise ValueError(
            f"--segment-seconds {seconds:g}: segments of {samples} samples at "
            f"{model.sampling_rate} Hz; the losses need {shortest} or more: give at least "
            f"{math.ceil(1000 * shortest / model.sampling_rate) / 1000:g}"
        )


def _check_half(model: SNAC, codec: str) -> None:
    """Refuse to write in 16 bits what would then make other codes."""
    for part in (model.encoder, model.quantizer):
        for weight in part.state_dict().values():
            if not torch.equal(weight, weight.half().to(weight.dtype)):
                raise ValueError(
                    f"--half: the encoder of --codec {codec} is stored in 32 bits, and would make "
                    "other codes in 16; leave --half out, or train the first stage with it"
                )


def _open_asr_features(source: str, model: SNAC, seconds: float) -> tuple[AsrFeatureLoss, str]:
    """The loss that `--asr-features` names, for segments of this codec, and its weights' hash."""
    try:
        encoder = open_asr_encoder(source)
        loss = AsrFeatureLoss(encoder, int(model.sampling_rate))
    except ValueError as error:
        raise ValueError(f"--asr-features: {error}") from error
    if segment_samples(seconds, model) > loss.longest:
        raise ValueError(
            f"--segment-seconds {seconds:g}: the encoder of --asr-features {source} takes at most "
            f"{loss.longest / model.sampling_rate:g} s"
        )
    return loss, weights_sha256(encoder)
