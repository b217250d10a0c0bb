"""Settings: frozen dataclasses, filled from YAML files and ``--set key=value``, wrong ones refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from affectrt.errors import AffectError, require

T = TypeVar("T")

EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
"""Numbers like 1e-3, which YAML 1.1 takes for words because there is no dot in them."""


def read_settings(path: Path | None, changes: Sequence[str]) -> dict[str, object]:
    """The settings of a YAML file with ``key.inner=value`` changes on top, for :func:`build`.

    Values of changes are YAML, too: numbers, true, null, [lists]. Raises ``config.not_found``,
    ``config.unreadable`` and ``config.change``.
    """
    settings: dict[str, object] = {} if path is None else _read_yaml(path)
    for change in changes:
        key, equals, text = change.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise AffectError(
                "config.change", f"--set: expected KEY=VALUE such as training.lr=1e-3, got '{change}'"
            )
        inner: dict[str, object] = settings
        for depth, part in enumerate(parts[:-1], start=1):
            found = inner.setdefault(part, {})
            if not isinstance(found, dict):
                raise AffectError(
                    "config.change",
                    f"--set {change}: {'.'.join(parts[:depth])} is {found!r}, which has no keys below it",
                )
            inner = found
        inner[parts[-1]] = _parse_yaml(text, f"--set {change}")
    return settings


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AffectError("config.not_found", f"{path}: no such settings file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AffectError("config.unreadable", f"{path}: expected YAML in UTF-8: {error}") from error
    found = _parse_yaml(text, str(path))
    if found is None:  # an empty file, or comments alone
        return {}
    if not isinstance(found, dict):
        raise AffectError(
            "config.unreadable", f"{path}: expected settings as 'key: value', got a {type(found).__name__}"
        )
    return found


def _parse_yaml(text: str, where: str) -> object:
    yaml = require("yaml", "train")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """Plain values only; knows 1e-3 for a number."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise AffectError("config.unreadable", f"{where}: expected YAML: {error}") from error


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
    if origin is Mapping:  # settings of something that is known later only
        if not isinstance(value, Mapping):
            _refuse(where, "a mapping", value)
        return dict(value)
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
