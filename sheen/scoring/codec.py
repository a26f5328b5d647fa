"""How good a codec is: recordings beside what the codec makes of them, measured.

Owns the comparison, by clip and by voice: words heard in both, mel distance, voice heard. Texts
and listeners are the caller's; what needs them is left out without them. A control decodes the
same codes in random order, so that a listener who would pass anything is found out. Running the
codec, its speeds and the use of its codes are `sheen.scoring.code_usage`'s; how all of it is shown,
`sheen.scoring.codec_report`'s.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sheen.audio.spectral import mel_distance
from sheen.codec.layout import Codes
from sheen.codec.snac import Codec
from sheen.scoring import code_usage
from sheen.scoring.asr import Transcriber
from sheen.scoring.speaker_id import ALL, VoiceProfiles
from sheen.scoring.wer import (
    ErrorDifference,
    ErrorRate,
    error_rate,
    normalise_words,
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
    """One recording and its reconstruction; texts heard are None without a listener or a text.

    `voice_heard` is None without profiles, "" where nothing like a voice is left.
    """

    name: str
    voice: str | None
    text: str | None
    seconds: float
    mel_distance_db: float
    heard_recording: str | None
    heard_reconstruction: str | None
    voice_heard: str | None


@dataclass(frozen=True)
class VoiceResult:
    """The clips of one voice, or of all; rates are shares, None where there was no text.

    `voice_right` is the share of right names, of the clips whose voice the profiles know.
    """

    clips: int
    seconds: float
    mel_distance_db: float
    recordings: ErrorRate | None
    reconstructions: ErrorRate | None
    difference: ErrorDifference | None
    shuffled: ErrorRate | None
    voice_right: float | None


@dataclass(frozen=True)
class CodecReport:
    """All of it. Speeds are audio seconds per second on `threads` CPU threads or on the device."""

    codec: str
    sample_rate: int
    listener: str | None
    seed: int
    threads: int
    encode_realtime: float
    decode_realtime: float
    voices: dict[str, VoiceResult]
    levels: list[code_usage.LevelUse]
    clips: list[ClipResult]


def measure_codec(
    codec: Codec,
    name: str,
    recordings: Sequence[Recording],
    *,
    listener: Transcriber | None = None,
    profiles: VoiceProfiles | None = None,
    seed: int = 0,
) -> tuple[CodecReport, list[Waveform]]:
    """Encode, decode and judge; also returns the reconstructions, in the recordings' order.

    The codec's noise is on, as when it speaks, drawn from `seed`. Raises ValueError for no
    recordings, or a voice named ALL.
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
    heard = _listen(codec, recordings, codes, decoded, listener, seed)
    voices_heard = _hear_voices(profiles, decoded, codec.sample_rate)
    clips = [
        ClipResult(
            name=item.name,
            voice=item.voice,
            text=item.text,
            seconds=round(len(item.waveform) / codec.sample_rate, 3),
            mel_distance_db=round(mel_distance(decoded[i], item.waveform, codec.sample_rate), 3),
            heard_recording=heard.recordings.get(i),
            heard_reconstruction=heard.reconstructions.get(i),
            voice_heard=voices_heard[i],
        )
        for i, item in enumerate(recordings)
    ]
    groups = {ALL: list(range(len(clips)))}
    for i, item in enumerate(recordings):
        if item.voice is not None:
            groups.setdefault(item.voice, []).append(i)
    known = profiles.voices if profiles is not None else ()
    logger.info("measuring speed and intervals")
    report = CodecReport(
        codec=name,
        sample_rate=codec.sample_rate,
        listener=listener.name if listener else None,
        seed=seed,
        threads=torch.get_num_threads(),
        encode_realtime=round(encode_realtime, 1),
        decode_realtime=round(code_usage.decode_speed(codec, codes, seed), 1),
        voices={
            voice: _voice_result(clips, members, heard, known, seed)
            for voice, members in groups.items()
        },
        levels=code_usage.code_usage(codes, codec.codebook_size),
        clips=clips,
    )
    return report, decoded


@dataclass(frozen=True)
class _Heard:
    """Texts by index of the clips that have one."""

    recordings: dict[int, str]
    reconstructions: dict[int, str]
    shuffled: dict[int, str]


def _listen(
    codec: Codec,
    recordings: Sequence[Recording],
    codes: Sequence[Codes],
    decoded: Sequence[Waveform],
    listener: Transcriber | None,
    seed: int,
) -> _Heard:
    spoken = [i for i, item in enumerate(recordings) if normalise_words(item.text or "")]
    if listener is None or not spoken:
        return _Heard({}, {}, {})

    def texts(name: str, waveforms: Sequence[Waveform]) -> dict[int, str]:
        logger.info("listening to %d %s", len(spoken), name)
        return dict(zip(spoken, listener.transcribe(waveforms, codec.sample_rate), strict=True))

    shuffled = [
        code_usage.decode_clip(
            codec, code_usage.shuffle_codes(codes[i], seed + i), len(decoded[i]), seed
        )
        for i in spoken
    ]
    return _Heard(
        texts("recordings", [recordings[i].waveform for i in spoken]),
        texts("reconstructions", [decoded[i] for i in spoken]),
        texts("shuffled codes", shuffled),
    )


def _hear_voices(
    profiles: VoiceProfiles | None, decoded: Sequence[Waveform], sample_rate: int
) -> list[str | None]:
    """The voice of each reconstruction; see `ClipResult`."""
    if profiles is None:
        return [None] * len(decoded)
    logger.info("naming voices")
    voices: list[str | None] = []
    for audio in decoded:
        try:
            voices.append(profiles.hear(audio, sample_rate).voice)
        except ValueError:  # silent or too short: a poor codec's result, not a caller's mistake
            voices.append("")
    return voices


def _voice_result(
    clips: Sequence[ClipResult],
    members: Sequence[int],
    heard: _Heard,
    known: Collection[str],
    seed: int,
) -> VoiceResult:
    spoken = [i for i in members if i in heard.recordings]
    references = [clips[i].text or "" for i in spoken]

    def rate(texts: Mapping[int, str]) -> ErrorRate | None:
        hypotheses = [texts[i] for i in spoken]
        return error_rate("word", references, hypotheses, seed=seed) if spoken else None

    named = [i for i in members if clips[i].voice in known]
    return VoiceResult(
        clips=len(members),
        seconds=round(sum(clips[i].seconds for i in members), 1),
        mel_distance_db=round(float(np.mean([clips[i].mel_distance_db for i in members])), 3),
        recordings=rate(heard.recordings),
        reconstructions=rate(heard.reconstructions),
        difference=word_error_difference(
            references,
            [heard.recordings[i] for i in spoken],
            [heard.reconstructions[i] for i in spoken],
            seed=seed,
        )
        if spoken
        else None,
        shuffled=rate(heard.shuffled),
        voice_right=float(np.mean([clips[i].voice_heard == clips[i].voice for i in named]))
        if named
        else None,
    )
