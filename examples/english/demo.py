"""The whole path on this machine: the English voice learns a voice that it has never heard.

It starts a local Ray head and submits the jobs: encode the recordings, evaluate the shipped voice,
train the codec's decoder, fine-tune the model, evaluate the result. Then it serves that, asks for
sentences with the official `openai` client, prints what changed, and writes
`runs/demo/report.html`. It stops what it started, and fails loudly when any step fails. Nothing is
downloaded: what is missing is named, with the command that installs it, before anything begins.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import openai
import packages
from demo_commands import (
    PORT,
    RUN,
    compiles,
    cpu_precision,
    port_is_free,
    ray_head,
    serve_config,
    start_server,
    step,
    submit,
)
from demo_comparison import as_text, choose_clips, comparison, read_results, wer_changes
from demo_page import write_report
from demo_requests import Spoken, speak_all

from sheen.audio.io import decode_audio
from sheen.codec.info import CODEC_FOLDER, find_codec
from sheen.data.corpus import plain_rows
from sheen.data.prompts import read_prompts
from sheen.lm.checkpoint import read_info
from sheen.scoring.asr.transcribers import open_transcriber
from sheen.scoring.asr.whisper import RATE, find_whisper
from sheen.scoring.mos import Dnsmos
from sheen.scoring.speaker_id import SpeakerEncoder
from sheen.text.steps import NormalizerStep, check_steps, phoneme_step, text_normalization

HERE = Path(__file__).resolve().parent
CONFIGS = "examples/english/demo"
CHECKPOINT = RUN / "train" / "checkpoint"
SENTENCES = (
    "Hi there! Is the table by the window still free for tonight?",
    "Your parcel will arrive on Tuesday, between 9 and 11:30 a.m., and costs $4.50.",
    "Ten minutes ago I had never heard this voice, and now I am reading you a whole sentence.",
)
"""What a visitor might type; the new voice says it over HTTP."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Status 1 with a line on what is missing, or which step failed and why."""
    args = parser().parse_args(argv)
    started = time.monotonic()
    if problems := find_problems(args):  # before the last run's report is deleted
        print("\n".join(f"demo: error: {problem}" for problem in problems), file=sys.stderr)
        return 1
    if RUN.exists():
        print(f"replacing {RUN}")
        shutil.rmtree(RUN)
    (RUN / "logs").mkdir(parents=True)
    seconds: dict[str, float] = {}
    try:
        requests = run_jobs(args, seconds)
        with step("report", seconds):
            table = report(args, requests, seconds)
    except (RuntimeError, ValueError, OSError, openai.OpenAIError) as error:
        print(f"\ndemo: FAILED: {error}", file=sys.stderr)
        return 1
    print(f"\n{table}")
    print(f"\nwhole demo: {time.monotonic() - started:.0f} s. Open {RUN / 'report.html'}")
    print(f"Speak again: serve run {RUN / 'serve_config.yaml'}, or")
    words = f'"What shall I say?" --model {CHECKPOINT} --voice {args.new_voice} -o out.wav'
    print(f"  sheen speak {words}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags: paths, so that another voice, or other recordings, can be tried."""
    flags = argparse.ArgumentParser(description="Teach the English voice a new voice.")
    defaults = {
        "--voice": (HERE / "voice", "checkpoint to fine-tune, with its codec in it"),
        "--recordings": (HERE / "demo", "of the new voice, and of the old ones"),
        "--profiles": (
            HERE / "profiles",
            "other recordings of these voices, with which similarity is measured",
        ),
        "--old-voices": (
            HERE / "old-voices.parquet",
            "what keep_rows.py kept of the old ones",
        ),
        "--prompts": (HERE / "everyday.txt", "held-out texts, as jobs/evaluate.py takes them"),
    }
    for flag, (path, what) in defaults.items():
        flags.add_argument(flag, type=_absolute, default=path, help=f"{what} (default: {path})")
    flags.add_argument("--new-voice", default="af_bella", help="(default: %(default)s)")
    flags.add_argument(
        "--asr", type=_absolute, help="Whisper's folder (default: base, of packages.py)"
    )
    return flags


def _absolute(path: str) -> Path:
    return Path(path).expanduser().resolve()


def find_problems(args: argparse.Namespace) -> list[str]:
    """All that would end the demo later, each as a line. Fills in `args.asr`."""
    checks: list[Callable[[argparse.Namespace], object]] = [
        _check_port, _check_voice, _check_data, _check_asr, lambda _: Dnsmos(),
        lambda _: SpeakerEncoder(),
    ]  # fmt: skip
    problems: dict[str, None] = {}  # two packages may have one command
    for check in checks:
        try:
            check(args)
        except ValueError as error:
            problems[str(error)] = None
    return list(problems)


def _check_port(_: argparse.Namespace) -> None:
    if not port_is_free(PORT):
        raise ValueError(f"port {PORT} is in use; stop what listens there")


def _check_voice(args: argparse.Namespace) -> None:
    info = read_info(args.voice)
    check_steps(info.normalizer)
    find_codec(str(args.voice / CODEC_FOLDER))
    if args.new_voice in info.voices:
        raise ValueError(f"--new-voice {args.new_voice}: {args.voice} knows it already")


def _check_data(args: argparse.Namespace) -> None:
    if not args.old_voices.is_file():
        raise ValueError(f"--old-voices {args.old_voices}: no such file; keep_rows.py makes it")
    for flag, check in (
        ("--prompts", lambda: read_prompts(str(args.prompts))),
        ("--recordings", lambda: new_voice_recording(args.recordings, args.new_voice)),
        ("--profiles", lambda: new_voice_recording(args.profiles, args.new_voice)),
    ):
        try:
            check()
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from error


def _check_asr(args: argparse.Namespace) -> None:
    args.asr = args.asr or packages.recogniser("base")
    if not find_whisper(str(args.asr)):
        raise ValueError(f"--asr {args.asr}: no folder of a Whisper in CTranslate2's format")


def new_voice_recording(recordings: Path, voice: str) -> tuple[str, bytes]:
    """The text and the file of the first recording of a voice. ValueError where there is none."""
    for row in plain_rows(str(recordings)):
        if row["speaker"] == voice and row["reason"] is None:
            return row["text"], Path(row["audio"]).read_bytes()
    raise ValueError(f"{recordings}: no recording of voice {voice!r}")


def text_flags(steps: Sequence[NormalizerStep]) -> list[str]:
    """Flags of jobs/encode.py: texts in the form that the checkpoint was taught."""
    words, sounds = text_normalization(steps), phoneme_step(steps)
    return [*(["--language", words.language] if words else []), *(["--phonemes"] if sounds else [])]


def plan_jobs(args: argparse.Namespace) -> list[tuple[str, str, str, list[str]]]:
    """Stage, job of jobs/, its folder in RUN and its flags, in their order."""
    codec, decoder = ["--codec", str(args.voice / CODEC_FOLDER)], RUN / "codec" / CODEC_FOLDER
    info = read_info(args.voice)
    texts = text_flags(info.normalizer)
    recorded = ["--input", str(args.recordings), "--speakers", args.new_voice, *codec, *texts]
    judged = ["--prompts", str(args.prompts), "--voice-recordings", str(args.profiles)]
    judged += ["--asr", str(args.asr)]
    judged += ["--voices", ",".join([*info.voices[:1], args.new_voice])]
    data = ["--data", str(RUN / "codes"), "--data", str(args.old_voices), "--codec", str(decoder)]
    data += ["--precision", cpu_precision()]
    heard = ["--data", str(args.recordings), "--compile" if compiles() else "--no-compile"]
    before, after = ["--model", str(args.voice)], ["--model", str(CHECKPOINT)]
    new = ["--untrained-voices", args.new_voice]
    return [
        ("encode", "encode", "codes", recorded),
        ("evaluate before", "evaluate", "before", [*before, *judged, *new]),
        ("codec", "train_codec", "codec", [*codec, *heard]),
        ("train", "train", "train", [*before, *data]),
        ("evaluate after", "evaluate", "after", [*after, *judged]),
    ]


def run_jobs(
    args: argparse.Namespace, seconds: dict[str, float]
) -> tuple[list[Spoken], list[Spoken]]:
    """Everything that needs Ray; what the requests gave, each sentence alone and all at once."""
    with ExitStack() as running:
        with step("ray head", seconds):
            environment = running.enter_context(ray_head())
        for stage, job, folder, flags in plan_jobs(args):
            with step(stage, seconds):
                where = ["--output", str(RUN / folder)]
                submit(folder, job, CONFIGS, environment, *where, *flags)
        with step("serve", seconds):
            url = f"http://127.0.0.1:{PORT}"
            server = start_server(serve_config(CHECKPOINT, RUN), url, environment)
        with server, step("speak", seconds):
            return speak_all(url, RUN / "wavs", [(text, args.new_voice) for text in SENTENCES])


def report(
    args: argparse.Namespace,
    requests: tuple[list[Spoken], list[Spoken]],
    seconds: dict[str, float],
) -> str:
    """Write the page; the table for the console. Prints what the ASR hears in the requests."""
    alone, _ = requests
    asr = open_transcriber(str(args.asr))
    transcripts = asr.transcribe([decode_audio(s.wav.read_bytes(), RATE) for s in alone], RATE)
    for spoken, words in zip(alone, transcripts, strict=True):
        print(f"   {spoken.text!r} was heard as {words!r}")
    results = read_results(RUN / "before"), read_results(RUN / "after")
    changes = wer_changes(RUN / "before", RUN / "after")
    clips = choose_clips(RUN / "before"), choose_clips(RUN / "after")
    recording = new_voice_recording(args.recordings, args.new_voice)
    write_report(RUN, results, changes, clips, recording, requests, transcripts, seconds)
    return as_text(*comparison(*results, changes))


if __name__ == "__main__":
    sys.exit(main())
