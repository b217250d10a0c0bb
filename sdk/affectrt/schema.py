"""JSON read strictly into frozen dataclasses: no default, no coercion, no field that isn't known."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from math import isfinite
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, cast, get_args, get_origin, get_type_hints

from affectrt.errors import AffectError

EXACT = 2**53
"""Whole numbers below it are floats, too."""


def parse(text: str | bytes) -> Any:
    """JSON without repeated fields and without NaN. Raises ValueError or RecursionError."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def build(kind: Any, value: object, where: str, field: str) -> object:
    """``value`` as ``kind``, exactly: no coercion but of a whole number to a float.

    Of several dataclasses it becomes the one whose fields it has. Raises ``bundle.manifest``.
    """
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        kinds = [one for one in arguments if one is not NoneType]
        names = value.keys() if isinstance(value, dict) else set()
        alike = [one for one in kinds if is_dataclass(one) and {f.name for f in fields(one)} == names]
        return build((alike or kinds)[0], value, where, field)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            refuse(where, field, "an object", value)
        expected = {f.name for f in fields(kind)}
        if value.keys() != expected:
            missing, unknown = sorted(expected - value.keys()), sorted(value.keys() - expected)
            refuse(where, field or "manifest.json", f"also {missing}, not {unknown}", "other fields")
        hints = get_type_hints(kind)
        dot = f"{field}." if field else ""
        built = {name: build(hints[name], value[name], where, dot + name) for name in sorted(expected)}
        return cast(type, kind)(**built)
    if origin is tuple:
        if not isinstance(value, list):
            refuse(where, field, "a list", value)
        return tuple(build(arguments[0], item, where, f"{field}[{i}]") for i, item in enumerate(value))
    if origin is not None:
        if not isinstance(value, dict):
            refuse(where, field, "an object", value)
        return {name: build(arguments[1], item, where, f"{field}.{name}") for name, item in value.items()}
    if kind is float and type(value) is int and abs(value) < EXACT:
        value = float(value)
    if type(value) is not kind or (kind is float and not isfinite(cast(float, value))):
        refuse(where, field, kind.__name__, value)
    return value


def refuse(where: str, field: str, expected: object, got: object) -> NoReturn:
    """Raise ``bundle.manifest`` for a field of the bundle ``where``."""
    shown = repr(got)
    shown = shown if len(shown) < 80 else shown[:77] + "…"
    raise AffectError(
        "bundle.manifest",
        f"bundle {where}: {field}: expected {expected}, got {shown}; export the model again",
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError(f"a field is there twice among {sorted(name for name, _ in pairs)}")
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
