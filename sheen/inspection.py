"""`sheen inspect MODEL`: describe a checkpoint, measure its speech rates, and write `sheen.json`.

Owns the description and the measurement of a checkpoint that others trained, and the place of its
record: a file that the user names, or `sheen.json` next to the weights in a local folder. Never
writes into a hub cache, and never overwrites a record.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sheen.codec.info import DEFAULT_CODEC
from sheen.config import errors_of, fail
from sheen.data.corpus import read_lines
from sheen.engine.engine import Engine
from sheen.engine.synthesis import synthesize_all
from sheen.engine.types import RequestError, SynthesisParams
from sheen.engine.voice import Voice, load_voice
from sheen.lm.checkpoint import INFO_FILE, CheckpointInfo, DurationModel, fit_durations
from sheen.lm.recognition import describe_checkpoint
from sheen.speaker import checked_device
from sheen.storage import files, folders, hub, uris
from sheen.text.prompt import normalize

TEXTS = (
    "Yes, of course.",
    "The train leaves at noon from the other side.",
    "Nobody in the village had ever seen a harbour this quiet.",
    "We measured the garden twice, and both times the fence was longer than before.",
    "If you walk along the river until the old mill, you will find the bakery on your left, next "
    "to a shop that sells nothing but blue umbrellas.",
    "She read the letter slowly, put it back into its envelope, and said the answer could wait "
    "until the morning, when the boats would be back and everybody had slept.",
)
"""English texts of different lengths; `--texts` replaces them for other languages."""
SLOTS = 8
MAX_SECONDS = 30.0


def describe(info: CheckpointInfo) -> Iterator[str]:
    """Lines that describe a checkpoint."""
    layout, sampling = info.token_layout, info.sampling_settings
    yield (
        f"layout: {layout.family}, {layout.tokens_per_frame} x {layout.codebook_size:,} codes per "
        f"frame, first id {layout.first_id}, start {layout.start_id}, end {layout.end_id}"
    )
    yield f"ids of code 0 by slot: {', '.join(map(str, layout.slot_bases.tolist()))}"
    yield f"codec: {info.codec.source}, {info.sample_rate} Hz, weights {info.codec.sha256[:12]}"
    yield f"prompt form: {info.prompt.name}; softmax in training: {info.softmax}"
    voices = "any, described in words" if info.prompt.describes else "one, without a name"
    yield f"voices: {', '.join(info.voices) or voices}"
    if info.follows_instructions:
        yield "instructions: followed"
    if info.tags:
        yield f"tags: {' '.join(info.tags)}"
    if sampling:
        yield f"sampling: {', '.join(f'{name} {value}' for name, value in sampling.items())}"
    yield f"longest text of a chunk: {info.max_chunk_chars or 'unknown'} characters"


def measure(
    voice: Voice, texts: Sequence[str], seed: int = 0
) -> tuple[dict[str, DurationModel], list[str]]:
    """The duration model of each voice, and a line of results for each voice.

    Uses texts that fit into one chunk and whose speech ended with EOS. A voice with fewer than two
    of those keeps its duration model.
    """
    speakers: list[str | None] = list(voice.info.voices) or [None]
    per_second = voice.codec.sample_rate / voice.codec.frame_samples
    plan = []
    for speaker in speakers:
        longest = voice.max_chunk_chars(MAX_SECONDS, speaker)
        plan += [(speaker, text) for text in texts if len(text) <= longest]
    engine = Engine(
        voice.model, voice.codec, slots=SLOTS, max_seq_len=voice.max_seq_len(MAX_SECONDS)
    )
    try:
        spoken = synthesize_all(
            engine,
            voice,
            [
                (text, SynthesisParams(speaker, voice.sampling(seed + number), MAX_SECONDS))
                for number, (speaker, text) in enumerate(plan)
            ],
        )
    finally:
        engine.close()
    found, lines = dict(voice.info.duration_model), []
    for speaker in speakers:
        characters, frames, said = [], [], 0
        for (who, _), result in zip(plan, spoken, strict=True):
            if who != speaker or isinstance(result, RequestError):
                continue
            said += 1
            if result.finish_reason == "stop":
                characters.append(len(result.model_input))
                frames.append(len(result.samples) / voice.codec.frame_samples)
        name = speaker or "the voice"
        if len(frames) < 2:
            lines.append(
                f"{name}: {len(frames)} of {said} texts ended with EOS, too few to measure; the "
                "published figures are kept"
            )
            continue
        line = found[speaker or ""] = fit_durations(characters, frames)
        pace = per_second / line.frames_per_char
        lines.append(
            f"{name}: {pace:.1f} characters per second plus {line.base_frames / per_second:.2f} s, "
            f"from {len(frames)} of {said} texts"
        )
    return found, lines


def target_of(model: str, output: str | None) -> str | None:
    """Where to write the record; None for nowhere. ValueError for an `--output` that exists, or
    that is in the hub's cache."""
    if output is not None:
        if not uris.is_uri(output) and hub.is_in_cache(Path(output).expanduser()):
            raise ValueError(
                f"--output {output}: this is in the hub's cache; give a file elsewhere"
            )
        if files.exists(output):
            raise ValueError(f"--output {output}: the file exists; give another name")
        return output
    if hub.is_hub_id(model) or uris.is_uri(model) or hub.is_in_cache(Path(model).expanduser()):
        return None
    target = str(Path(model).expanduser() / INFO_FILE)
    return None if files.exists(target) else target


