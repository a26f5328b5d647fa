"""How a job reads its configuration: one pydantic model, a YAML file, flags, `SHEEN_` variables.

Owns the order (flags over environment over file over defaults) and the messages: an unknown key
or flag is an error that suggests similar ones. An unknown variable is a warning: one environment is
that of several jobs and of a server. `--no-FIELD` unsets an optional field. Owns the definitions of
fields that several jobs share; the meaning of the others is each job's.
"""

import difflib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from sheen.codec.info import DEFAULT_CODEC
from sheen.lm.precision import Precision
from sheen.text.prompt import ReferenceForm

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound="JobConfig")
VARIABLE_PREFIX = "SHEEN_"

OneOrMore = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
"""For a list that may also be given as a single string."""
ASR_MODELS = (
    "a faster-whisper model by name (base, small.en) or as a CTranslate2 folder, or a transformers "
    "model by hub id or folder"
)
AsrLanguageField = Annotated[
    str | None,
    Field(
        description="language that a multilingual Whisper transcribes; with faster-whisper, en "
        "also normalizes English numbers, money, contractions and spellings before comparing; "
        "--no-asr-language detects it per clip"
    ),
]


class JobConfig(BaseSettings):
    """What every job on the cluster has; see `load_config`."""

    model_config = SettingsConfigDict(
        env_prefix=VARIABLE_PREFIX,  # without it, MODEL or OUTPUT in a shell would override a field
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        allow_inf_nan=False,
    )

    config: str | None = Field(None, description="YAML file with any of the fields below")
    output: Annotated[
        str,
        Field(
            description="folder for all that the job writes; absolute path or URI. The same "
            "command resumes it"
        ),
    ]
    num_workers: Annotated[
        int | None,
        Field(
            ge=1,
            description="workers on the cluster; default: one to train, for other jobs one per "
            "GPU, or CPU, that it has now",
        ),
    ] = None
    gpu: Annotated[
        bool | None,
        Field(
            description="one GPU per worker; default: if the cluster has a GPU now. Set it where "
            "GPU nodes start on demand"
        ),
    ] = None


class SpeakingFields(BaseModel):
    """How a checkpoint is opened and speaks, the same when it is evaluated and when it is served.

    `form`, `codec` and `info`: of one that others trained, see
    `sheen.lm.recognition.describe_checkpoint`.
    """

    form: Annotated[
        str | None,
        Field(
            description="prompt form of a checkpoint without sheen.json: orpheus, maya1, veena, "
            "svara or vyvo-qwen3; default: the form that its tokenizer shows, where it shows one"
        ),
    ] = None
    codec: Annotated[
        str | None,
        Field(
            description="SNAC codec, folder or hub id: of a checkpoint without sheen.json "
            f"(default: {DEFAULT_CODEC}), or another decoder for the codec of one with it"
        ),
    ] = None
    info: Annotated[
        str | None,
        Field(
            description="file written by `sheen inspect`, path or URI, for a checkpoint "
            "without sheen.json, instead of the form"
        ),
    ] = None
    dtype: Annotated[
        Precision,
        Field(
            description="precision of the model. 'auto': bfloat16 on a GPU, float32 on a CPU; "
            "float32 takes twice the memory, and on a GPU several times the time"
        ),
    ] = "auto"
    max_seconds: Annotated[
        float,
        Field(
            gt=0.0,
            description="longest audio of one chunk of text, seconds; a longer text is split into "
            "chunks",
        ),
    ] = 30.0
    reference_form: Annotated[
        ReferenceForm | None,
        Field(
            description="how the recording of a voice is put before a text. 'one-turn': both "
            "texts, then its codes, which the model continues; 'two-turn': it is a turn of its "
            "own, which is computed once for all texts. Default: as the checkpoint was trained"
        ),
    ] = None


