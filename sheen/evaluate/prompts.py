"""The prompts of an evaluation, planned before any worker starts.

Owns the list of prompts, each with its voice, which prompts are skipped and why, and the check of
the output folder: an evaluation resumes its own output and refuses any other. Owns reading the
references of `--references`: of an LJSpeech folder or a .jsonl manifest with speakers, the first
row of each speaker. Using them in a prompt is `sheen.engine.reference`'s.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from sheen.codec.info import describe_codec
from sheen.data.corpus import plain_rows
from sheen.data.prompts import Prompt
from sheen.evaluate.config import EvaluateConfig
from sheen.evaluate.output import PROMPT_SCHEMA
from sheen.lm.checkpoint import INFO_FILE, CheckpointInfo
from sheen.runs.output import check_fingerprint, folder_digest, forget_idle_run, is_unused
from sheen.scoring.asr.whisper import NAMES
from sheen.scoring.speaker_id import ALL, SpeakerProfiles
from sheen.storage import files, uris
from sheen.text.prompt import normalize

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"

_FILE_NAME = re.compile(r"[\w.-]+")
_FREE_FIELDS = {
    "config", "output", "num_workers", "gpu", "model", "prompts",
    "voice_recordings", "references", "codec", "info",
}  # fmt: skip
"""Fields that may differ when an evaluation resumes: apart from rounding they do not affect the
speech, except from `model` on, which are compared by content."""


@dataclass(frozen=True)
class ReferenceRecording:
    """A recording's file and its transcript."""

    data: bytes
    text: str


def read_references(location: str) -> dict[str, ReferenceRecording]:
    """The references of a file by speaker. Raises ValueError naming the file and the row."""
    found: dict[str, ReferenceRecording] = {}
    for row in plain_rows(uris.absolute(location)):
        speaker = normalize(row["speaker"] or "")  # as in prompts
        if not speaker or speaker in found:
            continue
        if row["reason"] is not None:
            raise ValueError(f"{location}, {row['source']}: {row['reason']}: {row['detail']}")
        found[speaker] = ReferenceRecording(files.read_bytes(row["audio"]), row["text"])
    if not found:
        raise ValueError(f"{location}: no row has a speaker")
    return found


