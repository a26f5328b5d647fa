"""Makes the English corpus: audio files with JSONL manifests, spoken by the voices of voices.yaml.

Owns which text each voice reads and the layout of the folder: `VOICE/NNN/ID.flac`, `VOICE.jsonl` (a
manifest for `jobs/encode.py`), `codec.jsonl` (what the codec is trained on) and `spoken.jsonl`, the
record of what is done, from which the same command resumes. An output has the texts of one seed, or
of one file. Texts are written out by the project's own `--language en` normalizer, so that teacher
and model read the same words.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import texts
import yaml

HERE = Path(__file__).resolve().parent
VOICES_FILE = HERE / "voices.yaml"
RECORD = "spoken.jsonl"
WRITTEN = "written"
"""In the record alone: the text before it was written out, by which a resumed run knows it."""
CODEC_MANIFEST = "codec.jsonl"
CHARACTERS_PER_SECOND = 14.5
"""Of these voices at these texts: how long a text will take, before it is spoken."""
FORMATS = {
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "opus": {"format": "OGG", "subtype": "OPUS", "compression_level": 0.9},  # some 32 kbit/s
}
"""By a file's suffix."""
GROUPS = ("base", "demo", "cloning_train", "cloning_test", "others")


@dataclass(frozen=True)
class Task:
    """One recording to make; `share` of its voice's hours lies before it."""

    share: float
    voice: str
    text: str
    number: int
    suffix: str = "flac"

    @property
    def id(self) -> str:
        return f"{self.voice}-{self.number:06d}"

    @property
    def path(self) -> str:
        return f"{self.voice}/{self.number // 1000:03d}/{self.id}.{self.suffix}"


