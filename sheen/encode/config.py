"""The encode job's fields."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from sheen.config import JobConfig
from sheen.encode.filters import Limits


class EncodeConfig(JobConfig):
    """Encode recordings into SNAC codes: one Parquet dataset with a report of every row."""

    input: Annotated[
        list[str],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(
            min_length=1,
            description="LJSpeech folder (metadata.csv and wavs/); .jsonl manifest with audio, "
            "text and optional id, speaker, start, end (seconds); .parquet of the Hugging Face "
            "layout; .tar shards of WebDataset; .jsonl with text and snac_codes; or a folder of "
            "these. Path, URI or glob. Several are one corpus: --input A --input B",
        ),
    ]
    output: Annotated[
        str,
        Field(
            description="folder for the dataset; absolute path or URI. The same command resumes it"
        ),
    ]
    form: Annotated[
        Literal["ljspeech", "jsonl", "parquet", "webdataset", "codes"] | None,
        Field(description="the form of --input; default: recognized by its content"),
    ] = None
    codec: Annotated[
        str, Field(description="SNAC hub id, or folder with config.json and pytorch_model.bin")
    ] = "hubertsiuzdak/snac_24khz"
    limit: Annotated[
        int | None, Field(ge=1, description="encode only the first N rows of the input")
    ] = None
    speakers: Annotated[
        list[str] | None,
        Field(description="encode only the rows of these speakers; default: all rows"),
    ] = None
    overwrite: Annotated[
        bool, Field(description="start over: delete what an encode job left in the output folder")
    ] = False
    jsonl: Annotated[
        str | None, Field(description="also write lines of {text, snac_codes} to this file")
    ] = None
    min_seconds: Annotated[
        float, Field(ge=0.0, description="shorter recordings are rejected, seconds")
    ] = Limits.min_seconds
    max_seconds: Annotated[
        float | None, Field(gt=0.0, description="longer recordings are rejected, seconds")
    ] = Limits.max_seconds
    max_clipped: Annotated[
        float | None,
        Field(
            ge=0.0,
            le=1.0,
            description="largest share of full-scale samples; beyond it: rejected",
        ),
    ] = Limits.max_clipped
    min_text_rate: Annotated[
        float,
        Field(ge=0.0, description="fewest characters of text per second; below: rejected"),
    ] = Limits.min_text_rate
    max_text_rate: Annotated[
        float | None,
        Field(gt=0.0, description="most characters of text per second; above: rejected"),
    ] = Limits.max_text_rate
    language: Annotated[
        str | None,
        Field(
            description="write numbers, money, dates, times and abbreviations of this language out "
            'as they are spoken ("$5" as "five dollars"), e.g. en; the model then does so too. '
            "Default: texts are taken as they are"
        ),
    ] = None
    trim_db: Annotated[
        float | None,
        Field(lt=0.0, description="remove what is softer at both ends, dB of full scale, e.g. -50"),
    ] = None
    loudness_lufs: Annotated[
        float | None,
        Field(
            lt=0.0, description="normalize recordings to this loudness (BS.1770), LUFS, e.g. -23"
        ),
    ] = None
    shifts: Annotated[
        int,
        Field(
            ge=1,
            description="encode every recording this many times, each time moved by another part "
            "of a codec frame (24 kHz: 85 ms): other codes for the same speech, where there are "
            "few recordings",
        ),
    ] = 1
    batch_seconds: Annotated[
        float,
        Field(
            gt=0.0,
            description="audio of one batch on a GPU, padding included, seconds. On a CPU clips "
            "are encoded one by one: batches gain nothing there",
        ),
    ] = 120.0
    num_workers: Annotated[
        int | None,
        Field(
            ge=1,
            description="encoding workers; default one per GPU, or CPU, that the cluster has now",
        ),
    ] = None
    gpu: Annotated[
        bool | None,
        Field(
            description="one GPU per worker; default: when the cluster has one now. Give it where "
            "GPU nodes start on demand"
        ),
    ] = None

    @property
    def limits(self) -> Limits:
        return Limits(
            min_seconds=self.min_seconds,
            max_seconds=self.max_seconds,
            max_clipped=self.max_clipped,
            min_text_rate=self.min_text_rate,
            max_text_rate=self.max_text_rate,
        )
