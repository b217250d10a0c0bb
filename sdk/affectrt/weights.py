"""Reads safetensors with numpy alone, trusting nothing in the file.

Layout: a length (8 bytes, little-endian), that many bytes of JSON, then the numbers. The JSON names each
array's type, its shape and where in the numbers it lies: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from math import prod
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from affectrt.errors import AffectError

FloatArray = npt.NDArray[np.float32]

MAX_HEADER_BYTES = 16 * 2**20
"""Room for more than a hundred thousand arrays; a larger header is an attack or damage."""

MAX_RANK = 32
"""As many axes as every numpy knows."""

_LENGTH_BYTES = 8
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1}
_SCALE = ".scale"
"""``x`` in I8 comes with ``x.scale`` in F32, as many axes, each as long or 1: its values are x · x.scale."""
_METADATA = "__metadata__"


def read_safetensors(data: bytes, where: str) -> dict[str, FloatArray]:
    """All arrays by name, as float32 copies. F16 and BF16 are widened, which loses nothing; an I8 array
    ``x`` is multiplied with its scales ``x.scale``, which then are no array of their own.

    ``where`` names the file in errors. Raises ``bundle.weights`` unless the file is whole and says every
    thing once: the arrays must fill the numbers without gap or overlap. Values aren't looked at; NaN may be
    among them.
    """
    header, body = _split(data, where)
    spans: list[tuple[int, int, str]] = []
    arrays: dict[str, FloatArray] = {}
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(name, entry, len(body), where)
        spans.append((begin, end, name))
        try:
            arrays[name] = _widened(body[begin:end], dtype).reshape(shape)
        except ValueError:  # sizes that only a 0 among them makes fit
            _refuse(f"{where}: {_shown(name)}", "a shape that fits in memory", shape)
    _check_tiled(sorted(spans), len(body), where)
    kinds = {name: entry["dtype"] for name, entry in header.items() if isinstance(entry, dict)}
    codes = [name for name, kind in kinds.items() if kind == "I8"]
    for name in codes:
        scales = arrays.pop(name + _SCALE) if kinds.get(name + _SCALE) == "F32" else None
        arrays[name] = _scaled(name, arrays[name], scales, where)
    return arrays


def _scaled(name: str, codes: FloatArray, scales: FloatArray | None, where: str) -> FloatArray:
    shape = () if scales is None else scales.shape
    if (
        scales is None
        or len(shape) != codes.ndim
        or any(size not in (1, of) for size, of in zip(shape, codes.shape, strict=True))
    ):
        told = "none" if scales is None else list(shape)
        _refuse(f"{where}: {_shown(name)}", f"F32 scales for int8 of shape {list(codes.shape)}", told)
    return np.asarray(codes * scales, np.float32)


def _split(data: bytes, where: str) -> tuple[dict[str, object], memoryview]:
    if len(data) < _LENGTH_BYTES:
        _refuse(where, f"at least {_LENGTH_BYTES} bytes", len(data))
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    limit = min(MAX_HEADER_BYTES, len(data) - _LENGTH_BYTES)
    if length > limit:
        _refuse(where, f"a header of at most {limit} bytes", length)
    try:
        # Strictly UTF-8: json would guess other encodings from the bytes.
        text = data[_LENGTH_BYTES : _LENGTH_BYTES + length].decode("utf-8")
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise AffectError(
            "bundle.weights", f"{where}: expected a JSON header, got something else ({error}); export again"
        ) from error
    if not isinstance(header, dict):
        _refuse(where, "an object as header", type(header).__name__)
    header.pop(_METADATA, None)  # free text about the file
    return header, memoryview(data)[_LENGTH_BYTES + length :]


def _entry(name: str, entry: object, size: int, where: str) -> tuple[str, tuple[int, ...], int, int]:
    where = f"{where}: {_shown(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(where, "dtype, shape and data_offsets", entry)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        _refuse(where, f"a dtype of {', '.join(_ITEM_BYTES)}", dtype)
    if not _whole_numbers(shape) or len(shape) > MAX_RANK:
        _refuse(where, f"a shape of at most {MAX_RANK} whole numbers from 0", shape)
    if not _whole_numbers(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size:
        _refuse(where, f"data_offsets in order, from 0 to at most {size}", offsets)
    begin, end = offsets
    wanted = prod(shape) * _ITEM_BYTES[dtype]
    if end - begin != wanted:
        _refuse(where, f"{_shown(wanted)} bytes for shape {_shown(shape)} of {dtype}", end - begin)
    return dtype, tuple(shape), begin, end


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _widened(raw: memoryview, dtype: str) -> FloatArray:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "I8": "i1"}[dtype]).astype(np.float32)


def _check_tiled(spans: list[tuple[int, int, str]], size: int, where: str) -> None:
    at = 0
    for begin, end, name in spans:
        if begin != at:
            _refuse(f"{where}: {_shown(name)}", f"numbers that begin at {at}, where the others end", begin)
        at = end
    if at != size:
        _refuse(where, f"{at} bytes of numbers, as the header tells", size)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is there twice")
    return table


def _shown(value: object) -> str:
    """What a file says, which may be long, on one line."""
    shown = repr(value)
    return shown if len(shown) < 80 else shown[:77] + "…"


def _refuse(where: str, expected: str, got: object) -> NoReturn:
    raise AffectError(
        "bundle.weights", f"{where}: expected {expected}, got {_shown(got)}; export the model again"
    )
