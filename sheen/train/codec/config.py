"""The codec job's fields."""

from typing import Annotated

from pydantic import Field

from sheen.train.config import RunFields


class CodecTrainConfig(RunFields):
    """Train or fine-tune a SNAC codec on recordings."""

    data: Annotated[
        str,
        Field(
            description="recordings: a folder of audio files (an LJSpeech folder too) or a .jsonl "
            "manifest; path or URI. Texts are not needed"
        ),
    ]
    output: Annotated[
        str,
        Field(
            description="folder for codec/, metrics.jsonl, samples and runs; absolute path or URI"
        ),
    ]
    codec: Annotated[str, Field(description="codec to continue from: hub id or folder")] = (
        "hubertsiuzdak/snac_24khz"
    )
    from_scratch: Annotated[
        bool,
        Field(
            description="random weights in the shape of --codec, which may then also be a .json "
            "file of SNAC's arguments"
        ),
    ] = False
    half: Annotated[bool, Field(description="write the codec in float16, half the size")] = False
    num_workers: Annotated[
        int,
        Field(
            ge=1,
            description="training workers (DDP). On one machine without a GPU, workers of one CPU "
            "each are faster than one worker of many",
        ),
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
    compile: Annotated[
        bool, Field(description="torch.compile the convolutions; needs a C++ compiler")
    ] = False
    max_steps: Annotated[int, Field(ge=1, description="optimizer steps")] = 10_000
    segments: Annotated[int, Field(ge=1, description="segments per step and worker")] = 8
    segment_seconds: Annotated[
        float,
        Field(
            gt=0.0,
            description="length of a segment, rounded up to the codec's block (24 kHz: 2,048 "
            "samples). From 1 s on, most latents see all they would see in a whole recording",
        ),
    ] = 1.0
    learning_rate: Annotated[float, Field(gt=0.0, description="peak, after warm-up")] = 2e-4
    codebook_rate: Annotated[
        float,
        Field(
            gt=0.0,
            description="learning rate of the codebooks, relative to the rest's. A code moves only "
            "when it is chosen, the encoder at every step; left behind, codes go out of use",
        ),
    ] = 10.0
    warmup_steps: Annotated[int, Field(ge=0, description="optimizer steps of warm-up")] = 100
    clip_norm: Annotated[float, Field(gt=0.0, description="largest gradient norm")] = 10.0
    mel_weight: Annotated[float, Field(ge=0.0, description="of the log-mel distance")] = 15.0
    stft_weight: Annotated[float, Field(ge=0.0, description="of the STFT distance")] = 1.0
    range_db: Annotated[
        float,
        Field(
            gt=0.0,
            description="both distances compare down to this many dB below the loudest point of a "
            "segment",
        ),
    ] = 60.0
    waveform_weight: Annotated[
        float, Field(ge=0.0, description="of the distance of samples, which teaches pitch")
    ] = 1.0
    commitment_weight: Annotated[
        float, Field(ge=0.0, description="pulls the encoder to its codes")
    ] = 0.25
    codebook_weight: Annotated[
        float, Field(ge=0.0, description="pulls the codes to the encoder")
    ] = 1.0
    asr_features: Annotated[
        str | None,
        Field(
            description="Whisper whose frozen encoder compares decoded and original audio: hub id, "
            "folder, or CTranslate2 folder. It keeps the words. Judge the codec by another model"
        ),
    ] = None
    asr_features_weight: Annotated[
        float, Field(ge=0.0, description="of the distance in that encoder's features")
    ] = 4.0
    restart_patience: Annotated[
        float,
        Field(
            gt=0.0,
            description="a code not chosen in this many times the codebook's size choices of its "
            "level is moved to where the encoder is",
        ),
    ] = 10.0
    average_decay: Annotated[
        float, Field(ge=0.0, lt=1.0, description="of the weights' average, per step; it is saved")
    ] = 0.999
    eval_recordings: Annotated[
        int, Field(ge=0, description="recordings held out for evaluation and audio samples")
    ] = 16
    sample_recordings: Annotated[
        int, Field(ge=0, description="held-out recordings written as WAV at each evaluation")
    ] = 4
    eval_every: Annotated[int, Field(ge=1, description="optimizer steps between evaluations")] = 500
    log_every: Annotated[int, Field(ge=1, description="optimizer steps between log lines")] = 20
    save_every: Annotated[int, Field(ge=1, description="optimizer steps between checkpoints")] = 500
    max_failures: Annotated[
        int, Field(ge=-1, description="restarts from the last checkpoint after a lost worker")
    ] = 3
    seed: Annotated[int, Field(ge=0, description="of weights, split, segments and noise")] = 0


# What a resumed run may change: nothing here moves a weight. Data and codec may lie elsewhere; what
# they hold is compared.
FREE_FIELDS = {
    "config",
    "data",
    "codec",
    "output",
    "run_name",
    "half",
    "gpu",
    "cpus_per_worker",
    "sample_recordings",
    "eval_every",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "max_failures",
}
