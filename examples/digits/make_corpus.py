"""Makes the digits corpus: an LJSpeech folder of digit strings spoken by flite's voices.

Owns which strings are spoken, the held-out list that no corpus may hold, the recordings of
that list, which are a folder of their own, and the layout of both: `metadata.csv` with
`id|text|normalised text|speaker` per line, and `wavs/ID.flac`, 16 bits, at the rate flite
speaks at. Knows nothing of codes or models.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import soundfile

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
HELDOUT = HERE / "heldout.txt"
HELDOUT_SPOKEN = HERE / "heldout"

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LENGTHS = (2, 3, 4, 5, 6)  # digits in a string
VOICES = ("slt", "rms", "awb", "kal16")
PER_VOICE = {"slt": 80, "rms": 80, "awb": 80, "kal16": 200}  # kal16 is what the demo learns

Row = tuple[str, str, str]  # id, text, voice

# Of the hundred strings of two digits most must stay free for recordings.
HELDOUT_COUNTS = {2: 20, 3: 95, 4: 95, 5: 95, 6: 95}
HELDOUT_SEED = 20


def draw_digits(rng: random.Random, length: int) -> str:
    """One string of `length` digits, as words, uniform over all of them."""
    # random() is the one method whose sequence Python promises not to change.
    number = int(rng.random() * 10**length)
    return " ".join(WORDS[int(digit)] for digit in f"{number:0{length}d}")


def draw_heldout() -> list[str]:
    """The held-out strings, shortest first: the same list every time."""
    rng = random.Random(HELDOUT_SEED)
    heldout: list[str] = []
    for length, count in HELDOUT_COUNTS.items():
        drawn: set[str] = set()
        while len(drawn) < count:
            drawn.add(draw_digits(rng, length))
        heldout += sorted(drawn)
    return heldout


def draw_strings(voice: str, count: int, seed: int, heldout: AbstractSet[str]) -> list[str]:
    """`count` distinct strings for one voice, none of them in `heldout`.

    The lengths take turns until one has no strings left. A larger count continues the
    list of a smaller one, and no voice's list depends on which other voices are drawn.

    Raises ValueError when fewer than `count` such strings exist.
    """
    left = {
        length: 10**length - sum(len(text.split()) == length for text in heldout)
        for length in LENGTHS
    }
    if count > sum(left.values()):
        raise ValueError(
            f"{count} strings for voice {voice!r}: only {sum(left.values())} are not held out"
        )
    rng = random.Random(f"{seed} {voice}")
    strings: list[str] = []
    taken = set(heldout)
    while len(strings) < count:
        for length in LENGTHS:
            if len(strings) == count:
                break
            if not left[length]:
                continue
            text = draw_digits(rng, length)
            while text in taken:
                text = draw_digits(rng, length)
            taken.add(text)
            strings.append(text)
            left[length] -= 1
    return strings


def read_heldout(path: Path) -> list[str]:
    """The held-out strings of the file at `path`, in its order.

    Raises ValueError when the file is missing or a line is not a string of digits: a
    list read wrongly would let held-out strings into the corpus.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: restore it, or write it with --write-heldout")
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split(" ")
        if len(words) not in LENGTHS or not set(words) <= set(WORDS):
            raise ValueError(f"{path}, line {number}: {line!r} is not 2 to 6 digits as words")
    return lines


def write_heldout(path: Path) -> None:
    """Writes the held-out list to `path`. Raises ValueError when there is one already."""
    if path.exists():
        raise ValueError(
            f"{path} exists, and results rest on it: delete it by hand if it is to change"
        )
    path.write_text("".join(f"{text}\n" for text in draw_heldout()), encoding="utf-8")


def corpus_rows(
    heldout: Sequence[str], voices: Sequence[str], per_voice: int | None, seed: int
) -> list[Row]:
    """`per_voice` strings for each voice (None: as many as PER_VOICE says), none of them held out.

    Raises ValueError when there are not enough such strings.
    """
    avoided = frozenset(heldout)
    return [
        (f"{voice}-{number:04d}", text, voice)
        for voice in voices
        for number, text in enumerate(
            draw_strings(voice, per_voice or PER_VOICE.get(voice, 80), seed, avoided), start=1
        )
    ]


