"""The evaluate job's fields."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sheen.config import ASR_MODELS, AsrLanguageField, JobConfig, SpeakingFields
from sheen.engine.types import Sampling
from sheen.text.prompt import normalize

VoiceName = Annotated[str, AfterValidator(normalize)]
"""As a list of prompts has speakers."""


class EvaluateConfig(SpeakingFields, JobConfig):
    """Speak prompts with a checkpoint, transcribe the audio and score it."""

    model: Annotated[
        str, Field(description="checkpoint folder of `sheen train`, path or URI; or a hub id")
    ]
    prompts: Annotated[
        str,
        Field(
            description=".txt of one text per line, .jsonl or Parquet with text and optional id, "
            "speaker, instruction, or an LJSpeech folder; path or URI"
        ),
    ]
    voices: Annotated[
        list[VoiceName] | None,
        Field(
            description="speak only prompts of these voices, and prompts without a voice in each "
            "of them; default: all that the checkpoint has"
        ),
    ] = None
    untrained_voices: Annotated[
        list[VoiceName],
        Field(
            description="voices to synthesize although the checkpoint was not trained on them: the "
            "baseline before fine-tuning"
        ),
    ] = []  # noqa: RUF012 - pydantic copies defaults
    references: Annotated[
        str | None,
        Field(
            description="reference recordings of voices that the checkpoint does not have: "
            "LJSpeech folder or .jsonl manifest with text and speakers, of which the first row of "
            "each speaker is used, 1 to 30 s; path or URI"
        ),
    ] = None
    per_voice: Annotated[
        int | None,
        Field(ge=1, description="only N prompts of each voice, spread evenly over its list"),
    ] = None
    audio: Annotated[
        Literal["parquet", "files"],
        Field(
            description="where the audio goes, as FLAC: into the rows (a column `audio` of bytes "
            "and path), or into files VOICE/ID.flac under audio/"
        ),
    ] = "parquet"
    temperature: Annotated[
        float | None,
        Field(
            ge=0.0,
            le=5.0,
            description="0 is greedy; default: the checkpoint's, else "
            f"{Sampling.temperature}; the next fields have such defaults too",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        Field(ge=0, description=f"most likely tokens kept; 0 is off ({Sampling.top_k})"),
    ] = None
    top_p: Annotated[
        float | None,
        Field(gt=0.0, le=1.0, description=f"probability kept; 1 is off ({Sampling.top_p})"),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Field(
            ge=0.5,
            le=5.0,
            description="for ids among the last generated tokens; 1 is off "
            f"({Sampling.repetition_penalty})",
        ),
    ] = None
    repetition_window: Annotated[
        Annotated[int, Field(ge=1)] | Literal["all"] | None,
        Field(
            description="generated tokens that the penalty looks back at, or all "
            f"({Sampling.repetition_window})"
        ),
    ] = None
    seed: Annotated[
        int, Field(ge=0, description="of sampling, different for each prompt, and the intervals")
    ] = 0
    asr: Annotated[
        str | None,
        Field(
            description=f"ASR model for the word error rate: {ASR_MODELS}; --no-asr only "
            "synthesizes"
        ),
    ] = "base"
    asr_language: AsrLanguageField = "en"
    dnsmos: Annotated[
        bool,
        Field(description="score the sound with DNSMOS P.835, 1 to 5; needs package speechmos"),
    ] = False
    voice_recordings: Annotated[
        str | None,
        Field(
            description="recordings of the voices, for speaker accuracy and similarity: LJSpeech "
            "folder or .jsonl manifest with speakers, of which 20 per voice are used; path or URI; "
            "needs package resemblyzer"
        ),
    ] = None
