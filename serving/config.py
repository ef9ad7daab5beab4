"""Where settings come from: command line > environment > one TOML file > defaults.

--engine.num-slots 64        CTM_SERVE_ENGINE__NUM_SLOTS=64        [engine]
                                                                   num_slots = 64
"""

import argparse
import os
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from serving.mismatch import listing, quote
from serving.settings import BackendConfig, EngineConfig, Looks, ServerConfig

__all__ = ["BackendConfig", "EngineConfig", "ServerConfig", "load_config", "settings", "settings_table"]

_PREFIX = "CTM_SERVE_"
_FILE_VARIABLE = f"{_PREFIX}CONFIG"
_EXPECTED = {"model_type": "a table of settings", "tuple_type": "a list of names"}
_EPILOG = f"""\
Every setting is also an environment variable, such as {_PREFIX}ENGINE__NUM_SLOTS, and a key of the TOML file,
such as num_slots in [engine]. The command line wins over the environment, the environment over the file.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting, as people write it."""

    key: str
    """In the file; dots stand for tables: `engine.num_slots`."""
    kind: str
    """What a value looks like: NUMBER, FILE, console|json ..."""
    default: str
    meaning: str
    group: str
    """What the settings of its table are about; empty outside of one."""

    @property
    def flag(self) -> str:
        return f"--{self.key.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return _PREFIX + self.key.replace(".", "__").upper()


def load_config(argv: Sequence[str]) -> ServerConfig:
    """The settings of this process. A setting that is wrong ends it with exit status 2 and a line that says why."""
    arguments = vars(_parser().parse_args(argv))
    file = arguments.pop("config", None) or os.environ.get(_FILE_VARIABLE)
    try:
        document = {} if file is None else _read(Path(file))
        return _merge(_nest(arguments), document)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
    except OSError as error:
        lines = [f"config: got {error.filename}, expected a TOML file: {error.strerror}"]
    except (SettingsError, tomllib.TOMLDecodeError) as error:
        lines = [str(error).partition("\n")[0]]
    print(*(f"ctm-serve: error: {line}" for line in lines), sep="\n", file=sys.stderr)
    sys.exit(2)


def settings_table() -> str:
    """All settings as a table in Markdown, for the README."""
    lines = ["| flag | environment | default | meaning |", "|---|---|---|---|"]
    for setting in settings():
        default = f"`{setting.default}`" if setting.default else ""
        lines.append(f"| `{setting.flag}` | `{setting.variable}` | {default} | {setting.meaning} |")
    return "\n".join(lines) + "\n"


def settings(model: type[BaseModel] = ServerConfig, prefix: str = "", group: str = "") -> list[Setting]:
    """Every setting, those of nested tables after the others."""
    found: list[Setting] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += settings(field.annotation, f"{prefix}{name}.", field.annotation.__doc__ or name)
        else:
            found.append(
                Setting(
                    key=prefix + name,
                    kind=_kind(field),
                    default=_text(field.default),
                    meaning=field.description or "",
                    group=group,
                )
            )
    return found


def _kind(field: FieldInfo) -> str:
    """What a value of the field looks like; empty for a switch."""
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    plain = {int: "N", float: "SECONDS", bool: ""}
    looks = next((mark.text for mark in field.metadata if isinstance(mark, Looks)), None)
    return plain[field.annotation] if looks is None else looks  # type: ignore[index]  # None is no annotation of ours


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ctm-serve",
        usage="ctm-serve [--config FILE] [SETTING ...]",
        description=ServerConfig.__doc__,
        epilog=_EPILOG,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=118),
    )
    parser.add_argument("--version", action="version", version=f"ctm-serving {version('ctm-serving')}")
    parser.add_argument("--config", metavar="FILE", help=f"a TOML file of settings (also {_FILE_VARIABLE})")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for setting in settings():
        if setting.group not in groups:
            title = setting.key.partition(".")[0] if setting.group else "server"
            groups[setting.group] = parser.add_argument_group(title, setting.group or None)
        group = groups[setting.group]
        text = setting.meaning.replace("%", "%%") + (f" [{setting.default}]" if setting.default else "")
        if setting.kind:
            group.add_argument(setting.flag, dest=setting.key, metavar=setting.kind, help=text)
        else:
            group.add_argument(setting.flag, dest=setting.key, action=argparse.BooleanOptionalAction, help=text)
    return parser


def _nest(arguments: dict[str, Any]) -> dict[str, Any]:
    """`{"engine.num_slots": 64}` as `{"engine": {"num_slots": 64}}`."""
    nested: dict[str, Any] = {}
    for key, value in arguments.items():
        *tables, name = key.split(".")
        place = nested
        for table in tables:
            place = place.setdefault(table, {})
        place[name] = value
    return nested


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise tomllib.TOMLDecodeError(f"{path}: {error}") from error


def _merge(arguments: dict[str, Any], document: dict[str, Any]) -> ServerConfig:
    class Layers(BaseSettings, ServerConfig):
        model_config = SettingsConfigDict(env_prefix=_PREFIX, env_nested_delimiter="__", extra="forbid")

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del dotenv_settings, file_secret_settings
            return init_settings, env_settings, InitSettingsSource(settings_cls, document)

    return ServerConfig.model_validate(Layers(**arguments).model_dump())


def _explain(problem: Any) -> str:
    """One problem that pydantic found, in one line: key, met, allowed."""
    key = ".".join(str(part) for part in problem["loc"] if isinstance(part, str))
    if problem["type"] == "extra_forbidden":
        return f"{key}: no such setting; there are {listing(_siblings(problem['loc']))}"
    said = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ").partition(", unable")[0]
    expected = _EXPECTED.get(problem["type"], said)
    return f"{key}: got {quote(problem['input'])}, expected {expected}"


def _siblings(location: Sequence[str | int]) -> Iterable[str]:
    prefix = ".".join(str(part) for part in location[:-1])
    keys = [setting.key for setting in settings()]
    return [key for key in keys if key.rpartition(".")[0] == prefix] or keys
