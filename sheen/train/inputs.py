"""The inputs of the train job: data, codec and base, and whether they fit together.

Owns the checkpoint's record, which is known before any weight is loaded, and the identity of the
inputs. Refuses data of several normalizers, or of codecs that make different codes, as a
checkpoint's must not; errors name the flag.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyarrow import fs
from transformers import AutoConfig, AutoTokenizer

from sheen.codec.identity import makes_same_codes
from sheen.codec.info import (
    DEFAULT_CODEC,
    CodecInfo,
    codec_source,
    describe_codec,
    find_codec,
)
from sheen.codec.layout import TokenLayout
from sheen.data import dataset
from sheen.lm import base_model, checkpoint
from sheen.lm.recognition import identify
from sheen.runs.output import folder_digest
from sheen.storage import files, folders, uris
from sheen.text.steps import NfcSpaceStep, NormalizerStep, phoneme_step, text_normalization

logger = logging.getLogger(__name__)


def codec_of(locations: Sequence[str], codec: str | None, model: str) -> tuple[CodecInfo, str]:
    """The new checkpoint's codec and the location of its files: `codec`, or else the one of the
    checkpoint `model`, or else the data's.

    The others must make the same codes; their decoders may differ.
    """
    found = [
        (f"--data {location}", "was encoded with", *_codec_of_data(location, codec))
        for location in locations
    ]
    extends = files.exists(uris.join(model, checkpoint.INFO_FILE))
    if extends:
        own = checkpoint.read_info(model).codec
        found.insert(0, (f"--model {model}", "generates codes of", own, codec_source(model, own)))
    if codec is not None:
        given = describe_codec(codec), str(find_codec(codec).resolve())
        found.insert(0, (f"--codec {codec}", "is", *given))
    (flag, _, chosen, source), *others = _with_files(found)
    advice = "the recordings with the checkpoint's codec" if extends else "both with the same codec"
    for other, verb, info, its_source in others:
        if not makes_same_codes(chosen, source, info, its_source):
            raise ValueError(
                f"{other} {verb} another codec ({info.source}, weights {info.sha256[:12]}) than "
                f"{flag} ({chosen.source}, {chosen.sha256[:12]}); encode {advice}"
            )
    return chosen, source


Origin = tuple[str, str, CodecInfo, str]
"""Of a codec: the flag with its value, what that does with it, the record, and the location."""


def _with_files(found: Sequence[Origin]) -> list[Origin]:
    """The same, with the location of another one of the same weights where a folder is missing.
    Raises ValueError where there is none."""
    places = {
        info.sha256: source
        for _, _, info, source in reversed(found)
        if not info.embedded or files.exists(source)
    }
    for flag, _, info, source in found:
        if info.sha256 not in places:
            raise ValueError(
                f"{flag}: there is no {source}: the model folders of a run hold no codec. Copy "
                f"{info.source} there (weights {info.sha256[:12]})"
            )
    return [(flag, verb, info, places[info.sha256]) for flag, verb, info, _ in found]


def _codec_of_data(location: str, codec: str | None) -> tuple[CodecInfo, str]:
    if files.kind(location) == fs.FileType.NotFound:
        raise ValueError(f"--data {location}: no such file or folder")
    if files.kind(location) == fs.FileType.File:
        if codec is None:
            raise ValueError(
                f"--data {location}: a file of codes does not record its codec; give --codec (hub "
                "id or folder)"
            )
        return describe_codec(codec), codec
    info = dataset.read_info(location).codec
    return info, codec_source(location, info)


def normalizer_of(
    locations: Sequence[str], model: str, info: checkpoint.CheckpointInfo
) -> tuple[NormalizerStep, ...]:
    """The normalization steps of the data's texts, and the prompt's own step after them.

    `info`: that of the model before training. Files of codes record none and are not checked.
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
    trained = info.text_normalization
    lost = phoneme_step(info.normalizer) is not None and phoneme_step(steps) is None
    if trained is not None and (not steps or lost):
        raise ValueError(
            f"--data {first} has {_texts(steps)}, but the checkpoint {model} was trained on "
            f"{_texts(info.normalizer)}; encode with --language {trained.language}"
            + (" --phonemes" if lost else "")
        )
    return (*steps, NfcSpaceStep())


