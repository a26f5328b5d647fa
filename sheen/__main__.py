"""The commands: arguments in, exit status out.

`sheen NAME ...`, `python -m sheen NAME ...` and `jobs/*.py` run the same functions.

Owns the output of commands, and the flags of `speak`; a job's flags are the fields of its config.
Every command imports its modules when it is called: `sheen --help` does not import torch, and
`speak` does not import Ray.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sheen import __version__

if TYPE_CHECKING:
    from sheen.train.codec.config import CodecTrainConfig
    from sheen.train.config import TrainConfig

Command = Callable[[list[str], str], int]
"""Arguments, and the name of the program in messages -> exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """The `sheen` command."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name in COMMANDS:
        return COMMANDS[name][0](words[1:], f"sheen {name}")
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"sheen {__version__}")
        return 0
    message = f"sheen: error: unknown command {name!r}; expected one of {', '.join(COMMANDS)}"
    if any(word.split("=")[0] == "--model" for word in words):
        message += f". To speak a text: sheen speak {shlex.join(words)}"
    print(message, file=sys.stderr)
    return 2


def speak(argv: list[str], prog: str) -> int:
    from transformers.utils.logging import disable_progress_bar

    from sheen.codec.info import DEFAULT_CODEC
    from sheen.config import errors_of, fail
    from sheen.engine.types import Sampling
    from sheen.lm.precision import Precision
    from sheen.speaker import Speaker, audio_format
    from sheen.text.lexicon import read_entries
    from sheen.text.prompt import ReferenceForm

    parser = argparse.ArgumentParser(
        prog, description="Speak a text from a checkpoint into a file, without Ray."
    )
    add, shown = parser.add_argument, "(default: %(default)s)"
    add("text", metavar="TEXT", help="what to speak; - reads it from standard input")
    add("--model", help="checkpoint: a folder, a URI or a hub id (default: the English voice)")
    add("--voice", help="one of the model's voices (default: the first)")
    add("--reference", help="recording of another voice to use: path or URI")
    add("--reference-text", help="its transcript")
    add(
        "--reference-form",
        choices=get_args(ReferenceForm),
        help="placement of the reference in the prompt (default: as in training)",
    )
    add("--instructions", help="how to say the text, for a model trained with instructions")
    suffixes = ".wav, .flac, .mp3, .opus, .aac or .pcm"
    add("-o", "--output", default="out.wav", help=f"path or URI, ending in {suffixes} {shown}")
    add("--speed", type=float, default=1.0, help=f"0.25 to 4, at constant pitch {shown}")
    add(
        "--seed",
        type=int,
        default=Sampling.seed,
        help=f"of sampling; another seed gives another rendition {shown}",
    )
    for flag, kind, what in (
        ("--temperature", float, "0 to 5; 0 takes the most likely token"),
        ("--top-k", int, "most likely tokens kept; 0 is off"),
        ("--top-p", float, "probability kept; 1 is off"),
        ("--repetition-penalty", float, "0.5 to 5; 1 is off"),
    ):
        default = getattr(Sampling, flag[2:].replace("-", "_"))
        add(flag, type=kind, help=f"{what} (default: the checkpoint's, else {default})")
    add(
        "--repetition-window",
        type=_window,
        help="generated tokens that the penalty looks back at, or all (default: the checkpoint's, "
        f"else {Sampling.repetition_window})",
    )
    add("--ssml", action="store_true", help="TEXT is an SSML document")
    add("--lexicon", help="JSON file of words and their pronunciations, path or URI")
    limit = "longest audio of one chunk of text, seconds"
    add("--max-seconds", type=float, default=30.0, help=f"{limit} {shown}")
    foreign = "of a checkpoint without sheen.json"
    add("--form", help=f"prompt form {foreign}, if its tokenizer does not show it")
    of_others = "or one that differs from the checkpoint's in the decoder alone"
    default = f"(default: {DEFAULT_CODEC})"
    add("--codec", help=f"SNAC codec {foreign}, folder or hub id {default}, {of_others}")
    add("--info", help=f"description {foreign}: a file written by sheen inspect")
    add("--device", help="torch device (default: cuda if available, else cpu)")
    add(
        "--dtype",
        choices=get_args(Precision),
        default="auto",
        help="number format of the speech model; auto is bfloat16 on a GPU, float32 on a CPU",
    )
    options = parser.parse_args(argv)
    disable_progress_bar()
    try:
        # Check the output first: synthesis takes long.
        audio_format(options.output)
        output = Path(options.output).expanduser()
        if "://" not in options.output and not output.parent.is_dir():
            raise ValueError(f"output {options.output}: no folder {output.parent}")
        if "://" not in options.output and output.is_dir():
            raise ValueError(f"output {options.output}: it is a folder, expected a file")
        if (options.reference is None) != (options.reference_text is None):
            raise ValueError("--reference and --reference-text: give both, or neither")
        with errors_of("the text from standard input"):
            text = sys.stdin.read() if options.text == "-" else options.text
        speaker = Speaker(
            options.model,
            device=options.device,
            dtype=options.dtype,
            max_seconds=options.max_seconds,
            form=options.form,
            codec=options.codec,
            info=options.info,
        )
        with speaker:
            reference = None
            if options.reference is not None:
                reference = speaker.reference(
                    options.reference, options.reference_text, form=options.reference_form
                )
            started = time.monotonic()
            audio = speaker.synthesize(
                text,
                options.voice,
                reference=reference,
                instructions=options.instructions,
                speed=options.speed,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                repetition_penalty=options.repetition_penalty,
                repetition_window=options.repetition_window,
                seed=options.seed,
                lexicon=read_entries(options.lexicon) if options.lexicon else None,
                ssml=options.ssml,
            )
            audio.save(options.output)
            took = time.monotonic() - started
    except (ValueError, OSError) as error:
        return fail(prog, error)
    print(
        f"{options.output}: {audio.seconds:.2f} s of audio in {took:.2f} s, "
        f"finish reason {audio.finish_reason}"
    )
    return 0


def _window(word: str) -> int | str:
    try:
        return word if word == "all" else int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r}: expected a number of tokens, or all") from None


def prepare(argv: list[str], prog: str) -> int:
    from sheen.config import load_config
    from sheen.prepare.config import PrepareConfig
    from sheen.prepare.job import run
    from sheen.prepare.output import MANIFEST, PAGE, REVIEW
    from sheen.runs.cluster import run_job

    def job() -> int:
        config = load_config(PrepareConfig, argv, prog)
        report = run(config)
        print(
            f"{report['rows_out']} segments, {report['hours_out'] * 60:.1f} of "
            f"{report['hours_in'] * 60:.1f} minutes of {report['recordings']} recordings"
        )
        _print_rejects(report)
        if not report["rows_out"]:
            raise ValueError("no segment can be used; see report.json in the output")
        print(f"review: {config.output}/{REVIEW}; report: {config.output}/{PAGE}")
        print(f"next: sheen encode --input {config.output}/{MANIFEST}")
        return 0

    return run_job(prog, job)


def _print_rejects(report: dict[str, Any]) -> None:
    """The counts of rejected rows, and how many of them another run may read."""
    from sheen.data.clips import TRANSIENT

    for reason, entry in report["rejects"].items():
        print(f"  rejected, {reason}: {entry['rows']} ({entry['examples'][0]})")
    if again := sum(report["rejects"].get(reason, {"rows": 0})["rows"] for reason in TRANSIENT):
        print(f"  {again} of those could not be read; the same command tries them again")


def encode(argv: list[str], prog: str) -> int:
    from sheen.config import load_config
    from sheen.encode.config import EncodeConfig
    from sheen.encode.job import run
    from sheen.runs.cluster import run_job

    def job() -> int:
        report = run(load_config(EncodeConfig, argv, prog))
        print(
            f"{report['rows_out']} of {report['rows_in']} recordings encoded, "
            f"{report['utterances']} utterances, "
            f"{report['hours'] * 60:.1f} minutes, {report['audio_seconds_per_second']} x realtime"
        )
        _print_rejects(report)
        if not report["rows_out"]:
            raise ValueError("no recording could be encoded; see report.json in the output")
        return 0

    return run_job(prog, job)


def evaluate(argv: list[str], prog: str) -> int:
    from sheen.config import load_config
    from sheen.evaluate.config import EvaluateConfig
    from sheen.evaluate.job import PAGE_FILE, run
    from sheen.runs.cluster import run_job
    from sheen.scoring.reports import speech_rows

    def job() -> int:
        config = load_config(EvaluateConfig, argv, prog)
        result = run(config)
        for reason, count in (result.skipped + result.rejected).items():
            print(f"  not spoken: {count} x {reason}")
        if result.report is None:
            raise ValueError("no prompt could be spoken; see the rows in --output")
        header, rows = speech_rows(result.report)
        for name, cells in zip(header, zip(*rows, strict=True), strict=True):
            print(f"{name:24}" + "  ".join(f"{cell:24}" for cell in cells).rstrip())
        print(f"page: {config.output}/{PAGE_FILE}")
        return 0

    return run_job(prog, job)


def train(argv: list[str], prog: str) -> int:
    from sheen.train import launcher
    from sheen.train.config import TrainConfig
    from sheen.train.job import run

    def summary(config: "TrainConfig", last: dict[str, Any]) -> str:
        if config.dry_run:
            return "the run can start"
        return f"checkpoint in {config.output}/checkpoint, loss {last['loss']:.3f}"

    return launcher.main(prog, argv, TrainConfig, run, summary)


def train_codec(argv: list[str], prog: str) -> int:
    from sheen.train import launcher
    from sheen.train.codec.config import CodecTrainConfig
    from sheen.train.codec.job import run

    def summary(config: "CodecTrainConfig", last: dict[str, Any]) -> str:
        return f"codec in {config.output}/codec, log-mel loss {last['mel']:.4f}"

    return launcher.main(prog, argv, CodecTrainConfig, run, summary)


def serve(argv: list[str], prog: str) -> int:
    from sheen.serve.run import main

    return main(argv, prog)


def convert(argv: list[str], prog: str) -> int:
    from sheen.convert import main

    return main(argv, prog)


def inspect(argv: list[str], prog: str) -> int:
    from sheen.inspection import main

    return main(argv, prog)


def export(argv: list[str], prog: str) -> int:
    from sheen.export import main

    return main(argv, prog)


COMMANDS: dict[str, tuple[Command, str]] = {
    "speak": (speak, "a text and a checkpoint -> an audio file"),
    "prepare": (prepare, "raw recordings -> segments with transcripts"),
    "encode": (encode, "recordings -> a dataset of codec codes"),
    "train": (train, "a dataset -> a checkpoint"),
    "train-codec": (train_codec, "recordings -> a codec of your own"),
    "evaluate": (evaluate, "prompts and a checkpoint -> speech, scored, and a report page"),
    "serve": (serve, "a checkpoint -> an OpenAI-compatible speech server"),
    "inspect": (inspect, "a checkpoint that others trained -> its description and sheen.json"),
    "export": (export, "a checkpoint -> a copy with the token ids of the Orpheus family"),
    "convert": (convert, "folders in an older format -> the current format, in place"),
}


def _help() -> str:
    lines = [f"  {name:12} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sheen COMMAND [ARGUMENTS]",
            "",
            "Train a text-to-speech voice on your own recordings and serve it over HTTP, on Ray.",
            "",
            *lines,
            "",
            "sheen COMMAND --help lists a command's flags; sheen --version prints the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