def wanted_hours(division: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Hours of each voice asked for; `names` are voices or groups. ValueError for another name."""
    known = {voice: hours for group in GROUPS for voice, hours in division[group].items()}
    hours: dict[str, float] = {}
    for name in names:
        if name in GROUPS:
            hours |= division[name]
        elif name in known:
            hours[name] = known[name]
        else:
            raise ValueError(f"--voices {name}: not in {VOICES_FILE.name}: {', '.join(known)}")
    return hours


def plan(
    sentences: list[str], hours: dict[str, float], seed: int, suffix: str = "flac"
) -> list[Task]:
    """All recordings, in the order in which they are made: all voices grow together."""
    tasks = []
    for voice, wanted in hours.items():
        seconds = 0.0
        for number in texts.order(sentences, voice, seed):
            if seconds >= wanted * 3600:
                break
            share = seconds / (wanted * 3600)
            tasks.append(Task(share, voice, sentences[number], number, suffix))
            seconds += len(sentences[number]) / CHARACTERS_PER_SECOND
    return sorted(tasks, key=lambda task: task.share)


_worker: tuple[Any, Any] | None = None


def _prepare(styles: Path | None) -> None:
    """A process of the pool: its normalizer and its teachers."""
    global _worker
    from teachers import Teachers

    from sheen.text.normalization import describe, load_normalizer

    _worker = load_normalizer(describe("en")), Teachers(styles)


def _make(output: Path, task: Task) -> dict[str, Any]:
    """Speak one task to its file; its line of the record."""
    from teachers import RATE, Unspeakable

    assert _worker is not None
    normalize, teachers = _worker
    spoken = normalize(task.text)
    try:
        samples = teachers.speak(spoken, task.voice)
    except Unspeakable as error:
        return {"id": task.id, WRITTEN: task.text, "refused": str(error)}
    path = output / task.path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    soundfile.write(unfinished, samples, RATE, **FORMATS[task.suffix])
    os.replace(unfinished, path)
    return {
        "id": task.id,
        "audio": task.path,
        "text": spoken,
        "speaker": task.voice,
        "seconds": round(len(samples) / RATE, 3),
        WRITTEN: task.text,
    }


def read_record(output: Path) -> dict[str, dict[str, Any]]:
    """Lines of the record by id; a line cut off by a kill is done again."""
    lines: dict[str, dict[str, Any]] = {}
    path = output / RECORD
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        lines[row["id"]] = row
    return lines


def check_same_texts(output: Path, tasks: list[Task]) -> None:
    """ValueError where a recording of the folder has another text than its task, or another format.

    Ids are by a text's number: with another seed the same id is another text.
    """
    record = read_record(output)
    for task in tasks:
        row = record.get(task.id, {})
        # A line of a version that did not keep it has none.
        if row.get(WRITTEN, task.text) != task.text:
            raise ValueError(
                f"--output {output} holds other texts: {task.id} is {row[WRITTEN]!r} in {RECORD}, "
                f"now {task.text!r}. Resume with the same --seed and --texts, or name another "
                "--output"
            )
        if row.get("audio", task.path) != task.path:
            raise ValueError(
                f"--format {task.suffix}: --output {output} holds {row['audio']}. Resume with the "
                "same --format, or name another --output"
            )


def speak_all(output: Path, tasks: list[Task], styles: Path | None, processes: int) -> None:
    """Make what the record does not have, a line of progress every ten seconds."""
    record = read_record(output)
    left = [task for task in tasks if task.id not in record]
    print(f"{len(tasks) - len(left)} recordings are there, {len(left)} to make", file=sys.stderr)
    started = said = time.monotonic()
    seconds = 0.0
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(processes, context, _prepare, (styles,)) as pool,
        (output / RECORD).open("a", encoding="utf-8") as log,
    ):
        log.write("\n")  # a line that was cut off ends here
        for done, row in enumerate(_in_turn(pool, output, left, 4 * processes), start=1):
            log.write(json.dumps(row, ensure_ascii=False) + "\n")
            log.flush()
            seconds += row.get("seconds", 0.0)
            now = time.monotonic()
            if now > said + 10 or done == len(left):
                said = now
                hours = (len(left) - done) * (now - started) / done / 3600
                print(
                    f"{done} of {len(left)}, {seconds / 3600:.2f} h of speech, "
                    f"{seconds / (now - started):.1f} x realtime, {hours:.1f} h left",
                    file=sys.stderr,
                )


def _in_turn(
    pool: ProcessPoolExecutor, output: Path, tasks: list[Task], ahead: int
) -> Iterator[dict[str, Any]]:
    """Results as they come, with no more than `ahead` under way."""
    queue, running = iter(tasks), set()
    for task in queue:
        running.add(pool.submit(_make, output, task))
        if len(running) >= ahead:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    for future in running:
        yield future.result()


def write_manifests(output: Path, division: dict[str, Any], for_codecs: bool = True) -> None:
    """VOICE.jsonl of every voice in the record, and codec.jsonl of what a codec may hear."""
    rows: dict[str, list[dict[str, Any]]] = {}
    refused = 0
    for row in read_record(output).values():
        if "refused" in row:
            refused += 1
        else:
            row.pop(WRITTEN, None)
            rows.setdefault(row["speaker"], []).append(row)
    limits = dict(division["codec"])
    limits |= dict.fromkeys(division["cloning_train"], limits.pop("cloning_train"))
    for_codec = []
    for voice, members in sorted(rows.items()):
        members.sort(key=lambda row: row["id"])
        _write(output / f"{voice}.jsonl", members)
        hours = sum(row["seconds"] for row in members) / 3600
        print(f"{voice}: {len(members)} recordings, {hours:.2f} h", file=sys.stderr)
        seconds = 0.0
        for row in members:
            if seconds >= limits.get(voice, 0.0) * 3600:
                break
            for_codec.append(row)
            seconds += row["seconds"]
    if for_codecs:
        _write(output / CODEC_MANIFEST, for_codec)
    print(f"{refused} texts refused by the teachers (in {RECORD})", file=sys.stderr)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    unfinished = path.with_suffix(".tmp")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    unfinished.write_text("".join(lines), "utf-8")
    os.replace(unfinished, path)


def positive(text: str) -> float:
    """The type of --hours."""
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the English corpus, or resume making it.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write or continue")
    parser.add_argument(
        "--voices",
        nargs="+",
        default=["base", "cloning_train"],
        help=f"voices or groups ({', '.join(GROUPS)}) of voices.yaml (default: %(default)s)",
    )
    parser.add_argument("--hours", type=positive, help="of each voice, instead of voices.yaml's")
    parser.add_argument("--styles", type=Path, help="package/voices of the npm package kokoro-js")
    parser.add_argument("--seed", type=int, default=0, help="of texts and their order (default: 0)")
    parser.add_argument(
        "--texts", type=Path, help="file of a text a line, instead of WordNet's and composed ones"
    )
    parser.add_argument(
        "--held-out", action="store_true", help="--texts may be held out: to score, not to train on"
    )
    parser.add_argument("--format", choices=FORMATS, default="flac", help="(default: %(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument(
        "--manifests", action="store_true", help="write the manifests of what is there, and end"
    )
    args = parser.parse_args(argv)
    division = yaml.safe_load(VOICES_FILE.read_text("utf-8"))
    if args.manifests:
        if not (args.output / RECORD).exists():
            parser.error(f"--manifests: {args.output / RECORD} is missing: nothing was made there")
    else:
        from teachers import check_voices  # which imports the voices' packages

        try:
            hours = wanted_hours(division, args.voices)
            check_voices(hours, args.styles)
            sentences = (
                texts.of_file(args.texts, args.held_out)
                if args.texts
                else texts.sentences(args.seed)
            )
            if args.hours is not None:
                hours = dict.fromkeys(hours, args.hours)
            tasks = plan(sentences, hours, args.seed, args.format)
            check_same_texts(args.output, tasks)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        args.output.mkdir(parents=True, exist_ok=True)
        speak_all(args.output, tasks, args.styles, args.processes)
    write_manifests(args.output, division, for_codecs=args.texts is None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
