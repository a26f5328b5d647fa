"""The demo's page: what the fine-tuning changed, to read and to hear.

Owns the sections of `report.html`. What the numbers are is in the files that the jobs left, and
what was heard is the ASR's business.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo_comparison import SpokenClip, comparison
from demo_requests import Spoken

from sheen.audio.io import decode_audio
from sheen.report.figures import bars, curves, histogram
from sheen.report.page import Clip, ClipRow, Section, clip_row, table, write_page
from sheen.scoring.wer import ErrorDifference

RATE = 24_000
"""Of the players, Hz."""


def write_report(
    folder: Path,
    results: tuple[dict[str, Any], dict[str, Any]],
    changes: Mapping[str, ErrorDifference],
    clips: tuple[Sequence[SpokenClip], Sequence[SpokenClip]],
    recording: tuple[str, bytes],
    requests: tuple[Sequence[Spoken], Sequence[Spoken]],
    transcripts: Sequence[str],
    seconds: dict[str, float],
) -> None:
    """Write `folder`/report.html from what the jobs left in `folder`.

    results: of `read_results`, before and after. changes: of `wer_changes`. clips: of
    `choose_clips`, before and after, of the same prompts. recording: a text, and a file's content,
    of the new voice. requests: of `speak_all`. transcripts: what the ASR heard in the requests.
    seconds: by stage.
    """
    before, after = results
    metrics = [
        json.loads(line)
        for line in (folder / "train/metrics.jsonl").read_text("utf-8").splitlines()
    ]
    encoded = json.loads((folder / "codes/report.json").read_text("utf-8"))
    alone, together = requests
    write_page(
        folder / "report.html",
        "Sheen demo: a new voice",
        [
            Section("What it says now", [_served(together, transcripts, recording)]),
            _comparison_section(before, after, changes),
            Section(
                "One sentence, twice",
                [
                    "Held-out sentences, which the model was never taught, by the voice that was "
                    "shipped and by the fine-tuned one.",
                    *(_compare(*pair) for pair in zip(*clips, strict=True)),
                ],
            ),
            Section("Where the time went", [bars("Time per stage", seconds, "seconds")]),
            training_section(metrics),
            requests_section(alone, together),
            data_section(encoded, metrics[0]),
        ],
        lead="A small model that speaks English learns a voice that it has never heard, from a few "
        "minutes of recordings: SNAC codes, a fine-tuned checkpoint, speech over HTTP, on one "
        "machine.",
    )


def _served(
    spoken: Sequence[Spoken], transcripts: Sequence[str], recording: tuple[str, bytes]
) -> ClipRow:
    text, audio = recording
    clips = [Clip("recording", decode_audio(audio, RATE), RATE, text)]
    for one, words in zip(spoken, transcripts, strict=True):
        caption = f"{one.text} Transcript: {words or 'nothing'}"
        clips.append(Clip("over HTTP", decode_audio(one.wav.read_bytes(), RATE), RATE, caption))
    return clip_row(clips, title=f"{spoken[0].voice}, a recording and what the demo served")


def _compare(before: SpokenClip, after: SpokenClip) -> ClipRow:
    clips = [
        Clip(title, decode_audio(clip.audio, RATE), RATE, f"Transcript: {clip.transcript or ''}")
        for title, clip in (("before", before), ("after", after))
    ]
    return clip_row(clips, title=f"{after.voice}: {after.text}")


def _comparison_section(
    before: dict[str, Any], after: dict[str, Any], changes: Mapping[str, ErrorDifference]
) -> Section:
    header, rows = comparison(before, after, changes)
    first, *others = zip(header, *rows, strict=True)  # a line for each measure: voices are few
    return Section(
        "Before and after",
        [
            table(first, others),
            f"Held-out sentences, transcribed by {after['asr']}. WER is the word error rate, in "
            "brackets its 95% bootstrap interval; that of the change is paired by sentence. "
            "Similarity is 1 for a voice's held-back recordings and 0 for the nearest other's. "
            f"Seed {after['seed']}, the same for both.",
        ],
    )


def requests_section(alone: Sequence[Spoken], together: Sequence[Spoken]) -> Section:
    """What each request took, alone and in company."""
    header = ["text", "voice", "alone, s", f"{len(together)} at once, s", "first bytes, s"]
    rows = [
        [one.text, one.voice, one.total_s, many.total_s, many.first_byte_s]
        for one, many in zip(alone, together, strict=True)
    ]
    return Section("Requests", [table(header, rows)])


def training_section(rows: list[dict[str, Any]]) -> Section:
    """Loss over steps; `rows` are the lines of metrics.jsonl."""

    def series(name: str) -> tuple[list[int], list[float]]:
        kept = [row for row in rows if name in row]
        return [row["step"] for row in kept], [row[name] for row in kept]

    levels = sorted(name for name in rows[-1] if name.startswith("loss_level_"))
    loss = {"training": series("loss"), "evaluation": series("eval_loss")}
    speed = series("target_tokens_per_second")[1]
    return Section(
        "Training",
        [
            curves("Loss", loss, "optimizer step", "nats per audio token"),
            curves(
                "Loss per codebook level",
                {name.replace("loss_", "").replace("_", " "): series(name) for name in levels},
                "optimizer step",
                "nats per audio token",
            ),
            f"{statistics.median(speed):.0f} target tokens per second (median). The evaluation "
            "loss is of texts that this training did not see; where it turns up, the model "
            "memorises.",
        ],
    )


def data_section(encoded: dict[str, Any], summary: dict[str, Any]) -> Section:
    """What was encoded, by the encode job's report and the first line of metrics.jsonl."""
    edges = np.array(summary["length_histogram"]["tokens"])
    counts = summary["length_histogram"]["utterances"]
    centres = np.repeat((edges[1:] + edges[:-1]) / 2, counts)
    facts = [
        ("Recordings encoded", f"{encoded['rows_out']} of {encoded['rows_in']}"),
        ("Utterances made of them", str(encoded["utterances"])),
        ("Minutes of speech in these", f"{encoded['hours'] * 60:.1f}"),
        ("Encoding, x realtime", str(encoded["audio_seconds_per_second"])),
        ("Utterances over the length limit", str(summary["over_length_limit"])),
    ]
    lengths = histogram("Sequence lengths", centres, "tokens", bins=len(counts))
    return Section("The data", [table([], facts), lengths])
