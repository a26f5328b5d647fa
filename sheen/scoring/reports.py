"""The quality of speech, or of a codec, as JSON and as a page: tables by voice, clips to play.

Owns how a `SpeechReport` and a `CodecReport` are shown, the worst clips first. Measures nothing.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sheen.report.figures import histogram
from sheen.report.page import (
    Block,
    Cell,
    Clip,
    ClipRow,
    Section,
    clip_row,
    render_page,
    table,
    write_page,
)
from sheen.scoring.codec import CodecReport, Recording, Waveform
from sheen.scoring.speaker_id import ALL
from sheen.scoring.speech import Mean, Share, SpeechReport, SpokenClip, VoiceResult
from sheen.scoring.wer import ErrorDifference, ErrorRate, error_rate


def speech_json(report: SpeechReport, about: dict[str, Any]) -> str:
    """`about` and the results by voice; those of each clip are in the caller's rows."""
    results = {voice: asdict(result) for voice, result in report.voices.items()}
    content = about | {"asr": report.asr, "seed": report.seed, "voices": results}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def speech_rows(report: SpeechReport) -> tuple[list[str], list[list[str]]]:
    """The table by voice, header and rows, as the page and the console show it."""
    columns: dict[str, Callable[[VoiceResult], ErrorRate | Share | Mean | None]] = {
        "WER": lambda result: result.wer,
        "CER": lambda result: result.cer,
        "DNSMOS OVRL": lambda result: result.dnsmos_ovrl,
        "DNSMOS SIG": lambda result: result.dnsmos_sig,
        "DNSMOS BAK": lambda result: result.dnsmos_bak,
        "speaker accuracy": lambda result: result.speaker_accuracy,
        "speaker similarity": lambda result: result.speaker_similarity,
        "too short to score": lambda result: result.unscored,
        "ended with EOS": lambda result: result.ended_with_eos,
        "duration / expected": lambda result: result.duration,
        "characters per second": lambda result: result.characters_per_second,
        "silence at the ends": lambda result: result.silence,
        "longest pause, s": lambda result: result.pause,
        "clipped": lambda result: result.clipped,
    }
    of_all = report.voices[ALL]
    shown = {name: part for name, part in columns.items() if part(of_all) is not None}
    shares = {"silence at the ends"}
    rows = []
    for voice, result in report.voices.items():
        cells = [_cell(part(result), name in shares) for name, part in shown.items()]
        rows.append([voice, str(result.clips), *cells])
    return ["voice", "clips", *shown], rows


def worst_first(report: SpeechReport) -> list[int]:
    """Clips by how bad they are: WER, then those without EOS, then odd lengths."""

    def badness(index: int) -> tuple[float, bool, float]:
        clip = report.clips[index]
        errors = report.clip_wer[index] or 0.0
        ratio = 1.0 if clip.duration is None else clip.duration
        return errors, not clip.ended_with_eos, max(ratio, 1 / ratio if ratio else float("inf"))

    return sorted(range(len(report.clips)), key=badness, reverse=True)


def render_speech_report(
    report: SpeechReport, lead: str, worst: Sequence[tuple[SpokenClip, Waveform]], sample_rate: int
) -> str:
    """The page; `worst` are the clips to play, in order, with their waveforms `[n]`."""
    header, rows = speech_rows(report)
    asr = f"ASR: {report.asr}. " if report.asr else "No ASR. "
    blocks: list[Block] = [
        table(header, rows),
        f"{asr}In brackets 95% intervals over clips: bootstrap, for shares Wilson's. Seed "
        f"{report.seed}.",
    ]
    if report.voices[ALL].speaker_similarity is not None:
        blocks.append(
            "Speaker similarity is 1 for the voice's own recordings, and 0 for those of the other "
            "voice that comes nearest."
        )
    ratios = [ratio for clip in report.clips if (ratio := clip.duration) is not None]
    if ratios:
        blocks.append(histogram("Duration over the duration expected of the text", ratios, "times"))
    blocks.append(
        histogram("Duration of the clips", [clip.sound.seconds for clip in report.clips], "s")
    )
    players = [
        clip_row([Clip(clip.voice or "the voice", audio, sample_rate, _caption(clip))], clip.text)
        for clip, audio in worst
    ]
    sections = [Section("By voice", blocks), Section("Worst first", players)]
    return render_page("Speech report", sections, lead)


def _caption(clip: SpokenClip) -> str:
    parts = [f"{clip.id}: {clip.sound.seconds:.2f} s"]
    if clip.expected_seconds is not None:
        parts.append(f"{clip.expected_seconds:.2f} s expected")
    if not clip.ended_with_eos:
        parts.append("cut off at its token limit")
    if clip.transcript is not None:
        parts.append(f"transcript: {clip.transcript or 'nothing'}")
    if clip.dnsmos is not None:
        parts.append(f"DNSMOS OVRL {clip.dnsmos.ovrl:.2f}")
    if clip.identified_speaker is not None:
        parts.append(f"speaker: {clip.identified_speaker or 'none'}")
    if clip.speaker_similarity is not None:
        parts.append(f"similarity {clip.speaker_similarity:.2f}")
    return ", ".join(parts)


def _cell(value: ErrorRate | Share | Mean | None, percent: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, Mean):
        form = "{:.1%}" if percent else "{:.2f}"
        return f"{form} [{form}, {form}]".format(value.value, value.low, value.high)
    return f"{value.rate:.1%} [{value.low:.1%}, {value.high:.1%}]"


