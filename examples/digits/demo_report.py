"""The demo's listening part: concurrent requests with the `openai` client, and one HTML page."""

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import soundfile
import torch
import yaml
from torchaudio.functional import resample

from sheen.core.batches import is_held_out
from sheen.core.prompt import normalise
from sheen.report.clips import Clip, clip_row
from sheen.report.figures import bars, curves, histogram
from sheen.report.page import Section, table, write_page

DIGITS = Path(__file__).resolve().parent
CONCURRENT = 8


@dataclass(frozen=True)
class Spoken:
    """One request: what was asked for, and when the client had what."""

    text: str
    voice: str
    recording: Path
    seen: bool
    wav: Path
    concurrent: bool
    first_byte_s: float
    total_s: float


def choose_texts() -> list[tuple[str, str, Path, bool]]:
    """Two strings per voice that have a recording: one that training saw, one that it did not."""
    config = yaml.safe_load((DIGITS / "train.yaml").read_text("utf-8"))
    share, seed = config["eval_share"], config.get("seed", 0)
    chosen: dict[tuple[str, bool], tuple[str, str, Path, bool]] = {}
    for line in (DIGITS / "corpus" / "metadata.csv").read_text("utf-8").splitlines():
        name, _, text, voice = line.split("|")
        seen = not is_held_out(normalise(text), share, seed)
        wav = DIGITS / "corpus" / "wavs" / f"{name}.flac"
        chosen.setdefault((voice, seen), (text, voice, wav, seen))
    return sorted(chosen.values(), key=lambda item: (item[1], not item[3]))


def speak_all(url: str, folder: Path) -> list[Spoken]:
    """One request alone, then all at once; the WAVs land in `folder`/wavs."""
    (folder / "wavs").mkdir(exist_ok=True)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120, max_retries=0)
    texts = choose_texts()[:CONCURRENT]

    def speak(index: int, concurrent: bool) -> Spoken:
        text, voice, recording, seen = texts[index]
        wav = folder / "wavs" / f"{index:02d}-{voice}{'' if concurrent else '-alone'}.wav"
        started = time.monotonic()
        first = 0.0
        with (
            client.audio.speech.with_streaming_response.create(
                model="sheen",
                input=text,
                voice=voice,
                response_format="wav",
                extra_body={"seed": index},
            ) as response,
            wav.open("wb") as file,
        ):
            for chunk in response.iter_bytes():
                first = first or time.monotonic() - started
                file.write(chunk)
        total = time.monotonic() - started
        return Spoken(text, voice, recording, seen, wav, concurrent, first, total)

    alone = [speak(index, False) for index in range(len(texts))]
    with ThreadPoolExecutor(len(texts)) as pool:
        together = list(pool.map(lambda index: speak(index, True), range(len(texts))))
    for one, many in zip(alone, together, strict=True):
        _check_same_speech(one.wav, many.wav)
        print(f"   {many.voice}: {many.text!r}, first bytes after {many.first_byte_s:.2f} s")
    longest, all_at_once = (max(s.total_s for s in group) for group in (alone, together))
    print(
        f"   the longest alone: {longest:.2f} s; all {len(together)} at once: {all_at_once:.2f} s, "
        f"{all_at_once / longest:.2f} times as long"
    )
    return alone + together


def _check_same_speech(alone: Path, together: Path) -> None:
    """A request must not sound otherwise because others ran beside it."""
    one, many = (soundfile.read(path, dtype="int16")[0].astype(int) for path in (alone, together))
    # Batched matrix products round differently: one step of 16-bit PCM, not another token.
    if len(one) != len(many) or np.abs(one - many).max(initial=0) > 1:
        raise RuntimeError(f"{together} is not what the same request gave alone ({alone})")


def write_report(folder: Path, spoken: list[Spoken], seconds: dict[str, float]) -> None:
    """Write `folder`/report.html."""
    rows = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
    encode = json.loads((folder / "codes/report.json").read_text("utf-8"))
    together = [item for item in spoken if item.concurrent]
    alone = [item for item in spoken if not item.concurrent]
    sections = [
        Section("Where the time went", [bars("Time per stage", seconds, "seconds")]),
        _training_section(rows),
        Section(
            "Synthesised beside recorded",
            [
                "The recordings are the flite synthesiser's. The model was trained from nothing "
                "for a few minutes on a few hundred strings: it babbles in the voices and does not "
                "say the words yet. Strings marked held out were not trained on.",
                *(_clips(item) for item in together),
            ],
        ),
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
        Section(
            "The data",
            [
                table(
                    [],
                    [
                        ("Recordings encoded", f"{encode['rows_out']} of {encode['rows_in']}"),
                        ("Minutes of speech", f"{encode['hours'] * 60:.1f}"),
                        ("Encoding, x realtime", str(encode["audio_seconds_per_second"])),
                        ("Utterances over the length limit", str(rows[0]["over_length_limit"])),
                    ],
                ),
                _lengths(rows[0]),
            ],
        ),
    ]
    write_page(
        folder / "report.html",
        "Sheen demo: spoken digits",
        sections,
        lead="Recordings, SNAC codes, a trained checkpoint, speech over HTTP: on one machine.",
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
            "loss is of strings that were held out; where it turns up, the model memorises.",
        ],
    )


def _clips(item: Spoken) -> Any:
    synthesised, rate = soundfile.read(item.wav, dtype="float32")
    recorded, recorded_rate = soundfile.read(item.recording, dtype="float32")
    at_codec_rate = resample(torch.from_numpy(recorded), recorded_rate, rate).numpy()
    kind = "seen in training" if item.seen else "held out"
    return clip_row(
        [
            Clip("Recorded", at_codec_rate, rate),
            Clip("Synthesised", synthesised, rate, f"first bytes after {item.first_byte_s:.2f} s"),
        ],
        title=f"{item.voice}: {item.text} ({kind})",
    )


def _lengths(summary: dict[str, Any]) -> Any:
    edges = np.array(summary["length_histogram"]["tokens"])
    counts = summary["length_histogram"]["utterances"]
    centres = np.repeat((edges[1:] + edges[:-1]) / 2, counts)
    return histogram("Sequence lengths", centres, "tokens", bins=len(counts))
