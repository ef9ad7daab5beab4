"""Filling in a run's configuration from a TOML file or a JSON object, and writing it down again.

Whatever is wrong is one `ConfigError` of one line: the key, what was met, and what is allowed.
"""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ctm.training.config import RunConfig


class ConfigError(ValueError):
    """A configuration that cannot be run."""


def read_toml(path: Path) -> RunConfig:
    """The run that a TOML file describes.

    Raises:
        ConfigError: the file cannot be read, or says something that is not allowed.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return from_table(table, source=str(path))


def from_table(table: Mapping[str, Any], source: str) -> RunConfig:
    """The run that nested tables describe.

    Args:
        source: what errors name as the origin of the tables.
    """
    _check_keys(table, RunConfig, "", source)
    try:
        # By way of JSON, because there strict means the same types as in TOML: a list may be a tuple, a whole number
        # may be a float and text may be a path, but "3" is no number.
        return _RUN.validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_sentence(error)}") from error


def to_table(config: RunConfig) -> dict[str, Any]:
    """The opposite of `from_table`: nested tables that JSON can hold."""
    table: dict[str, Any] = json.loads(_RUN.dump_json(config))
    return table


_RUN = TypeAdapter(RunConfig)


def _check_keys(table: Mapping[str, Any], config: type[Any], prefix: str, source: str) -> None:
    types = get_type_hints(config)
    fields = [field.name for field in dataclasses.fields(config)]
    for key, value in table.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else ""
            raise ConfigError(f"{source}: unknown key {prefix}{key}, allowed here: {', '.join(fields)}{hint}")
        # Of `X | None`, X.
        inner: list[Any] = [kind for kind in (types[key], *get_args(types[key])) if dataclasses.is_dataclass(kind)]
        if inner and isinstance(value, Mapping):
            _check_keys(value, inner[0], f"{prefix}{key}.", source)


def _sentence(error: ValidationError) -> str:
    """The first complaint, in one line."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        # Ours, from a dataclass that checks itself: it names its key.
        return str(first["ctx"]["error"])
    if first["type"] == "missing":
        return f"{key} is missing"
    return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
