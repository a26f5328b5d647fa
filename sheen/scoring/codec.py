"""Quality of a codec: its reconstructions compared with the recordings.

Owns the comparison, by clip and by voice: WER of both, mel distance, speaker accuracy. Texts, ASR
and enrolled speakers are the caller's; figures that need a missing one are skipped. The control
decodes the same codes in random order: a low WER there means that the ASR accepts anything.
Running the codec, its speed and its code usage are `sheen.scoring.code_usage`'s; the page is
`sheen.scoring.reports`'s.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sheen.audio.spectral import mel_distance
from sheen.codec.layout import Codes
from sheen.codec.snac import Codec
from sheen.scoring import code_usage
from sheen.scoring.asr.transcribers import Transcriber
from sheen.scoring.packaged import UnscorableError
from sheen.scoring.speaker_id import ALL, SpeakerEncoder, SpeakerProfiles
from sheen.scoring.wer import (
    ErrorDifference,
    ErrorRate,
    error_rate,
    normalize_words,
    word_error_difference,
)

logger = logging.getLogger(__name__)

Waveform = NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """A recording at the codec's rate; `text` and `voice` where they are known."""

    name: str
    waveform: Waveform
    text: str | None = None
    voice: str | None = None


@dataclass(frozen=True)
class ClipResult:
    """One recording and its reconstruction; transcripts are None without ASR or a text.

    `identified_speaker` is None without profiles, "" for a clip without a voice.
    """

    name: str
    voice: str | None
    text: str | None
    seconds: float
    mel_distance_db: float
    recording_transcript: str | None
    reconstruction_transcript: str | None
    identified_speaker: str | None


@dataclass(frozen=True)
class CodecVoiceResult:
    """The clips of one voice, or of all; WER is None without ASR or texts.

    `speaker_accuracy` is over the clips whose voice is enrolled.
    """

    clips: int
    seconds: float
    mel_distance_db: float
    recordings_wer: ErrorRate | None
    reconstructions_wer: ErrorRate | None
    wer_difference: ErrorDifference | None
    shuffled_wer: ErrorRate | None
    speaker_accuracy: float | None


@dataclass(frozen=True)
class CodecReport:
    """All of it. Speeds are audio seconds per second on `threads` CPU threads or on the device."""

    codec: str
    sample_rate: int
    asr: str | None
    seed: int
    threads: int
    encode_realtime: float
    decode_realtime: float
    voices: dict[str, CodecVoiceResult]
    levels: list[code_usage.LevelUse]
    clips: list[ClipResult]


def measure_codec(
    codec: Codec,
    name: str,
    recordings: Sequence[Recording],
    *,
    asr: Transcriber | None = None,
    profiles: SpeakerProfiles | None = None,
    normalize: Callable[[str], str] = str,
    seed: int = 0,
) -> tuple[CodecReport, list[Waveform]]:
    """Encode, decode and score; also returns the reconstructions, in the recordings' order.

    The codec's noise is on, as in synthesis, drawn from `seed`. `normalize` is applied to texts and
    transcripts before WER. Raises ValueError for no recordings, or a voice named ALL.
    """
    if not recordings:
        raise ValueError("no recordings to measure the codec on")
    if any(item.voice == ALL for item in recordings):
        raise ValueError(f"a voice cannot be named {ALL!r}: reports call all voices together that")
    logger.info("encoding %d recordings", len(recordings))
    codes, encode_realtime = code_usage.encode_clips(codec, [item.waveform for item in recordings])
    logger.info("decoding")
    decoded = [
        code_usage.decode_clip(codec, clip, len(item.waveform), seed)
        for clip, item in zip(codes, recordings, strict=True)
    ]
    transcripts = _transcribe(codec, recordings, codes, decoded, asr, seed)
    identified = _identify_speakers(profiles, decoded, codec.sample_rate)
    clips = [
        ClipResult(
            name=item.name,
            voice=item.voice,
            text=item.text,
            seconds=round(len(item.waveform) / codec.sample_rate, 3),
            mel_distance_db=round(mel_distance(decoded[i], item.waveform, codec.sample_rate), 3),
            recording_transcript=transcripts.recordings.get(i),
            reconstruction_transcript=transcripts.reconstructions.get(i),
            identified_speaker=identified[i],
        )
        for i, item in enumerate(recordings)
    ]
    groups = {ALL: list(range(len(clips)))}
    for i, item in enumerate(recordings):
        if item.voice is not None:
            groups.setdefault(item.voice, []).append(i)
    enrolled = profiles.voices if profiles is not None else ()
    logger.info("measuring speed and intervals")
    report = CodecReport(
        codec=name,
        sample_rate=codec.sample_rate,
        asr=asr.name if asr else None,
        seed=seed,
        threads=torch.get_num_threads(),
        encode_realtime=round(encode_realtime, 1),
        decode_realtime=round(code_usage.decode_speed(codec, codes, seed), 1),
        voices={
            voice: _voice_result(clips, members, transcripts, enrolled, normalize, seed)
            for voice, members in groups.items()
        },
        levels=code_usage.code_usage(codes, codec.codebook_size),
        clips=clips,
    )
    return report, decoded