def main(argv: list[str], prog: str) -> int:
    parser = argparse.ArgumentParser(
        prog,
        description="Describe a checkpoint, measure the speech rate of its voices, and write its "
        "sheen.json.",
    )
    add = parser.add_argument
    add("model", help="checkpoint: a folder, a URI or a hub id")
    add("--form", help="its prompt form, if the tokenizer does not show it")
    add("--codec", help=f"its SNAC codec, folder or hub id (default: {DEFAULT_CODEC})")
    add(
        "--voices",
        nargs="*",
        metavar="NAME",
        help="its voices, the first is the default; without a name: one, which has none (default: "
        "those of the form)",
    )
    add(
        "--output",
        metavar="FILE",
        help="file for --info and the server's args.info (default: sheen.json next to the weights "
        "of a local folder)",
    )
    add(
        "--texts",
        metavar="FILE",
        help="texts for the measurement, one per line (default: six in English)",
    )
    add(
        "--measure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the speech rate of every voice",
    )
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        device = checked_device(options.device)
        target = target_of(options.model, options.output)
        texts: Sequence[str] = TEXTS
        if options.texts is not None:
            with errors_of("--texts"):
                lines = read_lines(uris.absolute(options.texts))
                if not (texts := [line for line in map(str.strip, lines) if line]):
                    raise ValueError(f"{options.texts}: expected a text a line, and it has none")
        folder = hub.located(options.model)
        if not files.exists(folder):
            raise ValueError(f"model {options.model}: no such folder")
        info = describe_checkpoint(folder, form=options.form, codec=options.codec)
        if options.voices is not None:
            pace = next(iter(info.duration_model.values()), None)
            info.voices = list(dict.fromkeys(map(normalize, options.voices)))
            info.duration_model = dict.fromkeys(info.voices or [""], pace) if pace else {}
        print("\n".join(describe(info)), flush=True)
        if target is None:  # said before minutes of measuring
            exists = files.exists(uris.join(folder, INFO_FILE))
            why = f"{INFO_FILE} exists" if exists else "no file is named"
            print(
                f"only printed, {why}: give --output FILE to write it", file=sys.stderr, flush=True
            )
        if options.measure:
            voice = load_voice(folder, device, form=options.form, codec=options.codec)
            voice = Voice(info, voice.model, voice.tokenizer, voice.codec)
            info.duration_model, lines = measure(voice, texts)
            print("\n".join(lines), flush=True)
        if target is not None:
            files.write_bytes(target, folders.dump_record(info))
            print(f"written to {target}")
    except (ValueError, OSError) as error:
        return fail(prog, error)
    return 0