def heldout_rows(heldout: Sequence[str], voices: Sequence[str], per_voice: int | None) -> list[Row]:
    """Held-out strings for each voice, of which no other voice has any.

    The voices deal the list out among them, in the order of VOICES, so that all have the
    same mix of lengths. `per_voice` of a voice's strings are picked evenly, short to long
    (None: all of them), and its recording n is of the same string however many are picked.

    Raises ValueError for a voice that is not in VOICES or has fewer than `per_voice`.
    """
    rows = []
    for voice in voices:
        if voice not in VOICES:
            raise ValueError(
                f"voice {voice!r} has no held-out strings: they are for {', '.join(VOICES)}"
            )
        own = heldout[VOICES.index(voice) :: len(VOICES)]
        count = len(own) if per_voice is None else per_voice
        if count > len(own):
            raise ValueError(f"{count} strings for voice {voice!r}: only {len(own)} are held out")
        picked = [pick * len(own) // count for pick in range(count)]
        rows += [(f"{voice}-h{index + 1:03d}", own[index], voice) for index in picked]
    return rows


def check_flite(voices: Sequence[str]) -> None:
    """Raises ValueError unless flite is installed and has each of `voices` built in."""
    if shutil.which("flite") is None:
        raise ValueError("flite is not installed: apt-get install flite")
    listed = subprocess.run(["flite", "-lv"], check=True, capture_output=True, text=True).stdout
    known = listed.partition(":")[2].split()
    # Given a name it does not know, flite speaks with its default voice and reports success.
    unknown = [voice for voice in voices if voice not in known]
    if unknown:
        raise ValueError(f"flite has no voice {', '.join(unknown)}: it has {', '.join(known)}")


def speak(text: str, voice: str, path: Path) -> None:
    """Speaks `text` in a flite voice into the FLAC file `path`: 16 bits, the voice's rate."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(wav)], check=True)
        samples, rate = soundfile.read(wav, dtype="int16")
    # Level 1, the highest, saves 2% of the default's size and loses nothing.
    soundfile.write(path, samples, rate, format="FLAC", subtype="PCM_16", compression_level=1.0)


def write_folder(output: Path, rows: Sequence[Row]) -> None:
    """Speaks all `rows` into the folder `output`, with progress on standard error.

    Raises ValueError when `output` holds anything, or when flite or a voice of it is missing.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists and is not empty: name another --output or delete it")
    check_flite(list(dict.fromkeys(voice for _, _, voice in rows)))
    (output / "wavs").mkdir(parents=True, exist_ok=True)
    for done, (name, text, voice) in enumerate(rows, start=1):
        speak(text, voice, output / "wavs" / f"{name}.flac")
        if done % 20 == 0 or done == len(rows):
            print(f"{done} of {len(rows)} recordings", file=sys.stderr)
    # Last, so that a folder left by an interrupted run cannot pass for a corpus.
    (output / "metadata.csv").write_text(
        "".join(f"{name}|{text}|{text}|{voice}\n" for name, text, voice in rows), encoding="utf-8"
    )


def write_missing() -> None:
    """Makes CORPUS and HELDOUT_SPOKEN, whichever is not there, whole or not at all.

    Raises ValueError when flite or a voice of it is missing.
    """
    heldout = read_heldout(HELDOUT)
    for folder, rows in (
        (CORPUS, corpus_rows(heldout, VOICES, None, 0)),
        (HELDOUT_SPOKEN, heldout_rows(heldout, VOICES, None)),
    ):
        if not folder.exists():
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            write_folder(unfinished, rows)
            unfinished.rename(folder)


def positive_int(text: str) -> int:
    """An argument that must be a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; wrong use or a missing flite ends it with a message, status 2."""
    parser = argparse.ArgumentParser(
        description="Make an LJSpeech folder of digit strings spoken by flite."
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder to write (default: corpus/ beside this; with --heldout, heldout/)",
    )
    parser.add_argument(
        "--voices", nargs="+", default=VOICES, help=f"flite voices (default: {' '.join(VOICES)})"
    )
    parser.add_argument(
        "--per-voice",
        type=positive_int,
        help="recordings per voice, each of another string "
        "(default: 80, of kal16 200; with --heldout, all the strings of the voice)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="the same seed draws the same strings (default: %(default)s); "
        "--heldout draws none, and is the same for any seed",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--heldout",
        action="store_true",
        help="speak the held-out strings instead of drawn ones, each in one voice",
    )
    instead.add_argument(
        "--write-heldout",
        action="store_true",
        help="write the held-out list beside this script instead; refused when it is there",
    )
    instead.add_argument(
        "--missing",
        action="store_true",
        help="make what the demo reads and is not there: corpus/ and heldout/ beside this script",
    )
    args = parser.parse_args(argv)
    # dict.fromkeys: a voice named twice would write the same ids twice.
    voices = list(dict.fromkeys(args.voices))
    try:
        if args.write_heldout:
            write_heldout(HELDOUT)
        elif args.missing:
            write_missing()
        elif args.heldout:
            rows = heldout_rows(read_heldout(HELDOUT), voices, args.per_voice)
            write_folder(args.output or HELDOUT_SPOKEN, rows)
        else:
            rows = corpus_rows(read_heldout(HELDOUT), voices, args.per_voice, args.seed)
            write_folder(args.output or CORPUS, rows)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
