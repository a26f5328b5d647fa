"""What the train job is given: data, codec and base, and whether they fit together.

Owns what a run will write about itself before any weight is loaded, and the identity of its inputs.
Refuses data of several codecs or normalizers, and a checkpoint of another codec, by the flag.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyarrow import fs
from transformers import AutoConfig, AutoTokenizer

from sheen.codec import info as dataset_info
from sheen.codec.info import CodecInfo, describe_codec, find_codec
from sheen.codec.layout import CUSTOM_TOKEN, TokenLayout
from sheen.data import dataset
from sheen.lm import base_model, checkpoint
from sheen.lm.recognition import identify
from sheen.runs.output import folder_digest
from sheen.storage import files, folders, uris
from sheen.text.steps import NfcSpaceStep, NormalizerStep, phoneme_step, text_normalization


def codec_of(locations: Sequence[str], codec: str | None) -> tuple[CodecInfo, str]:
    """The codec that made all of the data, and where its files are."""
    (first, source), *others = [_codec_of_one(location, codec) for location in locations]
    for location, (other, _) in zip(locations[1:], others, strict=True):
        if other.sha256 != first.sha256:
            raise ValueError(
                f"--data {location} was made by another codec ({other.source}, weights "
                f"{other.sha256[:12]}) than {locations[0]} ({first.source}, {first.sha256[:12]}); "
                "encode both with one"
            )
    return first, source


def _codec_of_one(location: str, codec: str | None) -> tuple[CodecInfo, str]:
    if files.kind(location) == fs.FileType.NotFound:
        raise ValueError(f"--data {location}: no such file or folder")
    if files.kind(location) == fs.FileType.File:
        if codec is None:
            raise ValueError(
                f"--data {location}: a file of codes does not say which codec made them; "
                "give --codec (hub id or folder)"
            )
        return describe_codec(codec), str(find_codec(codec).resolve())
    info = dataset.read_info(location).codec
    if codec is not None and describe_codec(codec).sha256 != info.sha256:
        raise ValueError(
            f"--codec {codec} is not the codec that made {location} ({info.source}, weights "
            f"{info.sha256[:12]}); leave --codec out"
        )
    return info, dataset_info.codec_source(location, info)


def normalizer_of(
    locations: Sequence[str], model: str, info: checkpoint.CheckpointInfo
) -> tuple[NormalizerStep, ...]:
    """The steps that the texts of the data have gone through, and the prompt's own after them.

    `info` is the model's so far. A file of codes does not say, and goes with the others.
    """
    found = {
        location: dataset.read_info(location).normalizer
        for location in locations
        if files.kind(location) == fs.FileType.Directory
    }
    if not found:
        return info.normalizer
    (first, steps), *others = found.items()
    for location, other in others:
        if other != steps:
            raise ValueError(
                f"--data {location} has {_texts(other)}, {first} has {_texts(steps)}; "
                "encode both with the same --language and --phonemes"
            )
    taught = info.text_normalization
    lost = phoneme_step(info.normalizer) is not None and phoneme_step(steps) is None
    if taught is not None and (not steps or lost):
        raise ValueError(
            f"--data {first} has {_texts(steps)}, the checkpoint {model} was taught "
            f"{_texts(info.normalizer)}; encode with --language {taught.language}"
            + (" --phonemes" if lost else "")
        )
    return (*steps, NfcSpaceStep())


def tags_of(locations: Sequence[str], tags: Sequence[str] | None) -> list[str]:
    """The tags that the model is to know: those asked for, else those that the data kept. Raises
    ValueError for one that text normalization has read as words."""
    found = {
        location: dataset.read_info(location)
        for location in locations
        if files.kind(location) == fs.FileType.Directory
    }
    if tags is None:
        return sorted({tag for info in found.values() for tag in info.tags})
    for location, info in found.items():
        lost = [tag for tag in tags if tag not in info.tags]
        if lost and info.text_normalization is not None:
            raise ValueError(
                f"--tags {lost[0]}: --data {location} was normalized without keeping it; encode "
                f"with --tags {','.join(tag.strip('<>') for tag in tags)}"
            )
    return sorted(set(tags))


def _texts(steps: Sequence[NormalizerStep]) -> str:
    if (step := text_normalization(steps)) is None:
        return "texts as they are"
    words = (
        f"texts normalized as {step.language!r} by {step.name} {step.version} ({step.segmentation})"
    )
    if (sounds := phoneme_step(steps)) is None:
        return words
    return f"{words}, as phonemes of {sounds.library} {sounds.version} ({sounds.alphabet})"


def model_source(model: str) -> str:
    """A folder made absolute; a URI or a hub id as it is."""
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if not uris.is_uri(model) and (model.startswith(("/", ".", "~")) or model.count("/") > 1):
        raise ValueError(f"--model {model}: no such folder")
    return model


def model_content(model: str) -> str:
    """A hub id as it is: its owner answers for what it holds."""
    if not uris.is_uri(model) and not Path(model).is_dir():
        return model
    return folder_digest(model, (".safetensors", ".bin", ".json"))


def plan_checkpoint(
    model: str, codec: CodecInfo, tags: Sequence[str] = (), form: str | None = None
) -> tuple[checkpoint.CheckpointInfo, Any, bool]:
    """What the run will write about itself, known before any weight is loaded.

    The tokenizer, and whether the base lacks the codec's tokens. `form`: of one that others taught
    them.
    """
    with folders.local_folder(model, weights=False) as folder:
        try:
            if folder.is_dir() and not uris.is_uri(model):  # a copy is without weights
                base_model.check_files(folder)
        except ValueError as error:
            raise ValueError(f"--model {model}: {error}") from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
            base = AutoConfig.from_pretrained(str(folder))
        except Exception as error:  # whatever the many readers of foreign files raise
            raise ValueError(
                f"--model {model}: neither a transformers folder nor a model the hub gave ({error})"
            ) from error
        if checkpoint.is_checkpoint(folder):
            info = checkpoint.read_info(model)
            if info.codec.sha256 != codec.sha256:
                raise ValueError(
                    f"--data was encoded with {codec.source} (weights {codec.sha256[:12]}), the "
                    f"checkpoint {model} generates codes of {info.codec.source} (weights "
                    f"{info.codec.sha256[:12]}): encode the recordings with the checkpoint's codec"
                )
            lost = [tag for tag in tags if tag not in info.tags]
            if lost and info.layout.family == "sheen":
                raise ValueError(
                    f"--tags {lost[0]}: the checkpoint {model} knows "
                    f"{', '.join(info.tags) or 'no tags'}; new ones need a base"
                )
            if form is not None and info.prompt.name != form:
                raise ValueError(
                    f"--form {form}: the checkpoint {model} was trained with {info.prompt.name!r}; "
                    "leave --form out"
                )
            info.codec = codec  # the same one, as the run's own folder will have it
            info.tags += lost  # of letters, as all tags of the family
            return info, tokenizer, False
    foreign = None
    if form is not None or CUSTOM_TOKEN.format(0) in tokenizer.get_vocab():
        try:
            foreign = identify(tokenizer, base, codec, form)
        except ValueError as error:
            raise ValueError(f"--model {model}: {error}") from error
    if foreign is not None:
        # Whom the model is made to speak as is what it is trained on now.
        foreign.voices, foreign.duration_model, foreign.max_chunk_chars = [], {}, None
        foreign.tags = list(dict.fromkeys([*foreign.tags, *tags]))
        return foreign, tokenizer, False
    try:
        positions = base_model.check_config(base)
        base_model.add_tags(tokenizer, tags)
        first_id = base_model.first_new_id(tokenizer)
    except ValueError as error:
        raise ValueError(f"--model {model}: {error}") from error
    layout = TokenLayout(first_id, codec.codebook_size, codec.strides)
    info = checkpoint.CheckpointInfo(
        layout=checkpoint.LayoutInfo.of(layout),
        codec=codec,
        sample_rate=codec.sample_rate,
        max_seq_len=positions,
        tags=list(tags),
    )
    return info, tokenizer, True
