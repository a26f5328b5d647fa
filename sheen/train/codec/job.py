"""The codec job: recordings -> a folder that `snac.SNAC.from_pretrained` opens.

Owns what happens before and after the workers run: finding recordings and codec, refusing what
cannot work, resuming by run name, and exporting the last average.
"""

from typing import Any

import ray
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from sheen import cluster
from sheen.core import files
from sheen.core.codec import open_codec
from sheen.train import state
from sheen.train.codec.config import FREE_FIELDS, CodecTrainConfig
from sheen.train.codec.data import find_recordings
from sheen.train.codec.loop import CODEC_FOLDER, train_loop


def run(config: CodecTrainConfig) -> dict[str, Any]:
    """Train; returns the last metrics. Raises ValueError for what the user must change."""
    output = cluster.output_folder("--output", config.output)
    if files.contains(config.data, output):
        raise ValueError(
            f"--output {output} lies in --data {config.data}, where its audio samples would count "
            "as recordings when the run resumes; give another folder"
        )
    torch.manual_seed(config.seed)  # of random weights
    model, codec_config = open_codec(config.codec, config.from_scratch)
    recordings = find_recordings(files.absolute(config.data), config.eval_recordings, config.seed)
    summary = recordings.summary
    print(
        f"{summary['train_recordings']} recordings to train on, {summary['eval_recordings']} held "
        f"out, dropped {summary['dropped'] or 'none'}; codec at {model.sampling_rate} Hz with "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters",
        flush=True,
    )
    state.claim_run(output, config.run_name, config.model_dump(), FREE_FIELDS, ("data", "codec"))
    cluster.connect()
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "config": config.model_dump(),
            "recordings": recordings,
            "codec": ray.put((codec_config, model.state_dict())),
            "output": output,
        },
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=cluster.use_gpus(config.gpu),
            resources_per_worker={"CPU": config.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=config.run_name,
            storage_path=output,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
        ),
    )
    result = trainer.fit()
    assert result.checkpoint is not None, "a run that ended well has reported a checkpoint"
    files.copy_folder(
        f"{result.checkpoint.path}/{CODEC_FOLDER}",
        files.join(output, CODEC_FOLDER),
        source_filesystem=result.checkpoint.filesystem,
    )
    return state.last_metrics(output)
