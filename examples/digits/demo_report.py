"""The demo's page: what the fine-tuning changed, to read, to hear and to see.

Owns the sections of `report.html` and the images beside it. What the numbers are is in the files
that the jobs left.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo_comparison import BaseClip, comparison
from demo_requests import Spoken

from sheen.audio.io import decode_audio
from sheen.codec.snac import Codec, load_codec
from sheen.report.figures import bars, curves, histogram
from sheen.report.page import Clip, ClipRow, Section, clip_row, save_png, table, write_page
from sheen.scoring.asr import POCKETSPHINX, Transcriber, open_transcriber
from sheen.scoring.code_usage import decode_clip, encode_clips

DIGITS = Path(__file__).resolve().parent
PICTURED = ("kal16", "slt")
"""Voices with an image: the one that was learnt, and of the old ones that which the codec serves
least."""


def write_report(
    folder: Path,
    before: dict[str, Any],
    after: dict[str, Any],
    clips: Sequence[BaseClip],
    requests: tuple[list[Spoken], list[Spoken]],
    seconds: dict[str, float],
) -> list[Path]:
    """Write `folder`/report.html, and the images, whose paths are returned.

    before, after: of `read_results`. clips: the base's, of the strings that were requested.
    requests: each string alone, and all at once. seconds: by stage.
    """
    alone, together = requests
    codec = load_codec(str(DIGITS / "codec"))
    asr = open_transcriber(POCKETSPHINX, str(DIGITS / "digits.gram"))
    rows = [
        _compare(clip, spoken.wav, codec, asr) for clip, spoken in zip(clips, together, strict=True)
    ]
    metrics = [
        json.loads(line)
        for line in (folder / "train/metrics.jsonl").read_text("utf-8").splitlines()
    ]
    encoded = json.loads((folder / "codes/report.json").read_text("utf-8"))
    sections = [
        _comparison_section(before, after),
        Section(
            "One string, four times",
            [
                "Held-out strings, of which the model has never heard one. The recordings are the "
                "flite synthesizer's; better than the codec's reconstruction no model can sound "
                "here; the base is the committed voice, fine-tuned is what the demo served.",
                *rows,
            ],
        ),
        Section("Where the time went", [bars("Time per stage", seconds, "seconds")]),
        _training_section(metrics),
        Section(
            "Requests",
            [
                table(
                    ["text", "voice", "alone, s", f"{len(together)} at once, s", "first bytes, s"],
                    [
                        [one.text, one.voice, one.total_s, many.total_s, many.first_byte_s]
                        for one, many in zip(alone, together, strict=True)
                    ],
                )
            ],
        ),
        _data_section(encoded, metrics[0]),
    ]
    write_page(
        folder / "report.html",
        "Sheen demo: a new voice",
        sections,
        lead="A small model that speaks learns a voice that it has never heard: recordings, SNAC "
        "codes, a fine-tuned checkpoint, speech over HTTP, on one machine.",
    )
    return _save_images(folder, clips, rows)


def _compare(clip: BaseClip, fine_tuned: Path, codec: Codec, asr: Transcriber) -> ClipRow:
    """One string as it was recorded, coded, spoken before and spoken after."""
    rate = codec.sample_rate
    path = DIGITS / "heldout" / "wavs" / f"{clip.id}.flac"
    recording = decode_audio(path.read_bytes(), rate)
    (codes,), _ = encode_clips(codec, [recording])
    waveforms = {
        "recording": recording,
        "codec": decode_clip(codec, codes, len(recording), seed=0),
        "base": decode_audio(clip.audio, rate),
        "fine-tuned": decode_audio(fine_tuned.read_bytes(), rate),
    }
    texts = asr.transcribe(list(waveforms.values()), rate)
    return clip_row(
        [
            Clip(title, waveform, rate, f"transcript: {words or 'nothing'}")
            for (title, waveform), words in zip(waveforms.items(), texts, strict=True)
        ],
        title=f"{clip.voice}: {clip.text} ({clip.id})",
    )


def _save_images(folder: Path, clips: Sequence[BaseClip], rows: Sequence[ClipRow]) -> list[Path]:
    """The first row of each voice in PICTURED, its clips one above the other."""
    images = []
    for voice in PICTURED:
        clip, row = next(pair for pair in zip(clips, rows, strict=True) if pair[0].voice == voice)
        images.append(folder / f"{clip.id}.png")
        save_png(row, images[-1], stacked=True)
    return images


def _comparison_section(before: dict[str, Any], after: dict[str, Any]) -> Section:
    header, rows = comparison(before, after)
    return Section(
        "Before and after",
        [
            table(header, rows),
            f"Held-out strings of two to six digits, transcribed by {after['asr']}. WER is the "
            "word error rate, in brackets its 95% bootstrap interval over strings; seed "
            f"{after['seed']}, the same for both.",
        ],
    )


def _training_section(rows: list[dict[str, Any]]) -> Section:
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
            "loss is of strings that this training did not see; where it turns up, the model "
            "memorises.",
        ],
    )


def _data_section(encoded: dict[str, Any], summary: dict[str, Any]) -> Section:
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
