"""The train job's fields."""

from typing import Annotated

from pydantic import Field

from sheen.config import JobConfig


class TrainConfig(JobConfig):
    """Fine-tune a causal LM on codes: text in, speech tokens out."""

    data: Annotated[
        str,
        Field(
            description="dataset folder of jobs/encode.py, or a .jsonl file with text and "
            "snac_codes; path or URI"
        ),
    ]
    output: Annotated[
        str,
        Field(description="folder for checkpoint/, metrics.jsonl and runs; absolute path or URI"),
    ]
    model: Annotated[
        str, Field(description="base model, or a checkpoint to fine-tune: hub id, path or URI")
    ] = "Qwen/Qwen3-0.6B"
    codec: Annotated[
        str | None,
        Field(description="codec of a .jsonl file of codes (a dataset folder names its own)"),
    ] = None
    run_name: Annotated[
        str, Field(description="a run of the same name in the same output resumes")
    ] = "run"
    num_workers: Annotated[int, Field(ge=1, description="training workers (DDP)")] = 1
    gpu: Annotated[
        bool | None,
        Field(
            description="one GPU per worker; default: when the cluster has one now. Give it where "
            "GPU nodes start on demand"
        ),
    ] = None
    cpus_per_worker: Annotated[
        float, Field(gt=0.0, description="CPUs, and torch threads, per worker")
    ] = 1.0
    epochs: Annotated[int, Field(ge=1, description="passes over the data")] = 1
    max_steps: Annotated[
        int | None, Field(ge=1, description="optimizer steps; given, it replaces epochs")
    ] = None
    batch_tokens: Annotated[
        int, Field(ge=1, description="tokens per batch and worker, padding included")
    ] = 8192
    accumulation: Annotated[int, Field(ge=1, description="batches per optimizer step")] = 1
    max_tokens: Annotated[
        int,
        Field(
            ge=16,
            description="longest sequence, tokens (24 kHz: 82 per second); longer utterances are "
            "left out and counted",
        ),
    ] = 2048
    learning_rate: Annotated[float, Field(gt=0.0, description="peak, after warm-up")] = 2e-4
    warmup_steps: Annotated[int, Field(ge=0, description="optimizer steps of warm-up")] = 100
    weight_decay: Annotated[float, Field(ge=0.0, description="of matrices, not norms")] = 0.01
    clip_norm: Annotated[float, Field(gt=0.0, description="largest gradient norm")] = 1.0
    eval_share: Annotated[
        float, Field(ge=0.0, lt=1.0, description="share of distinct texts held out")
    ] = 0.02
    eval_rows: Annotated[int, Field(ge=1, description="most utterances per evaluation")] = 256
    eval_every: Annotated[int, Field(ge=1, description="optimizer steps between evaluations")] = 200
    log_every: Annotated[int, Field(ge=1, description="optimizer steps between log lines")] = 10
    save_every: Annotated[int, Field(ge=1, description="optimizer steps between checkpoints")] = 200
    keep_checkpoints: Annotated[int, Field(ge=1, description="most recent ones that stay")] = 2
    max_failures: Annotated[
        int, Field(ge=-1, description="restarts from the last checkpoint after a lost worker")
    ] = 3
    seed: Annotated[int, Field(ge=0, description="of split, order, new rows and dropout")] = 0


# What a resumed run may change: nothing here moves a weight.
FREE_FIELDS = {
    "config",
    "output",
    "run_name",
    "gpu",
    "cpus_per_worker",
    "eval_rows",
    "eval_every",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "max_failures",
}
