"""The fields of the job that trains a codec."""

from typing import Annotated

from pydantic import Field

from sheen.codec.info import DEFAULT_CODEC
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
        DEFAULT_CODEC
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
            "samples). From 1 s on, most latents have the same context as in a whole recording",
        ),
    ] = 1.0
    waveform_weight: Annotated[
        float, Field(ge=0.0, description="of the L1 distance of samples, which teaches pitch")
    ] = 1.0
    commitment_weight: Annotated[
        float, Field(ge=0.0, description="pulls the encoder to its codes")
    ] = 0.25
    asr_features: Annotated[
        str | None,
        Field(
            description="Whisper model whose frozen encoder compares decoded and original audio, "
            "for intelligibility: hub id, folder, or CTranslate2 folder. Evaluate the codec with "
            "another model"
        ),
    ] = None
    quantizer_dropout: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="share of segments decoded from their first levels alone, so that these "
            "carry more of the speech: a speech LM's errors in the last level then do less harm",
        ),
    ] = 0.0
    speed_perturbation: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="each training segment is played at a speed between 1 / (1 + this) and "
            "1 + this, which changes its pitch and timbre too, so that a codec trained on few "
            "voices carries others",
        ),
    ] = 0.0
    decoder_only: Annotated[
        bool,
        Field(
            description="encoder and codebooks of --codec are frozen, so that codes do not change: "
            "for a voice that the codec was not trained on"
        ),
    ] = False
    adversarial: Annotated[
        bool,
        Field(
            description="second stage of training: --decoder-only, and the decoder is trained with "
            "discriminators"
        ),
    ] = False
    eval_recordings: Annotated[
        int, Field(ge=0, description="recordings held out for evaluation and audio samples")
    ] = 16

    @property
    def codes_stay(self) -> bool:
        """Whether encoder and codebooks are frozen."""
        return self.decoder_only or self.adversarial


# Fields that a resumed run may change, as none affects the weights. Data and codec may be stored
# elsewhere; their content is compared.
CODEC_FREE_FIELDS = FREE_RUN_FIELDS | {"data", "codec"}
