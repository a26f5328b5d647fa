"""A voice learned from raw audio alone, compared with one learned from the same with true texts.

    python benchmarks/preparing_voice.py --asr BASE --output runs/raw-voice

The demo's recordings of its new voice, joined with pauses to one file without a text, are prepared;
its rows, and the recordings with their true texts, are each encoded and learned by the shipped
voice, with the demo's settings and the shipped codec. Both voices say the same held-out sentences.
Takes as long as two demos. The same command resumes it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from sheen.audio.io import decode_audio
from sheen.lm.checkpoint import read_info
from sheen.prepare.output import MANIFEST

ROOT = Path(__file__).resolve().parents[1]
ENGLISH = ROOT / "examples" / "english"
sys.path.append(str(ENGLISH))
from demo import text_flags  # noqa: E402
from demo_commands import cpu_precision  # noqa: E402
from demo_comparison import COMPARED, cell, read_results  # noqa: E402

DEMO, VOICE = ENGLISH / "demo", ENGLISH / "voice"
RATE = 24_000
Row = dict[str, Any]


def join(voice: str, path: Path) -> float:
    """Its recordings with pauses of 0.35 to 1.2 s; returns the seconds of speech."""
    rng = np.random.default_rng(1)
    parts: list[np.ndarray] = []
    speech = 0
    for row in rows_of(DEMO / f"{voice}.jsonl"):
        noise = 1e-4 * rng.standard_normal(round(rng.uniform(0.35, 1.2) * RATE))
        samples = decode_audio((DEMO / row["audio"]).read_bytes(), RATE)
        parts += [noise.astype(np.float32), samples]
        speech += len(samples)
    soundfile.write(path, np.concatenate(parts), RATE)
    return speech / RATE


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run(job: str, output: Path, *flags: str) -> Path:
    """jobs/JOB.py, with the demo's settings where it has any. Raises CalledProcessError."""
    config = DEMO / f"{job}.yaml"
    words = [str(ROOT / "jobs" / f"{job}.py"), "--output", str(output), *flags]
    words += ["--config", str(config)] if config.is_file() else []
    print(f"$ python {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, *words], check=True)
    return output


def learn(folder: Path, given: Path, args: argparse.Namespace) -> Row:
    """Encode, train and evaluate; what the evaluation found of the voice."""
    codec = ["--codec", str(VOICE / "codec")]
    texts = text_flags(read_info(VOICE).normalizer)
    codes = run("encode", folder / "codes", "--input", str(given), "--speakers", args.voice,
                *codec, *texts)  # fmt: skip
    data = ["--data", str(codes), "--data", str(ENGLISH / "old-voices.parquet")]
    trained = run("train", folder / "train", "--model", str(VOICE), *data, *codec,
                  "--precision", cpu_precision())  # fmt: skip
    spoken = run(
        "evaluate", folder / "evaluation", "--model", str(trained / "checkpoint"),
        "--prompts", str(ENGLISH / "everyday.txt"), "--voice-recordings", str(ENGLISH / "profiles"),
        "--asr", args.asr, "--per-voice", str(args.prompts), "--voices", args.voice,
    )  # fmt: skip
    result: Row = read_results(spoken)["voices"][args.voice]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--asr", required=True, help="Whisper that transcribes, and that judges")
    parser.add_argument("--voice", default="af_bella", help="of the demo's recordings")
    parser.add_argument("--prompts", type=int, default=100, help="that each voice says")
    parser.add_argument("--output", type=lambda path: Path(path).resolve(), required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    joined = args.output / "joined.flac"
    speech = join(args.voice, joined)
    prepared = run("prepare", args.output / "prepared", "--input", str(joined), "--asr", args.asr,
                   "--language", "en", "--no-num-speakers")  # fmt: skip
    rows = [row | {"speaker": args.voice} for row in rows_of(prepared / MANIFEST)]
    raw = args.output / "raw.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = {
        "raw audio": learn(args.output / "raw", raw, args),
        "true texts": learn(args.output / "true", DEMO / f"{args.voice}.jsonl", args),
    }
    kept = sum(row["seconds"] for row in rows)
    print(f"{len(rows)} rows of {kept:.0f} s prepared from {speech:.0f} s of speech")
    print(f"| {args.voice} learned from | {' | '.join(COMPARED)} |")
    print("|---" * (1 + len(COMPARED)) + "|")
    for name, result in found.items():
        print(f"| {name} | {' | '.join(cell(result.get(field)) for field in COMPARED.values())} |")


if __name__ == "__main__":
    main()
