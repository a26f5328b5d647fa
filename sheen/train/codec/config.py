"""The fields of the job that trains a codec."""

from typing import Annotated

from pydantic import Field

from sheen.train.config import FREE_RUN_FIELDS, RunFields


class CodecTrainConfig(RunFields):
    """Train or fine-tune a SNAC codec on recordings."""

    data: Annotated[
        str,
        Field(
            description="recordings: a folder of audio files (an LJSpeech folder too) or a .jsonl "
            "manifest; path or URI. Texts are not needed"
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
    stft_weight: Annotated[float, Field(ge=0.0, description="of the STFT distance")] = 1.0
    waveform_weight: Annotated[
        float, Field(ge=0.0, description="of the distance of samples, which teaches pitch")
    ] = 1.0
    commitment_weight: Annotated[
        float, Field(ge=0.0, description="pulls the encoder to its codes")
    ] = 0.25
    asr_features: Annotated[
        str | None,
        Field(
            description="Whisper whose frozen encoder compares decoded and original audio: hub id, "
            "folder, or CTranslate2 folder. It keeps the words. Score the codec with another model"
        ),
    ] = None
    asr_features_weight: Annotated[
        float, Field(ge=0.0, description="of the distance in that encoder's features")
    ] = 4.0
    quantizer_dropout: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="share of segments decoded from their first levels alone, which then carry "
            "more: a speech LM's errors in the last level do less harm",
        ),
    ] = 0.0
    restart_patience: Annotated[
        float,
        Field(
            gt=0.0,
            description="a code not chosen in this many times the codebook's size choices of its "
            "level is moved to where the encoder is",
        ),
    ] = 10.0
    adversarial: Annotated[
        bool,
        Field(
            description="second stage of training: encoder and codebooks of --codec stay, and with "
            "them all codes, and the decoder alone learns, also from discriminators"
        ),
    ] = False
    adversarial_weight: Annotated[
        float,
        Field(
            ge=0.0,
            description="how strongly the decoder follows the discriminators' scores, and their "
            "features' distance: norm of the gradient at the audio, relative to the other losses'",
        ),
    ] = 1.0
    compile: Annotated[
        bool, Field(description="torch.compile the codec's convolutions; needs a C++ compiler")
    ] = False
    average_decay: Annotated[
        float, Field(ge=0.0, lt=1.0, description="of the weights' average, per step; it is saved")
    ] = 0.999
    eval_recordings: Annotated[
        int, Field(ge=0, description="recordings held out for evaluation and audio samples")
    ] = 16


# What a resumed run may change: nothing here moves a weight. Data and codec may be stored
# elsewhere; their content is compared.
CODEC_FREE_FIELDS = FREE_RUN_FIELDS | {"data", "codec"}
