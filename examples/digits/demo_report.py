"""The demo's page: what the fine-tuning changed, to read, to hear and to see.

Owns the sections of `report.html` and the images beside it. What the numbers are is in the files
that the jobs left.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo_comparison import SpokenClip, comparison
from demo_page import data_section, requests_section, training_section
from demo_requests import Spoken

from sheen.audio.io import decode_audio
from sheen.codec.snac import Codec, load_codec
from sheen.report.figures import bars
from sheen.report.page import Clip, ClipRow, Section, clip_row, save_png, table, write_page
from sheen.scoring.asr import POCKETSPHINX, Transcriber, open_transcriber
from sheen.scoring.code_usage import decode_clip, encode_clips

DIGITS = Path(__file__).resolve().parent
HELDOUT = DIGITS / "heldout"
PICTURED = ("kal16", "slt")
"""Voices with an image: the one that was learnt, and of the old ones that which the codec serves
least."""


def write_report(
    folder: Path,
    before: dict[str, Any],
    after: dict[str, Any],
    clips: Sequence[SpokenClip],
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
        training_section(metrics),
        requests_section(alone, together),
        data_section(encoded, metrics[0]),
    ]
    write_page(
        folder / "report.html",
        "Sheen demo: a new voice",
        sections,
        lead="A small model that speaks learns a voice that it has never heard: recordings, SNAC "
        "codes, a fine-tuned checkpoint, speech over HTTP, on one machine.",
    )
    return _save_images(folder, clips, rows)


def _compare(clip: SpokenClip, fine_tuned: Path, codec: Codec, asr: Transcriber) -> ClipRow:
    """One string as it was recorded, coded, spoken before and spoken after."""
    rate = codec.sample_rate
    path = HELDOUT / "wavs" / f"{clip.id}.flac"
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


def _save_images(folder: Path, clips: Sequence[SpokenClip], rows: Sequence[ClipRow]) -> list[Path]:
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
