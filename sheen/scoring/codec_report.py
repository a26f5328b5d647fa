"""A codec's quality as JSON and as a page: tables, code usage, and clips to play and see.

Owns how a `CodecReport` is shown. Measures nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sheen.report.clips import Clip, ClipRow, clip_row
from sheen.report.figures import histogram
from sheen.report.page import Block, Cell, Section, table, write_page
from sheen.scoring.codec import CodecReport, Recording, Waveform
from sheen.scoring.speaker_id import ALL
from sheen.scoring.wer import ErrorDifference, ErrorRate, error_rate

JSON_FILE, PAGE_FILE = "codec_report.json", "codec_report.html"


def write_report(
    folder: Path,
    report: CodecReport,
    recordings: Sequence[Recording],
    decoded: Sequence[Waveform],
    clips_per_voice: int = 2,
) -> None:
    """Write JSON_FILE and PAGE_FILE into `folder`; the page plays each voice's worst clips."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_FILE).write_text(json.dumps(asdict(report), indent=2) + "\n", "utf-8")
    write_page(
        folder / PAGE_FILE,
        "Codec report",
        [
            Section("By voice", _voice_blocks(report)),
            Section("Use of the codes", _level_blocks(report)),
            Section(
                "Worst clips of each voice",
                _clip_blocks(report, recordings, decoded, clips_per_voice),
            ),
        ],
        lead=(
            f"{report.codec}, {report.sample_rate} Hz, on {len(report.clips)} recordings "
            f"({report.voices[ALL].seconds:.0f} s). ASR: {report.asr or 'none'}. Seed "
            f"{report.seed}."
        ),
    )


def voice_rows(report: CodecReport) -> tuple[list[str], list[list[str]]]:
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
    header, rows = voice_rows(report)
    blocks: list[Block] = [table(header, rows)]
    if report.voices[ALL].recordings_wer is not None:
        blocks.append(
            "Rates are word error rates with 95% bootstrap intervals over clips; the difference "
            "is paired, clip by clip. Shuffled codes are the control: the same codes in random "
            "order, which ASR must not recognise."
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
) -> list[Block]:
    def badness(i: int) -> tuple[float, float]:
        clip = report.clips[i]
        if clip.text is None or clip.reconstruction_transcript is None:
            return 0.0, clip.mel_distance_db
        errors = error_rate("word", [clip.text], [clip.reconstruction_transcript], resamples=1)
        return errors.rate, clip.mel_distance_db

    blocks: list[Block] = []
    for voice in [name for name in report.voices if name != ALL] or [ALL]:
        members = [i for i, clip in enumerate(report.clips) if voice in (ALL, clip.voice)]
        for i in sorted(members, key=badness, reverse=True)[:per_voice]:
            blocks.append(compare(report, i, recordings[i].waveform, decoded[i]))
    return blocks


def compare(report: CodecReport, index: int, recording: Waveform, decoded: Waveform) -> ClipRow:
    """One clip's recording compared with its reconstruction."""
    clip, rate = report.clips[index], report.sample_rate
    return clip_row(
        [
            Clip("recording", recording, rate, _caption(clip.recording_transcript)),
            Clip("reconstruction", decoded, rate, _caption(clip.reconstruction_transcript)),
        ],
        f"{clip.name}: {clip.text or 'no text'} ({clip.mel_distance_db:.1f} dB)",
    )


def _caption(text: str | None) -> str:
    return "" if text is None else f"transcript: {text or 'nothing'}"