CODEC_JSON, CODEC_PAGE = "codec_report.json", "codec_report.html"


def write_codec_report(
    folder: Path,
    report: CodecReport,
    recordings: Sequence[Recording],
    decoded: Sequence[Waveform],
    clips_per_voice: int = 2,
    normalize: Callable[[str], str] = str,
) -> None:
    """Write CODEC_JSON and CODEC_PAGE into `folder`; the page plays each voice's worst clips, by
    WER of what `normalize` makes of text and transcript."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CODEC_JSON).write_text(json.dumps(asdict(report), indent=2) + "\n", "utf-8")
    write_page(
        folder / CODEC_PAGE,
        "Codec report",
        [
            Section("By voice", _voice_blocks(report)),
            Section("Use of the codes", _level_blocks(report)),
            Section(
                "Worst clips of each voice",
                _clip_blocks(report, recordings, decoded, clips_per_voice, normalize),
            ),
        ],
        lead=(
            f"{report.codec}, {report.sample_rate} Hz, on {len(report.clips)} recordings "
            f"({report.voices[ALL].seconds:.0f} s). ASR: {report.asr or 'none'}. Seed "
            f"{report.seed}."
        ),
    )


def codec_rows(report: CodecReport) -> tuple[list[str], list[list[str]]]:
    """The table by voice, header and rows, as the page and the console show it."""
    columns: dict[str, str] = {}
    if report.voices[ALL].recordings_wer is not None:
        columns |= {
            "recordings_wer": "WER, recordings",
            "reconstructions_wer": "WER, reconstructions",
            "wer_difference": "WER, difference",
            "shuffled_wer": "WER, shuffled codes",
        }
    if report.voices[ALL].speaker_accuracy is not None:
        columns["speaker_accuracy"] = "speaker accuracy"
    rows = []
    for voice in [*(name for name in report.voices if name != ALL), ALL]:
        result = report.voices[voice]
        row = [voice, str(result.clips), f"{result.mel_distance_db:.2f} dB"]
        rows.append(row + [_share(getattr(result, field)) for field in columns])
    return ["voice", "clips", "mel distance", *columns.values()], rows


def _share(value: ErrorRate | ErrorDifference | float | None) -> str:
    """A share in per cent with its interval."""
    if value is None:
        return ""
    if isinstance(value, ErrorRate):
        return f"{value.rate:.1%} [{value.low:.1%}, {value.high:.1%}]"
    if isinstance(value, ErrorDifference):
        return f"{value.difference:+.1%} [{value.low:+.1%}, {value.high:+.1%}]"
    return f"{value:.1%}"


def _voice_blocks(report: CodecReport) -> list[Block]:
    header, rows = codec_rows(report)
    blocks: list[Block] = [table(header, rows)]
    if report.voices[ALL].recordings_wer is not None:
        blocks.append(
            "Rates are word error rates with 95% bootstrap intervals over clips; the difference "
            "is paired, clip by clip. Shuffled codes are the control: the same codes in random "
            "order, which must be unintelligible to ASR."
        )
    blocks.append(
        f"On {report.threads} CPU threads or the device given: encoded at "
        f"{report.encode_realtime} times realtime, decoded at {report.decode_realtime} times."
    )
    blocks.append(
        histogram(
            "Mel distance of the clips", [clip.mel_distance_db for clip in report.clips], "dB"
        )
    )
    return blocks


def _level_blocks(report: CodecReport) -> list[Block]:
    rows: list[list[Cell]] = [
        [str(i), level.codes, level.used, level.size, level.perplexity]
        for i, level in enumerate(report.levels)
    ]
    return [
        table(["level", "codes in the clips", "different ones", "codebook", "perplexity"], rows),
        "Perplexity is how many codes the level would have if all were used alike. With fewer "
        "codes in the clips than in the codebook neither number can reach its size.",
    ]


def _clip_blocks(
    report: CodecReport,
    recordings: Sequence[Recording],
    decoded: Sequence[Waveform],
    per_voice: int,
    normalize: Callable[[str], str],
) -> list[Block]:
    def badness(i: int) -> tuple[float, float]:
        clip = report.clips[i]
        if clip.text is None or clip.reconstruction_transcript is None:
            return 0.0, clip.mel_distance_db
        pair = normalize(clip.text), normalize(clip.reconstruction_transcript)
        errors = error_rate("word", [pair[0]], [pair[1]], resamples=1)
        return errors.rate, clip.mel_distance_db

    blocks: list[Block] = []
    for voice in [name for name in report.voices if name != ALL] or [ALL]:
        members = [i for i, clip in enumerate(report.clips) if voice in (ALL, clip.voice)]
        for i in sorted(members, key=badness, reverse=True)[:per_voice]:
            blocks.append(codec_clip(report, i, recordings[i].waveform, decoded[i]))
    return blocks


def codec_clip(report: CodecReport, index: int, recording: Waveform, decoded: Waveform) -> ClipRow:
    """One clip's recording compared with its reconstruction."""
    clip, rate = report.clips[index], report.sample_rate
    return clip_row(
        [
            Clip("recording", recording, rate, _transcript(clip.recording_transcript)),
            Clip("reconstruction", decoded, rate, _transcript(clip.reconstruction_transcript)),
        ],
        f"{clip.name}: {clip.text or 'no text'} ({clip.mel_distance_db:.1f} dB)",
    )


def _transcript(text: str | None) -> str:
    return "" if text is None else f"transcript: {text or 'nothing'}"