@dataclass(frozen=True)
class _Transcripts:
    """Texts by index of the clips that have one."""

    recordings: dict[int, str]
    reconstructions: dict[int, str]
    shuffled: dict[int, str]


def _transcribe(
    codec: Codec,
    recordings: Sequence[Recording],
    codes: Sequence[Codes],
    decoded: Sequence[Waveform],
    asr: Transcriber | None,
    seed: int,
) -> _Transcripts:
    spoken = [i for i, item in enumerate(recordings) if normalize_words(item.text or "")]
    if asr is None or not spoken:
        return _Transcripts({}, {}, {})

    def texts(name: str, waveforms: Sequence[Waveform]) -> dict[int, str]:
        logger.info("transcribing %d %s", len(spoken), name)
        return dict(zip(spoken, asr.transcribe(waveforms, codec.sample_rate), strict=True))

    shuffled = [
        code_usage.decode_clip(
            codec, code_usage.shuffle_codes(codes[i], seed + i), len(decoded[i]), seed
        )
        for i in spoken
    ]
    return _Transcripts(
        texts("recordings", [recordings[i].waveform for i in spoken]),
        texts("reconstructions", [decoded[i] for i in spoken]),
        texts("shuffled codes", shuffled),
    )


def _identify_speakers(
    profiles: SpeakerProfiles | None, decoded: Sequence[Waveform], sample_rate: int
) -> list[str | None]:
    """The speaker of each reconstruction; see `ClipResult`."""
    if profiles is None:
        return [None] * len(decoded)
    logger.info("identifying speakers")
    encoder = SpeakerEncoder()
    voices: list[str | None] = []
    for audio in decoded:
        try:
            voices.append(profiles.identify(encoder.embed(audio, sample_rate)))
        except UnscorableError:  # a poor codec's result, not a caller's mistake
            voices.append("")
    return voices


def _voice_result(
    clips: Sequence[ClipResult],
    members: Sequence[int],
    transcripts: _Transcripts,
    enrolled: Collection[str],
    normalize: Callable[[str], str],
    seed: int,
) -> CodecVoiceResult:
    spoken = [i for i in members if i in transcripts.recordings]
    references = [normalize(clips[i].text or "") for i in spoken]

    def of_clips(texts: Mapping[int, str]) -> list[str]:
        return [normalize(texts[i]) for i in spoken]

    def rate(texts: Mapping[int, str]) -> ErrorRate | None:
        return error_rate("word", references, of_clips(texts), seed=seed) if spoken else None

    named = [i for i in members if clips[i].voice in enrolled]
    return CodecVoiceResult(
        clips=len(members),
        seconds=round(sum(clips[i].seconds for i in members), 1),
        mel_distance_db=round(float(np.mean([clips[i].mel_distance_db for i in members])), 3),
        recordings_wer=rate(transcripts.recordings),
        reconstructions_wer=rate(transcripts.reconstructions),
        wer_difference=word_error_difference(
            references,
            of_clips(transcripts.recordings),
            of_clips(transcripts.reconstructions),
            seed=seed,
        )
        if spoken
        else None,
        shuffled_wer=rate(transcripts.shuffled),
        speaker_accuracy=float(
            np.mean([clips[i].identified_speaker == clips[i].voice for i in named])
        )
        if named
        else None,
    )
