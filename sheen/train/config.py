"""The train job's fields."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from sheen.codec.layout import Softmax
from sheen.config import JobConfig
from sheen.train.learner import Precision, Schedule, Strategy


class RunFields(JobConfig):
    """What every training job has: a run in a folder."""

    output: str
    run_name: Annotated[
        str, Field(description="a run of the same name in the same output resumes")
    ] = "run"
    keep_checkpoints: Annotated[int, Field(ge=1, description="most recent ones that stay")] = 2


class TrainConfig(RunFields):
    """Fine-tune a causal LM on codes: text in, speech tokens out."""

    data: Annotated[
        list[str],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(
            min_length=1,
            description="dataset folder of jobs/encode.py, or a .jsonl or .parquet file with text "
            "and snac_codes; path or URI. Several, of one codec, are one corpus: --data A --data B",
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
        Field(description="codec of a file of codes (a dataset folder names its own)"),
    ] = None
    dry_run: Annotated[
        bool,
        Field(
            description="check data and model, print an example, take two steps on the fullest "
            "rows to measure memory and time, leave nothing behind"
        ),
    ] = False
    num_workers: Annotated[
        int,
        Field(ge=1, description="training workers; a resumed run may have another number"),
    ] = 1
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
        int,
        Field(
            ge=16,
            description="tokens of a packed row; a worker computes one row at a time. At least "
            "--max-tokens",
        ),
    ] = 8192
    accumulation: Annotated[int, Field(ge=1, description="rows per worker and optimizer step")] = 1
    max_tokens: Annotated[
        int,
        Field(
            ge=16,
            description="longest sequence, tokens (24 kHz: 82 per second); longer utterances are "
            "left out and counted",
        ),
    ] = 2048
    softmax: Annotated[
        Softmax,
        Field(
            description="'masked': over the rows that may stand at a slot, faster, and every "
            "decoder must mask as Sheen's does; 'full': over the whole vocabulary, for "
            "engines that decode without a mask"
        ),
    ] = "masked"
    new_rows: Annotated[
        Literal["independent", "codebook"],
        Field(
            description="first values of the audio tokens' rows in a base that has none: alike "
            "where the codec's codes are alike, or drawn by themselves"
        ),
    ] = "codebook"
    strategy: Annotated[
        Strategy,
        Field(
            description="how workers share the model: 'ddp', each holds all of it; 'fsdp' (FSDP2), "
            "each holds a part, for a base too large for one device"
        ),
    ] = "ddp"
    precision: Annotated[
        Precision,
        Field(
            description="of the arithmetic; weights and optimizer are float32 always. 'auto': "
            "bfloat16 on a GPU, float32 elsewhere"
        ),
    ] = "auto"
    compile: Annotated[
        bool, Field(description="torch.compile the base's layers; needs a C++ compiler")
    ] = False
    lora_rank: Annotated[
        int,
        Field(
            ge=0,
            description="LoRA adapters of this rank on the body's linear layers instead of "
            "training them whole; 0 is off. Merged in every checkpoint",
        ),
    ] = 0
    lora_alpha: Annotated[int, Field(ge=1, description="adapters count alpha / rank times")] = 32
    schedule: Annotated[
        Schedule,
        Field(description="after warm-up: 'cosine', or 'wsd' (stable, then a linear decay)"),
    ] = "cosine"
    decay_share: Annotated[
        float, Field(gt=0.0, le=1.0, description="share of the steps in which 'wsd' decays")
    ] = 0.2
    learning_rate: Annotated[float, Field(gt=0.0, description="peak, after warm-up")] = 2e-4
    warmup_steps: Annotated[int, Field(ge=0, description="optimizer steps of warm-up")] = 100
    weight_decay: Annotated[float, Field(ge=0.0, description="of matrices, not norms")] = 0.01
    clip_norm: Annotated[float, Field(gt=0.0, description="largest gradient norm")] = 1.0
    eval_share: Annotated[
        float, Field(ge=0.0, lt=1.0, description="share of distinct texts held out")
    ] = 0.02
    eval_rows: Annotated[int, Field(ge=1, description="most utterances per evaluation")] = 256
    eval_every: Annotated[int, Field(ge=1, description="optimizer steps between evaluations")] = 200
    eval_prompts: Annotated[
        str | None,
        Field(
            description="prompts to speak at evaluations, in any form that jobs/evaluate.py takes, "
            "such as .jsonl with `text`, and `speaker` for a model of several voices; path or URI"
        ),
    ] = None
    speak_every: Annotated[
        int, Field(ge=1, description="optimizer steps between spoken evaluations")
    ] = 1000
    speak_seconds: Annotated[
        float, Field(gt=0.0, description="longest audio per prompt, seconds")
    ] = 15.0
    asr: Annotated[
        str | None,
        Field(
            description="transcribes the prompts' audio, for the word error rate: a name of "
            "faster-whisper's (base, small.en) or CTranslate2 folder, a transformers model's hub "
            "id or folder, or 'pocketsphinx'"
        ),
    ] = None
    asr_language: Annotated[
        str | None,
        Field(
            description="of faster-whisper's transcripts; en also compares English numbers, money, "
            "contractions and spellings as one; --no-asr-language guesses it for each clip"
        ),
    ] = "en"
    grammar: Annotated[str | None, Field(description="JSGF file: what pocketsphinx may hear")] = (
        None
    )
    best_metric: Annotated[
        Literal["eval_loss", "eval_wer"] | None,
        Field(
            description="the checkpoint with the lowest value of it is kept as best/ beside "
            "checkpoint/"
        ),
    ] = "eval_loss"
    trackers: Annotated[
        list[str],
        Field(description="tensorboard, wandb, mlflow, as many as wanted; [] for none"),
    ] = ["tensorboard"]  # noqa: RUF012 - pydantic copies defaults
    log_every: Annotated[int, Field(ge=1, description="optimizer steps between log lines")] = 10
    save_every: Annotated[int, Field(ge=1, description="optimizer steps between checkpoints")] = 200
    half: Annotated[
        bool, Field(description="write checkpoint/ and best/ in bfloat16, half the size")
    ] = False
    max_failures: Annotated[
        int, Field(ge=-1, description="restarts from the last checkpoint after a lost worker")
    ] = 3
    seed: Annotated[int, Field(ge=0, description="of split, order, new rows and dropout")] = 0


# What a resumed run may change: nothing here moves a weight by more than rounding does. Data, model
# and codec may lie elsewhere; what they hold is compared.
FREE_FIELDS = {
    "config",
    "data",
    "model",
    "codec",
    "output",
    "run_name",
    "dry_run",
    "num_workers",
    "gpu",
    "cpus_per_worker",
    "compile",
    "eval_rows",
    "eval_every",
    "eval_prompts",
    "speak_every",
    "speak_seconds",
    "asr",
    "asr_language",
    "grammar",
    "best_metric",
    "trackers",
    "half",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "max_failures",
}