def references_digest(references: Mapping[str, ReferenceRecording]) -> str:
    """A hash of voices, recordings and transcripts."""
    parts = [
        (voice, hashlib.sha256(recording.data).hexdigest(), recording.text)
        for voice, recording in references.items()
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """The prompts to synthesize, each with its voice, and how many were skipped, by reason."""

    prompts: list[Prompt]
    skipped: Counter[str]


def plan_prompts(
    listed: list[Prompt],
    info: CheckpointInfo,
    config: EvaluateConfig,
    references: Collection[str] = (),
) -> Plan:
    """Apply the flags to a list of prompts; `references`: voices with a reference. Raises
    ValueError naming the flag."""
    for voice in references:
        if voice in info.voices or voice in config.untrained_voices:
            raise ValueError(
                f"--references: the checkpoint already has the voice {voice!r}; rename the speaker "
                "of the reference"
            )
    # Speakers are descriptions in words, of which there is no list.
    described = info.prompt.describes and not info.voices and not config.untrained_voices
    known = list(dict.fromkeys([*info.voices, *config.untrained_voices, *references]))
    wanted = list(dict.fromkeys(config.voices)) if config.voices else known
    for voice in wanted:
        if voice not in known and not described:
            raise ValueError(
                f"--voices {voice}: the checkpoint has "
                + (", ".join(known) if known else "one voice, without a name")
            )
    if not info.follows_instructions and any(prompt.instruction for prompt in listed):
        logger.warning(
            "--prompts %s: the checkpoint was not trained with instructions; those of the list are "
            "ignored",
            config.prompts,
        )
        listed = [replace(prompt, instruction=None) for prompt in listed]
    skipped: Counter[str] = Counter()
    prompts: list[Prompt] = []
    for prompt in listed:
        if not known and not described:
            prompts.append(replace(prompt, speaker=None))
        elif prompt.speaker is None:
            prompts += [replace(prompt, speaker=voice) for voice in wanted] or [prompt]
        elif prompt.speaker in wanted or (described and not config.voices):
            prompts.append(prompt)
        elif prompt.speaker in known or described:
            skipped[f"voice {prompt.speaker!r} is not in --voices"] += 1
        else:
            skipped[f"the checkpoint has no voice {prompt.speaker!r}"] += 1
    if not prompts:
        raise ValueError(
            f"--prompts {config.prompts}: none is for {' or '.join(wanted)} "
            f"({', '.join(f'{count} x {reason}' for reason, count in skipped.items())})"
        )
    if any(prompt.speaker == ALL for prompt in prompts):
        raise ValueError(
            f"a voice cannot be named {ALL!r}: reports use this name for all voices together; "
            "rename the voice, or leave it out of --voices and --prompts"
        )
    if config.per_voice is not None:
        prompts = _spread(prompts, config.per_voice)
    if config.audio == "files":
        _check_names(prompts)
    return Plan(prompts, skipped)


def check_enrolled(location: str, enrolled: Collection[str], prompts: list[Prompt]) -> None:
    """Raise ValueError if no voice of the prompts is in `enrolled`; warn if some are not, which
    then have no speaker accuracy and similarity."""
    voices = dict.fromkeys(prompt.speaker for prompt in prompts)
    missing = [voice or "the voice without a name" for voice in voices if voice not in enrolled]
    if not missing:
        return
    about = (
        f"--voice-recordings {location}: no recordings of {', '.join(missing)}; it has "
        f"{', '.join(enrolled)}"
    )
    if len(missing) == len(voices):
        raise ValueError(
            f"{about}: name speakers there as the voices, or leave --voice-recordings out"
        )
    logger.warning("%s: speaker accuracy and similarity are of the other voices alone", about)


def _spread(prompts: list[Prompt], per_voice: int) -> list[Prompt]:
    """At most `per_voice` prompts of each voice, from its first to near its last."""
    groups: dict[str | None, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.speaker, []).append(prompt)
    return [
        own[place * len(own) // count]
        for own in groups.values()
        for count in [min(per_voice, len(own))]
        for place in range(count)
    ]


def _check_names(prompts: list[Prompt]) -> None:
    """Raise ValueError unless every prompt has a valid and unique file name."""
    seen: set[tuple[str | None, str]] = set()
    for prompt in prompts:
        for part in [prompt.id] + ([] if prompt.speaker is None else [prompt.speaker]):
            if not _FILE_NAME.fullmatch(part) or not part.strip("."):
                raise ValueError(
                    f"--audio files: {part!r} (prompt {prompt.id!r}) is not a valid file name; use "
                    "letters, digits, '.', '_' and '-', or give --audio parquet"
                )
        if (prompt.speaker, prompt.id) in seen:
            raise ValueError(
                f"--audio files: two prompts have the id {prompt.id!r}; give each its own, or "
                "--audio parquet"
            )
        seen.add((prompt.speaker, prompt.id))


def prepare_output(
    output: str,
    config: EvaluateConfig,
    model: str,
    info: CheckpointInfo,
    prompts: list[Prompt],
    profiles: SpeakerProfiles | None,
    references: Mapping[str, ReferenceRecording] = MappingProxyType({}),
) -> None:
    """Refuse a folder that holds something else, or another evaluation."""
    where = uris.join(output, RUN_FILE)
    forget_idle_run(output, RUN_FILE)
    if not is_unused(output) and not files.exists(where):
        raise ValueError(
            f"--output {output} is not empty and not an evaluation; give another folder"
        )
    fields = config.model_dump(mode="json")
    decided = {name: value for name, value in fields.items() if name not in _FREE_FIELDS}
    for name in sorted(files.list_names(model)):
        if name.endswith((".safetensors", ".bin", ".json")):
            decided[f"{name} of the model"] = files.sha256(uris.join(model, name))
    decided["codec sha256"] = info.codec.sha256
    if config.codec is not None and files.exists(uris.join(model, INFO_FILE)):  # in its place
        decided["codec sha256"] = describe_codec(config.codec).sha256
    decided["info sha256"] = files.sha256(config.info) if config.info else None
    if config.asr and config.asr not in NAMES and Path(config.asr).expanduser().is_dir():
        decided["asr"] = folder_digest(uris.absolute(config.asr))
    if references:
        decided["references sha256"] = references_digest(references)
    else:  # as in evaluations from before this field existed
        decided.pop("reference_form")
    decided["voice recordings"] = profiles.digest if profiles else None
    # Without an instruction as in evaluations from before there were any.
    told = [astuple(prompt)[: 3 if prompt.instruction is None else 4] for prompt in prompts]
    texts = json.dumps(told)
    decided["prompts sha256"] = hashlib.sha256(texts.encode()).hexdigest()
    since = ("voice recordings", "codec sha256", "info sha256")
    if changed := check_fingerprint(where, decided, since):
        raise ValueError(
            f"--output {output} is of another evaluation: {changed}. Give the same values to "
            "resume it, or another folder."
        )


def prompt_table(prompts: list[Prompt]) -> pa.Table:
    """The prompts with PROMPT_SCHEMA."""
    rows = [{"key": key} | asdict(prompt) for key, prompt in enumerate(prompts)]
    return pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA)
