"""Pickles from strangers: arrays and containers come out, anything else is refused before it exists.

A pickle is a program that names what it calls. Here it may name numpy's ways to rebuild an array, a dtype or
a scalar, and builtin containers. Objects that it could set attributes on are kept away from it: what it gets
to call are immutable types and callables without a namespace.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from affectrt.errors import AffectError

_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_SCALAR = np.float32(0).__reduce__()[0]


class _Dtype:
    """``numpy.dtype``; old pickles give its flags as integers, which numpy no longer likes."""

    __slots__ = ()

    def __call__(self, name: object, align: object = False, copy: object = False) -> np.dtype[Any]:
        if not isinstance(name, str | np.dtype):
            raise pickle.UnpicklingError(f"a dtype of {name!r}")
        return np.dtype(name, align=bool(align), copy=bool(copy))


class _FromBuffer:
    """What protocol 5 rebuilds arrays with: a buffer, a dtype, a shape and an order of axes."""

    __slots__ = ()

    def __call__(
        self,
        buffer: bytes,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        order: str,
        axis_order: tuple[int, ...] | None = None,
    ) -> np.ndarray[Any, np.dtype[Any]]:
        flat: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(buffer, dtype=dtype)
        if axis_order is not None:
            return np.transpose(flat.reshape(shape), axis_order)
        return flat.reshape(shape, order="F" if order == "F" else "C")


class _Encode:
    """How protocols 0 to 2 write bytes: as text in Latin-1."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str = "latin1") -> bytes:
        if encoding.replace("-", "").lower() not in ("latin1", "iso88591"):
            raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
        return text.encode("latin1")


def _numpy_names(core: str) -> dict[tuple[str, str], Any]:
    return {
        (f"{core}.multiarray", "_reconstruct"): _RECONSTRUCT,
        (f"{core}.multiarray", "scalar"): _SCALAR,
        (f"{core}.numeric", "_frombuffer"): _FromBuffer(),
    }


ALLOWED: Mapping[tuple[str, str], Any] = {
    # numpy 1 and numpy 2 spell their core differently, Python 2 and 3 their builtins.
    **_numpy_names("numpy.core"),
    **_numpy_names("numpy._core"),
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _Dtype(),
    ("_codecs", "encode"): _Encode(),
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (dict, list, tuple, set, frozenset, bytes, bytearray, complex)
    },
}
"""Everything that a pickle may name."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path) -> None:
        # Strings of Python 2 are bytes: Latin-1 keeps every one of them, which numpy needs.
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise AffectError(
                "data.pickle_class",
                f"{self._path}: expected numpy arrays in builtin containers, got a pickle that names "
                f"'{module}.{name}'; it was not run; convert the file to plain arrays where it comes from",
            )
        return ALLOWED[module, name]


def load_pickle(path: Path) -> object:
    """The arrays and containers of a pickle, of protocols 0 to 5, of Python 2 or 3.

    Raises ``data.pickle_class`` naming whatever else it asks for, and ``data.unreadable`` when it is cut
    short or damaged.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, path).load()
    except AffectError:
        raise
    except Exception as error:  # a damaged program fails in any way it likes
        raise AffectError(
            "data.unreadable",
            f"{path}: expected a whole pickle; reading it: {type(error).__name__}: {error}; fetch it anew",
        ) from error
