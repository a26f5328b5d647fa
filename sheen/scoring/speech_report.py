"""Quality of synthesized speech as JSON and as a page: tables by voice, the worst clips first.

Owns how a `SpeechReport` is shown. Measures nothing.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheen.report.clips import Clip, clip_row
from sheen.report.figures import histogram
from sheen.report.page import Block, Section, render_page, table
from sheen.scoring.speaker_id import ALL
from sheen.scoring.speech import Mean, Share, SpeechReport, SpokenClip, VoiceResult
from sheen.scoring.wer import ErrorRate

Waveform = NDArray[np.float32]


def render_json(report: SpeechReport, about: dict[str, Any]) -> str:
    """`about` and the results by voice; those of each clip are in the caller's rows."""
    results = {voice: asdict(result) for voice, result in report.voices.items()}
    content = about | {"asr": report.asr, "seed": report.seed, "voices": results}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def voice_rows(report: SpeechReport) -> tuple[list[str], list[list[str]]]:
    """The table by voice, header and rows, as the page and the console show it."""
    columns: dict[str, Callable[[VoiceResult], ErrorRate | Share | Mean | None]] = {
        "WER": lambda result: result.wer,
        "CER": lambda result: result.cer,
        "speaker accuracy": lambda result: result.speaker_accuracy,
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


def render_report(
    report: SpeechReport, lead: str, worst: Sequence[tuple[SpokenClip, Waveform]], sample_rate: int
) -> str:
    """The page; `worst` are the clips to play, in order, with their waveforms `[n]`."""
    header, rows = voice_rows(report)
    asr = f"ASR: {report.asr}. " if report.asr else "No ASR. "
    blocks: list[Block] = [
        table(header, rows),
        f"{asr}In brackets 95% intervals over clips: bootstrap, for shares Wilson's. Seed "
        f"{report.seed}.",
    ]
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
    if clip.identified_speaker is not None:
        parts.append(f"speaker: {clip.identified_speaker or 'none'}")
    return ", ".join(parts)


def _cell(value: ErrorRate | Share | Mean | None, percent: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, Mean):
        form = "{:.1%}" if percent else "{:.2f}"
        return f"{form} [{form}, {form}]".format(value.value, value.low, value.high)
    return f"{value.rate:.1%} [{value.low:.1%}, {value.high:.1%}]"
