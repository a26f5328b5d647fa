"""How a job reads its configuration: one pydantic model, a YAML file, flags, `SHEEN_` variables.

Owns the order (flags over environment over file over defaults) and the messages: an unknown key
or flag is an error that names the near ones. `--no-FIELD` leaves an optional field out. What the
fields mean is each job's.
"""

import difflib
import os
import sys
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, cast, get_args

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

Config = TypeVar("Config", bound="JobConfig")


FormField = Annotated[
    str | None,
    Field(
        description="of a checkpoint without sheen.json, its prompt form: orpheus, maya1, veena, "
        "svara or vyvo-qwen3; default: what its tokens say, where they do"
    ),
]
CodecField = Annotated[
    str | None,
    Field(
        description="of a checkpoint without sheen.json, its SNAC: absolute path or hub id; "
        "default: hubertsiuzdak/snac_24khz"
    ),
]
InfoField = Annotated[
    str | None,
    Field(
        description="file of `sheen inspect`, absolute path or URI, for a checkpoint without "
        "sheen.json, instead of the form"
    ),
]
"""What a checkpoint is that others trained, wherever one is spoken with: see
`sheen.lm.recognition.describe_checkpoint`."""


class JobConfig(BaseSettings):
    """Base of every job's configuration; see `load_config`."""

    model_config = SettingsConfigDict(
        env_prefix="SHEEN_",  # without it, MODEL or OUTPUT in a shell would override a field
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    config: str | None = Field(None, description="YAML file with any of the fields below")


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
    words, left_out = _leave_out(cls, argv)

    class Loaded(cls):  # type: ignore[valid-type, misc]
        model_config = SettingsConfigDict(yaml_file=path, cli_prog_name=prog)

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], **sources: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                sources["init_settings"],
                sources["env_settings"],
                YamlConfigSettingsSource(settings_cls),
            )

    Loaded.__doc__ = cls.__doc__
    try:
        nothing: dict[str, Any] = dict.fromkeys(left_out)
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


def _leave_out(cls: type[JobConfig], argv: list[str]) -> tuple[list[str], list[str]]:
    """The words without `--no-FIELD` of fields that may be None, and the fields that shall be.

    A bool's `--no-FIELD` is pydantic's own. Of several flags for a field the last counts.
    """
    words, left_out = argv, []
    for name in cls.model_fields:
        flag, negative = _flag(name), _flag(name, "--no-")
        if negative not in words or _takes(cls, bool, name):
            continue
        places = [i for i, word in enumerate(words) if word.split("=")[0] in (flag, negative)]
        dropped = {i for i in places if words[i] == negative}
        if words[places[-1]] == negative:
            left_out.append(name)
            dropped |= {*places, *(i + 1 for i in places if words[i] == flag)}
        words = [word for i, word in enumerate(words) if i not in dropped]
    return words, left_out


def _how(problem: Any) -> str:
    name = str(problem["loc"][0])
    return f": give --{name.replace('_', '-')} or the key {name!r} in the file"


def _config_path(argv: list[str]) -> str | None:
    for index, word in enumerate(argv):
        if word == "--config" and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith("--config="):
            return word.removeprefix("--config=")
    return os.environ.get("SHEEN_CONFIG")


def _check_file(path: str, known: list[str]) -> None:
    try:
        values = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not YAML ({error})") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected `key: value` lines")
    for key in values or {}:
        if key not in known:
            raise ConfigError(f"--config {path}: unknown key {key!r}{_near(str(key), known)}")


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{hint} (known: {', '.join(known)})" if not near else hint


def fail(prog: str, error: Exception) -> int:
    """Print a user's error the way every job does, and return the exit status."""
    print(f"{prog}: error: {error}", file=sys.stderr)
    return 2
