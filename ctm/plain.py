"""Nested configurations as plain values, as JSON holds them, and back."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")


def from_plain(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """The configuration that `dataclasses.asdict` and JSON made these values of.

    Args:
        where: what errors call it.

    Raises:
        ValueError: a name that it has not, one that is missing, or a value that it refuses.
    """
    types = get_type_hints(kind)
    if unknown := sorted(set(values) - set(types)):
        raise ValueError(f"{where} has no setting {unknown[0]!r}; there are {', '.join(sorted(types))}")
    assert is_dataclass(kind), f"{kind.__name__} is a dataclass"
    needed = {field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING}
    if missing := sorted(needed - set(values)):
        raise ValueError(f"{where} needs {missing[0]}")
    return kind(**{name: _value(types[name], value, f"{where}.{name}") for name, value in values.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        parts = [part for part in (kind, *get_args(kind)) if is_dataclass(part)]
        if not parts:
            raise ValueError(f"{where} is no table, got {dict(value)}")
        part = parts[0]
        assert isinstance(part, type), "a configuration's hints are classes"
        return from_plain(part, value, where)
    return tuple(value) if isinstance(value, list) else value
