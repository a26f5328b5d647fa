"""The fields of the train jobs: of every training, and of a speech LM's."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from sheen.codec.layout import Softmax
from sheen.config import JobConfig
from sheen.lm.precision import Precision
from sheen.text.kept import as_tag
from sheen.train.learning.settings import Schedule, Strategy


class RunFields(JobConfig):
    """The fields of every training job."""

    output: Annotated[
        str,
        Field(description="folder for the result, metrics.jsonl and runs; absolute path or URI"),
    ]
    run_name: Annotated[
        str, Field(description="a run of the same name in the same output resumes")
    ] = "run"
    num_workers: Annotated[int, Field(ge=1, description="training workers")] = 1
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
    learning_rate: Annotated[float, Field(gt=0.0, description="peak, after warm-up")] = 2e-4
    warmup_steps: Annotated[int, Field(ge=0, description="optimizer steps of warm-up")] = 100
    log_every: Annotated[int, Field(ge=1, description="optimizer steps between log lines")] = 10
    eval_every: Annotated[int, Field(ge=1, description="optimizer steps between evaluations")] = 200
    save_every: Annotated[
        int | None,
        Field(ge=1, description="optimizer steps between checkpoints; default on a CPU: 200"),
    ] = None
    save_minutes: Annotated[
        float | None,
        Field(
            gt=0.0,
            description="minutes between checkpoints, instead of --save-every; default on a GPU: "
            "10",
        ),
    ] = None
    keep_checkpoints: Annotated[int, Field(ge=1, description="most recent ones that stay")] = 2
    half: Annotated[bool, Field(description="write the result in 16 bits, half the size")] = False
    trackers: Annotated[
        list[str],
        Field(description="tensorboard, wandb, or both; [] for none"),
    ] = ["tensorboard"]  # noqa: RUF012 - pydantic copies defaults
    max_failures: Annotated[
        int, Field(ge=-1, description="restarts from the last checkpoint after a lost worker")
    ] = 3
    seed: Annotated[int, Field(ge=0, description="of everything random")] = 0


def check_saving(config: RunFields) -> None:
    """Raise ValueError where both intervals are given."""
    if config.save_every is not None and config.save_minutes is not None:
        raise ValueError(
            f"--save-every {config.save_every} and --save-minutes {config.save_minutes:g}: give "
            "one of them; --no-save-every leaves out the one of a file"
        )


# What a resumed run may change in every job: nothing here moves a weight by more than rounding.
FREE_RUN_FIELDS = {
    "config",
    "output",
    "run_name",
    "gpu",
    "cpus_per_worker",
    "log_every",
    "eval_every",
    "save_every",
    "save_minutes",
    "keep_checkpoints",
    "half",
    "trackers",
    "max_failures",
}


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
    model: Annotated[
        str, Field(description="base model, or a checkpoint to fine-tune: hub id, path or URI")
    ] = "Qwen/Qwen3-0.6B"
    codec: Annotated[
        str | None,
        Field(description="codec of a file of codes (a dataset folder names its own)"),
    ] = None
    tags: Annotated[
        list[Annotated[str, AfterValidator(as_tag)]] | None,
        Field(
            description="words such as <laugh> that a new model learns as tokens of their own, "
            "--tags laugh,sigh; default: those that the data was encoded with"
        ),
    ] = None
    dry_run: Annotated[
        bool,
        Field(
            description="check data and model, print an example, take two steps on the fullest "
            "rows to measure memory and time, leave nothing behind"
        ),
    ] = False
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
            "skipped and counted",
        ),
    ] = 2048
    form: Annotated[
        str | None,
        Field(
            description="of a checkpoint of the Orpheus family, its prompt form: orpheus, maya1, "
            "veena, svara or vyvo-qwen3; default: what its tokens say, where they do"
        ),
    ] = None
    softmax: Annotated[
        Softmax | None,
        Field(
            description="'masked': over the rows that may stand at a slot, faster, and every "
            "decoder must mask as Sheen's does; 'full': over the whole vocabulary, for engines "
            "that decode without a mask. Default: 'full' for the Orpheus family, else 'masked'"
        ),
    ] = None
    level_weights: Annotated[
        list[Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] | None,
        Field(
            description="weights of the codec's levels in the training loss, coarse first: 3,1,0.3 "
            "for a codec of three. Default: every target counts alike. Logged losses are unweighted"
        ),
    ] = None
    level_weights_steps: Annotated[
        int | None,
        Field(
            ge=1,
            description="optimizer steps with --level-weights; in those after them every target "
            "counts alike. Default: all steps have the weights",
        ),
    ] = None
    guided_attention: Annotated[
        float,
        Field(
            ge=0.0,
            allow_inf_nan=False,
            description="weight of a term by which two heads look along the text: a model that "
            "starts at random finds out sooner what its text is for",
        ),
    ] = 0.0
    guided_attention_steps: Annotated[
        int | None,
        Field(
            ge=1,
            description="optimizer steps with --guided-attention. Default: all, though speech does "
            "not go through its text as evenly as the term has it",
        ),
    ] = None
    history_noise: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="share of the frames of audio that training gives the model as random "
            "codes, in a random half of the utterances; what is to be predicted stays",
        ),
    ] = 0.0
    reference_share: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="share of the utterances, drawn anew in each epoch, that begin with "
            "another one of their speaker, which is not learned, and have no speaker's name: the "
            "model is taught to go on in the voice of a reference",
        ),
    ] = 0.0
    compile: Annotated[
        bool | None,
        Field(
            description="torch.compile the layers, which takes a minute at the start; needs a C "
            "compiler. Default: on a GPU, where there is one"
        ),
    ] = None
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
    lora_rank: Annotated[
        int,
        Field(
            ge=0,
            description="LoRA adapters of this rank on the body's linear layers instead of "
            "training them whole; 0 is off. The embedding tables learn whole, unless the model is "
            "of the Orpheus family, which has its tokens. Merged in every checkpoint",
        ),
    ] = 0
    schedule: Annotated[
        Schedule,
        Field(description="after warm-up: 'cosine', or 'wsd' (stable, then a linear decay)"),
    ] = "cosine"
    eval_share: Annotated[
        float, Field(ge=0.0, lt=1.0, description="share of distinct texts held out")
    ] = 0.02
    eval_rows: Annotated[int, Field(ge=1, description="most utterances per evaluation")] = 256
    eval_prompts: Annotated[
        str | None,
        Field(
            description="prompts to synthesize at evaluations, in any form that jobs/evaluate.py "
            "takes, such as .jsonl with `text`, and `speaker` for a model of several voices; "
            "path or URI"
        ),
    ] = None
    speak_every: Annotated[int, Field(ge=1, description="optimizer steps between these")] = 1000
    speak_seconds: Annotated[
        float, Field(gt=0.0, description="longest audio of a chunk of a prompt, seconds")
    ] = 15.0
    asr: Annotated[
        str | None,
        Field(
            description="transcribes the prompts' audio, for the word error rate: a name of "
            "faster-whisper's (base, small.en) or CTranslate2 folder, or a transformers model's "
            "hub id or folder"
        ),
    ] = None
    asr_language: Annotated[
        str | None,
        Field(
            description="of faster-whisper's transcripts; en also compares English numbers, money, "
            "contractions and spellings as one; --no-asr-language guesses it for each clip"
        ),
    ] = "en"
    best_metric: Annotated[
        Literal["eval_loss", "eval_wer"] | None,
        Field(
            description="the checkpoint with the lowest value of it is kept as best/, next "
            "to checkpoint/"
        ),
    ] = "eval_loss"


# What a resumed run may change: nothing here moves a weight by more than rounding does. Data, model
# and codec may be stored elsewhere; their content is compared.
FREE_FIELDS = FREE_RUN_FIELDS | {
    "data",
    "model",
    "codec",
    "dry_run",
    "num_workers",
    "compile",
    "eval_rows",
    "eval_prompts",
    "speak_every",
    "speak_seconds",
    "asr",
    "asr_language",
    "best_metric",
}
