"""The fields of the train jobs: those that both share, and those of a speech LM."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sheen.codec.layout import Softmax
from sheen.config import ASR_MODELS, AsrLanguageField, JobConfig, OneOrMore
from sheen.lm.precision import Precision
from sheen.text.kept import as_tag
from sheen.train.learning.settings import Schedule, Strategy


def check_interval(given: int | str | None) -> int | str | None:
    """Optimizer steps, or minutes as in 10min. Raises ValueError."""
    if isinstance(given, str) and given.isdecimal():
        given = int(given)
    if isinstance(given, int):
        valid = given >= 1
    else:
        valid = given is None or (minutes_of(given) or 0.0) > 0.0
    if not valid:
        raise ValueError("expected optimizer steps, such as 200, or minutes, such as 10min")
    return given


def minutes_of(interval: str) -> float | None:
    """Of an interval such as 10min; None for any other text."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?min", interval)
    return None if found is None else float(found[1])


class RunFields(JobConfig):
    """The fields of every training job."""

    cpus_per_worker: Annotated[
        float, Field(gt=0.0, description="CPUs, and torch threads, per worker")
    ] = 1.0
    learning_rate: Annotated[float, Field(gt=0.0, description="peak, after warm-up")] = 2e-4
    warmup_steps: Annotated[int, Field(ge=0, description="optimizer steps of warm-up")] = 100
    eval_every: Annotated[
        int | None,
        Field(
            ge=1,
            description="optimizer steps between evaluations; default: one with each checkpoint "
            "where these come by the clock, otherwise 200",
        ),
    ] = None
    save_every: Annotated[
        int | str | None,
        AfterValidator(check_interval),
        Field(
            description="optimizer steps between checkpoints, or minutes, such as 10min; default: "
            "200 on a CPU, 10min on a GPU"
        ),
    ] = None
    keep_checkpoints: Annotated[int, Field(ge=1, description="most recent ones that are kept")] = 2
    half: Annotated[bool, Field(description="write the result in 16 bits, half the size")] = False
    compile: Annotated[
        bool | None,
        Field(
            description="torch.compile the layers, which takes a minute at the start; needs a C "
            "compiler, on a CPU a C++ one, and Python's headers. Default: those of a speech LM on "
            "a GPU, if both are there"
        ),
    ] = None
    trackers: Annotated[
        list[str],
        Field(description="tensorboard, wandb, or both; [] for none"),
    ] = ["tensorboard"]  # noqa: RUF012 - pydantic copies defaults
    max_failures: Annotated[
        int, Field(ge=-1, description="restarts from the last checkpoint after a lost worker")
    ] = 3
    seed: Annotated[int, Field(ge=0, description="of everything random")] = 0


# Fields that a resumed run may change: none changes a weight by more than rounding.
FREE_RUN_FIELDS = {
    "config",
    "output",
    "gpu",
    "cpus_per_worker",
    "eval_every",
    "save_every",
    "keep_checkpoints",
    "half",
    "trackers",
    "max_failures",
}


