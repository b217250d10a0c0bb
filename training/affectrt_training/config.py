"""Settings: frozen dataclasses, filled from YAML files and ``--set key=value``, wrong ones refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from affectrt.errors import AffectError

T = TypeVar("T")


def build(kind: type[T], values: Mapping[str, object], *, where: str) -> T:
    """An instance of a config dataclass, ``values`` in place of its defaults; nested ones from mappings.

    ``where`` names the config in messages. Raises ``config.unknown_key`` with the nearest name and
    ``config.value`` for a value of another type or one that the class itself refuses.
    """
    assert is_dataclass(kind)
    known = {field.name for field in fields(kind)}
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1, cutoff=0.4)
            raise AffectError(
                "config.unknown_key",
                f"{where}: unknown key '{key}'; "
                + (f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(sorted(known))}"),
            )
        found[key] = _value(hints[key], value, f"{where}.{key}")
    try:
        return kind(**found)
    except ValueError as error:
        raise AffectError("config.value", f"{where}: {error}") from error


def _value(hint: Any, value: object, where: str) -> object:
    """``value`` as the annotated type; ints are floats too, lists stand for tuples, strings for paths."""
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            _refuse(where, "a mapping", value)
        return build(hint, value, where=where)
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in options:
            _refuse(where, "one of " + ", ".join(map(str, options)), value)
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in options:
            return None
        [inner] = [option for option in options if option is not NoneType]  # optional is the only union here
        return _value(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            _refuse(where, "a list", value)
        inner = options[0] if options[-1] is Ellipsis else None
        if inner is None and len(value) != len(options):
            _refuse(where, f"a list of {len(options)}", value)
        kinds = [inner] * len(value) if inner is not None else options
        return tuple(_value(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        _refuse(where, hint.__name__, value)
    return value


def _refuse(where: str, expected: str, got: object) -> NoReturn:
    raise AffectError("config.value", f"{where}: expected {expected}, got {got!r}")
