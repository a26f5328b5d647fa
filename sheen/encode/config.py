"""The encode job's fields."""

from typing import Annotated

from pydantic import Field

from sheen.config import JobConfig


class EncodeConfig(JobConfig):
    """Encode recordings into SNAC codes: one Parquet dataset with a report of every row."""

    input: Annotated[
        str,
        Field(
            description="LJSpeech folder (metadata.csv and wavs/) or a .jsonl manifest with "
            "audio, text and optional id, speaker; path or URI"
        ),
    ]
    output: Annotated[str, Field(description="folder for the dataset; absolute path or URI")]
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
    overwrite: Annotated[bool, Field(description="replace what the output folder holds")] = False
    jsonl: Annotated[
        str | None, Field(description="also write lines of {text, snac_codes} to this file")
    ] = None
    min_seconds: Annotated[
        float, Field(ge=0.0, description="shorter recordings are rejected, seconds")
    ] = 0.2
    shifts: Annotated[
        int,
        Field(
            ge=1,
            description="encode every recording this many times, each time moved by another part "
            "of a codec frame (24 kHz: 85 ms): other codes for the same speech, where there are "
            "few recordings",
        ),
    ] = 1
    batch_size: Annotated[int, Field(ge=1, description="recordings per encoding batch")] = 16
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
    cpus_per_worker: Annotated[
        float,
        Field(
            gt=0.0,
            description="CPUs reserved per encoding worker; below 1, so that reading and decoding "
            "always find a free share",
        ),
    ] = 0.5