class TrainConfig(RunFields):
    """Fine-tune a causal LM on codes: text in, speech tokens out."""

    data: Annotated[
        list[str],
        OneOrMore,
        Field(
            min_length=1,
            description="dataset folder of `sheen encode`, or a .jsonl or .parquet file with text "
            "and snac_codes; path or URI. May be repeated, with one codec: --data A --data B",
        ),
    ]
    model: Annotated[
        str, Field(description="base model, or a checkpoint to fine-tune: hub id, path or URI")
    ] = "Qwen/Qwen3-0.6B"
    codec: Annotated[
        str | None,
        Field(
            description="codec of the new checkpoint, for one with another decoder (`sheen "
            "train-codec --decoder-only`), and for a file of codes; default: the checkpoint's, or "
            "the dataset's"
        ),
    ] = None
    tags: Annotated[
        list[Annotated[str, AfterValidator(as_tag)]] | None,
        Field(
            description="tags such as <laugh> that become tokens of a new model: --tags "
            "laugh,sigh; default: the tags of the dataset"
        ),
    ] = None
    dry_run: Annotated[
        bool,
        Field(
            description="check data and model, print an example, and measure memory and time of "
            "two steps on the fullest rows; writes no files"
        ),
    ] = False
    epochs: Annotated[int, Field(ge=1, description="passes over the data")] = 1
    max_steps: Annotated[
        int | None, Field(ge=1, description="optimizer steps; replaces --epochs if given")
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
            description="prompt form of a checkpoint of the Orpheus family: orpheus, maya1, veena, "
            "svara or vyvo-qwen3; default: the form that its tokenizer shows, where it shows one"
        ),
    ] = None
    softmax: Annotated[
        Softmax | None,
        Field(
            description="'masked': over the tokens that are legal at a slot; faster, but a decoder "
            "must mask as Sheen's does. 'full': over the whole vocabulary, for engines that decode "
            "without a mask. Default: 'full' for the Orpheus family, else 'masked'"
        ),
    ] = None
    level_weights: Annotated[
        list[Annotated[float, Field(ge=0.0)]] | None,
        Field(
            description="weights of the codec's levels in the training loss, coarse first: 3,1,0.3 "
            "for a codec of three. Default: equal weights. Logged losses are unweighted"
        ),
    ] = None
    level_weights_steps: Annotated[
        int | None,
        Field(
            ge=1,
            description="optimizer steps with --level-weights; later steps have equal weights. "
            "Default: all steps",
        ),
    ] = None
    guided_attention: Annotated[
        float,
        Field(
            ge=0.0,
            description="weight of a loss term that guides two attention heads along the text: a "
            "model with random initial weights then learns sooner to use its text",
        ),
    ] = 0.0
    guided_attention_steps: Annotated[
        int | None,
        Field(
            ge=1,
            description="optimizer steps with --guided-attention. Default: all steps, although the "
            "term assumes a constant speech rate",
        ),
    ] = None
    history_noise: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="share of the input frames that are replaced by random codes, in a random "
            "half of the utterances; targets are unchanged",
        ),
    ] = 0.0
    reference_share: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="share of the utterances, drawn anew in each epoch, that follow another "
            "one of the same speaker, which carries no loss, and whose prompt has no speaker name: "
            "teaches the model to continue in the voice of a reference",
        ),
    ] = 0.0
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
            description="of the arithmetic; weights and optimizer state are always float32. "
            "'auto': bfloat16 on a GPU, float32 elsewhere"
        ),
    ] = "auto"
    lora_rank: Annotated[
        int,
        Field(
            ge=0,
            description="LoRA adapters of this rank on the body's linear layers instead of full "
            "training; 0 is off. The embedding tables are trained in full where tokens are added "
            "to a base, and of a checkpoint of `sheen export`. Merged in every checkpoint",
        ),
    ] = 0
    schedule: Annotated[
        Schedule,
        Field(description="after warm-up: 'cosine', or 'wsd' (stable, then a linear decay)"),
    ] = "cosine"
    eval_share: Annotated[
        float, Field(ge=0.0, lt=1.0, description="share of distinct texts held out")
    ] = 0.02
    eval_prompts: Annotated[
        str | None,
        Field(
            description="prompts to synthesize with each checkpoint as evaluation samples, in any "
            "form that `sheen evaluate` reads, such as .jsonl with `text`, and `speaker` for a "
            "model of several voices; path or URI"
        ),
    ] = None
    asr: Annotated[
        str | None,
        Field(description=f"ASR model for the word error rate of evaluation samples: {ASR_MODELS}"),
    ] = None
    asr_language: AsrLanguageField = "en"
    best_metric: Annotated[
        Literal["eval_loss", "eval_wer"] | None,
        Field(
            description="the checkpoint with the lowest value of this metric is kept as best/, "
            "next to checkpoint/"
        ),
    ] = "eval_loss"


# Fields that a resumed run may change: none changes a weight by more than rounding. Data, model and
# codec may be stored elsewhere; their content is compared.
FREE_FIELDS = FREE_RUN_FIELDS | {
    "data",
    "model",
    "codec",
    "dry_run",
    "num_workers",
    "compile",
    "eval_prompts",
    "asr",
    "asr_language",
    "best_metric",
}