def tags_of(locations: Sequence[str], tags: Sequence[str] | None) -> list[str]:
    """The tags of the model: those in `tags`, else those of the data. Raises ValueError for a tag
    that text normalization has changed in the data."""
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
                f"--tags {lost[0]}: --data {location} was normalized without this tag; encode with "
                f"--tags {','.join(tag.strip('<>') for tag in tags)}"
            )
    return sorted(set(tags))


def _texts(steps: Sequence[NormalizerStep]) -> str:
    if (step := text_normalization(steps)) is None:
        return "texts without normalization"
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
    """A hash of a folder's files; a hub id itself, whose content is not compared."""
    if not uris.is_uri(model) and not Path(model).is_dir():
        return model
    return folder_digest(model, (".safetensors", ".bin", ".json"))


def plan_checkpoint(
    model: str,
    codec: CodecInfo,
    tags: Sequence[str] = (),
    form: str | None = None,
    *,
    named: bool = False,
) -> tuple[checkpoint.CheckpointInfo, Any, bool]:
    """The checkpoint's record, known before any weight is loaded; the tokenizer; and whether the
    codec's tokens must be added to the base.

    `form`: prompt form of a checkpoint of the Orpheus family. `named`: the user named the codec,
    and did not leave it to the data.
    """
    with folders.local_folder(model, weights=False) as folder:
        try:
            if folder.is_dir() and not uris.is_uri(model):  # a copy from a URI has no weights
                base_model.check_files(folder)
        except ValueError as error:
            raise ValueError(f"--model {model}: {error}") from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
            base = AutoConfig.from_pretrained(str(folder))
        except Exception as error:  # the readers of third-party files may raise anything
            raise ValueError(
                f"--model {model}: neither a transformers folder nor a model on the hub ({error})"
            ) from error
        if checkpoint.is_checkpoint(folder):
            info = checkpoint.read_info(model)
            lost = [tag for tag in tags if tag not in info.tags]
            if lost and info.layout.family == "sheen":
                raise ValueError(
                    f"--tags {lost[0]}: the checkpoint {model} has "
                    f"{', '.join(info.tags) or 'no tags'}; new tags need a base model"
                )
            if form is not None and info.prompt.name != form:
                raise ValueError(
                    f"--form {form}: the checkpoint {model} was trained with {info.prompt.name!r}; "
                    "omit --form"
                )
            info.codec = codec
            info.tags += lost  # encoded as letters, as all tags of the family
            return _with_voices_of_training(info), tokenizer, False
    try:
        foreign = identify(tokenizer.get_vocab(), base, codec, form)
    except ValueError as error:
        raise ValueError(f"--model {model}: {error}") from error
    if foreign is not None:
        if codec.source != DEFAULT_CODEC and not named:
            logger.warning(
                "--model %s does not say which codec it was trained with, and the data was encoded "
                "with %s (weights %s). If that is not the model's, encode with it (%s); if it is, "
                "name it with --codec",
                model,
                codec.source,
                codec.sha256[:12],
                DEFAULT_CODEC,
            )
        foreign.tags = list(dict.fromkeys([*foreign.tags, *tags]))
        return _with_voices_of_training(foreign), tokenizer, False
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


def _with_voices_of_training(info: checkpoint.CheckpointInfo) -> checkpoint.CheckpointInfo:
    """The voices of a checkpoint that others trained are those of its new training data, whether
    `sheen inspect` described it or not."""
    if info.imported:
        info.voices, info.duration_model, info.max_chunk_chars = [], {}, None
        info.imported = None
    return info