class _Variables(EnvSettingsSource):
    """`SHEEN_` variables, in which a list is written as in a flag: JSON, or items with commas."""

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        try:
            decoded = super().decode_complex_value(field_name, field, value)
        except ValueError:
            decoded = None
        if isinstance(decoded, list):
            return decoded
        return [item.strip() for item in value.split(",")]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says which key and what was expected."""


def load_config(cls: type[Config], argv: list[str], prog: str) -> Config:
    """Build a job's configuration from its command line. Raises ConfigError.

    `--help` prints every field with its unit and default and exits.
    """
    path = _config_path(argv)
    known = [name for name in cls.model_fields if name != "config"]
    if path is not None:
        _check_file(path, known)
    flags = [_flag(name) for name in [*known, "config", "help"]]
    for name in known:
        if _takes(cls, NoneType, name) or _takes(cls, bool, name):
            flags.append(_flag(name, "--no-"))
    for word in argv:
        flag = word.split("=")[0]
        if flag.startswith("--") and flag not in flags:
            raise ConfigError(f"unknown flag {flag}{_near(flag, flags)}")
    _warn_of_variables(known, prog)
    words, unset = _split_unset(cls, argv)

    class Loaded(cls):  # type: ignore[valid-type, misc]
        model_config = SettingsConfigDict(yaml_file=path, cli_prog_name=prog)

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], **sources: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                sources["init_settings"],
                _Variables(settings_cls),
                YamlConfigSettingsSource(settings_cls),
            )

    Loaded.__doc__ = cls.__doc__
    try:
        nothing: dict[str, Any] = dict.fromkeys(unset)
        loaded = CliApp.run(Loaded, cli_args=words, **nothing)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in problem['loc']) or 'config'}: {problem['msg']}"
            + (f" (got {problem['input']!r})" if problem["type"] != "missing" else _how(problem))
            for problem in error.errors()
        ]
        raise ConfigError("; ".join(lines)) from error
    return cast(Config, cls.model_construct(**loaded.model_dump()))


def _flag(name: str, kind: str = "--") -> str:
    return kind + name.replace("_", "-")


def _takes(cls: type[JobConfig], kind: type, name: str) -> bool:
    annotation = cls.model_fields[name].annotation
    return annotation is kind or kind in get_args(annotation)


def _split_unset(cls: type[JobConfig], argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without `--no-FIELD` of optional fields, and the names of those fields.

    pydantic handles `--no-FIELD` of a bool. Of several flags for a field the last one counts.
    """
    words, unset = argv, []
    for name in cls.model_fields:
        flag, negative = _flag(name), _flag(name, "--no-")
        if negative not in words or _takes(cls, bool, name):
            continue
        places = [i for i, word in enumerate(words) if word.split("=")[0] in (flag, negative)]
        dropped = {i for i in places if words[i] == negative}
        if words[places[-1]] == negative:
            unset.append(name)
            dropped |= {*places, *(i + 1 for i in places if words[i] == flag)}
        words = [word for i, word in enumerate(words) if i not in dropped]
    return words, unset


def _how(problem: Any) -> str:
    name = str(problem["loc"][0])
    return f": give --{name.replace('_', '-')} or the key {name!r} in the file"


def _config_path(argv: list[str]) -> str | None:
    paths = [path for word, path in pairwise(argv) if word == "--config"]
    paths += [word.removeprefix("--config=") for word in argv if word.startswith("--config=")]
    if len(paths) > 1:
        raise ConfigError(
            f"--config is given {len(paths)} times ({', '.join(paths)}), expected once: put the "
            "fields into one file, or give them as flags"
        )
    return paths[0] if paths else os.environ.get(_variable("config"))


def _variable(name: str) -> str:
    return VARIABLE_PREFIX + name.upper()


def _warn_of_variables(known: list[str], prog: str) -> None:
    """Warn of variables with the prefix that set nothing. Letters may be small, as pydantic has it,
    but for the variable of the file."""
    fields = [*known, "config"]
    for name in sorted(os.environ):
        if not name.upper().startswith(VARIABLE_PREFIX):
            continue
        field = name[len(VARIABLE_PREFIX) :].lower()
        if field not in known and name != _variable("config"):
            # Without the prefix, which all have: with it, any two names are near.
            near = [_variable(word) for word in difflib.get_close_matches(field, fields, n=3)]
            hint = f"did you mean {' or '.join(near)}?" if near else "--help lists the fields"
            logger.warning(
                "%s: warning: the variable %s is ignored, as it is of no field here; %s",
                prog,
                name,
                hint,
            )


def _check_file(path: str, known: list[str]) -> None:
    try:
        text = Path(path).read_text("utf-8")
        values = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not YAML ({error})") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected `key: value` lines")
    for key in values or {}:
        if key not in known:
            raise ConfigError(f"--config {path}: unknown key {key!r}{_near(str(key), known)}")
    lines: dict[str, int] = {}
    root = yaml.compose(text, yaml.SafeLoader)
    for node, _ in root.value if isinstance(root, yaml.MappingNode) else []:
        line = node.start_mark.line + 1
        if node.value in lines:
            raise ConfigError(
                f"--config {path}: key {node.value!r} is in lines {lines[node.value]} and {line}, "
                "expected once"
            )
        lines[node.value] = line


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{hint} (known: {', '.join(known)})" if not near else hint


@contextmanager
def errors_of(flag: str) -> Iterator[None]:
    """Put the flag in front of the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


def fail(prog: str, error: Exception) -> int:
    """Print a user's error in the form that every command uses; returns the exit status."""
    print(f"{prog}: error: {error}", file=sys.stderr)
    return 2
