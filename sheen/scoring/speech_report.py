"""How good synthesized speech is, as JSON and as a page: tables by voice, the worst clips first.

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
    """What it is `about`, and the results by voice; clip by clip they are the caller's rows."""
    results = {voice: asdict(result) for voice, result in report.voices.items()}
    content = about | {"listener": report.listener, "seed": report.seed, "voices": results}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def voice_rows(report: SpeechReport) -> tuple[list[str], list[list[str]]]:
    """The table by voice, header and rows, as the page and the console show it."""
    columns: dict[str, Callable[[VoiceResult], ErrorRate | Share | Mean | None]] = {
        "WER": lambda result: result.words,
        "CER": lambda result: result.characters,
        "right voice heard": lambda result: result.voice_right,
        "stopped by itself": lambda result: result.stopped,
        "duration / expected": lambda result: result.duration,
        "characters per second": lambda result: result.pace,
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
    """Clips by how bad they are: word errors, then those cut by their budget, then odd lengths."""

    def badness(index: int) -> tuple[float, bool, float]:
        clip = report.clips[index]
        errors = report.errors[index] or 0.0
        ratio = 1.0 if clip.duration is None else clip.duration
        return errors, not clip.stopped, max(ratio, 1 / ratio if ratio else float("inf"))

    return sorted(range(len(report.clips)), key=badness, reverse=True)


def render_report(
    report: SpeechReport, lead: str, worst: Sequence[tuple[SpokenClip, Waveform]], sample_rate: int
) -> str:
    """The page; `worst` are the clips to play, in order, with their waveforms `[n]`."""
    header, rows = voice_rows(report)
    listener = f"Heard by {report.listener}. " if report.listener else "Nobody listened. "
    blocks: list[Block] = [
        table(header, rows),
        f"{listener}In brackets 95% intervals over clips: bootstrap, for shares Wilson's. Seed "
        f"{report.seed}.",
    ]
    ratios = [ratio for clip in report.clips if (ratio := clip.duration) is not None]
    if ratios:
        blocks.append(histogram("Duration over what the text lets expect", ratios, "times"))
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
    if not clip.stopped:
        parts.append("cut by its budget")
    if clip.heard is not None:
        parts.append(f"heard: {clip.heard or 'nothing'}")
    if clip.voice_heard is not None:
        parts.append(f"voice heard: {clip.voice_heard or 'none'}")
    return ", ".join(parts)


def _cell(value: ErrorRate | Share | Mean | None, percent: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, Mean):
        form = "{:.1%}" if percent else "{:.2f}"
        return f"{form} [{form}, {form}]".format(value.value, value.low, value.high)
    return f"{value.rate:.1%} [{value.low:.1%}, {value.high:.1%}]"
