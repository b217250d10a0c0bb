"""Safetensors: what is well formed is read exactly, whatever else is refused by name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from affectrt.errors import AffectError
from affectrt.weights import MAX_HEADER_BYTES, read_safetensors

ARRAYS: dict[str, npt.NDArray[Any]] = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "half": np.linspace(-2, 2, 5).astype(np.float16),
    "scalar": np.array(2.5, np.float32),
    "none": np.zeros((0, 3), np.float32),
    "strange": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32),
}


def pack(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_the_library_writes() -> None:
    arrays = read_safetensors(save(ARRAYS, metadata={"format": "np"}), "here")
    assert arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert arrays[name].dtype == np.float32 and arrays[name].shape == value.shape
        np.testing.assert_array_equal(arrays[name], value.astype(np.float32))
        assert arrays[name].flags.aligned and arrays[name].flags.writeable
    assert read_safetensors(save({}), "here") == {}


def test_bfloat16_is_widened_exactly() -> None:
    values = torch.tensor([1.0, -3.140625, 1e38, 1e-40, float("inf"), float("nan")]).bfloat16()
    arrays = read_safetensors(save_torch({"x": values, "y": torch.ones(3)}), "here")
    np.testing.assert_array_equal(arrays["x"], values.float().numpy())
    np.testing.assert_array_equal(arrays["y"], np.ones(3))


def test_numbers_need_no_alignment() -> None:
    header = {"x": entry("F16", [1], 0, 2), "y": entry("F32", [1], 2, 6)}
    body = np.float16(1).tobytes() + np.float32(7).tobytes()
    arrays = read_safetensors(pack(header, body), "here")
    assert (arrays["x"][0], arrays["y"][0]) == (1.0, 7.0)
    assert arrays["y"].flags.aligned


BODY = bytes(16)
F32_BY_FOUR = entry("F32", [4], 0, 16)
WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "at least 8 bytes, got 0"),
    "cut": (pack({})[:9], "a header of at most 1 bytes, got 2"),
    "header too long": ((2**63).to_bytes(8, "little") + b"{}", "a header of at most 2 bytes"),
    "header beyond the limit": (pack(b" " * (MAX_HEADER_BYTES + 1)), f"at most {MAX_HEADER_BYTES} bytes"),
    "no json": (pack(b"\x80\x04pickle"), "expected a JSON header"),
    "utf-16": (pack(json.dumps({}).encode("utf-16")), "expected a JSON header"),
    "deep": (pack(b"[" * 100_000), "expected a JSON header"),
    "long number": (pack(b'{"x": ' + b"9" * 10_000 + b"}"), "expected a JSON header"),
    "list": (pack([]), "an object as header, got 'list'"),
    "twice": (pack(b'{"x": {"dtype": "F32"}, "x": 1}'), "a name is there twice"),
    "entry": (pack({"x": 3}), "'x': expected dtype, shape and data_offsets, got 3"),
    "more in entry": (pack({"x": {**F32_BY_FOUR, "z": 1}}, BODY), "'x': expected dtype, shape and"),
    "evil name": (pack({"x\n" * 1000: 3}), "'x\\nx\\n"),
    "dtype": (pack({"x": entry("I64", [2], 0, 16)}, BODY), "a dtype of F32, F16, BF16, I8, got 'I64'"),
    "dtype list": (pack({"x": {**F32_BY_FOUR, "dtype": []}}, BODY), "a dtype of"),
    "shape": (pack({"x": {**F32_BY_FOUR, "shape": "4"}}, BODY), "a shape of"),
    "negative": (pack({"x": entry("F32", [-2, -2], 0, 16)}, BODY), "a shape of"),
    "float": (pack({"x": entry("F32", [4.0], 0, 16)}, BODY), "a shape of"),
    "bool": (pack({"x": entry("F32", [True, 4], 0, 16)}, BODY), "a shape of"),
    "rank": (pack({"x": entry("F32", [1] * 40, 0, 4)}, BODY[:4]), "a shape of at most 32"),
    "beyond": (pack({"x": entry("F32", [4], 4, 20)}, BODY), "data_offsets in order, from 0 to at most 16"),
    "backwards": (pack({"x": entry("F32", [4], 16, 0)}, BODY), "data_offsets in order"),
    "below": (pack({"x": entry("F32", [4], -16, 0)}, BODY), "data_offsets in order"),
    "one offset": (pack({"x": {**F32_BY_FOUR, "data_offsets": [0]}}, BODY), "data_offsets in order"),
    "size": (pack({"x": entry("F32", [3], 0, 16)}, BODY), "12 bytes for shape [3] of F32, got 16"),
    "huge": (pack({"x": entry("F32", [2**62, 4], 0, 16)}, BODY), "bytes for shape [46116"),
    "huge and zero": (pack({"x": entry("F32", [2**62, 2**62, 0], 0, 0)}), "a shape that fits in memory"),
    "overlap": (
        pack({"x": entry("F32", [2], 0, 8), "y": entry("F32", [3], 4, 16)}, BODY),
        "'y': expected numbers that begin at 8, where the others end, got 4",
    ),
    "gap": (
        pack({"x": entry("F32", [1], 0, 4), "y": entry("F32", [2], 8, 16)}, BODY),
        "'y': expected numbers that begin at 4",
    ),
    "rest": (pack({"x": entry("F32", [3], 0, 12)}, BODY), "12 bytes of numbers, as the header tells"),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=list(WRONG))
def test_refuses(data: bytes, message: str) -> None:
    with pytest.raises(AffectError) as caught:
        read_safetensors(data, "tiny.affect: w")
    assert caught.value.code == "bundle.weights"
    assert caught.value.message.startswith("tiny.affect: w")
    assert message in caught.value.message
    assert len(caught.value.message) < 400 and "\n" not in caught.value.message


def read_or_refuse(data: bytes) -> dict[str, npt.NDArray[np.float32]] | None:
    try:
        return read_safetensors(data, "here")
    except AffectError as error:
        assert error.code == "bundle.weights"
        return None


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    read_or_refuse(data)
    read_or_refuse(pack(data))


@given(st.data())
def test_any_byte_changed(data: st.DataObject) -> None:
    good = save(ARRAYS)
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + data.draw(st.binary(max_size=3)) + good[at + data.draw(st.integers(0, 3)) :]
    arrays = read_or_refuse(bad)
    if arrays is not None:  # a number or a name was hit: all that is there still is of the file's size
        length = int.from_bytes(bad[:8], "little")
        assert sum(array.size for array in arrays.values()) * 4 >= len(bad) - 8 - length


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)
numbers = st.integers(-1, 40) | json_values
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F64"]) | json_values,
        "shape": st.lists(numbers, max_size=3) | json_values,
        "data_offsets": st.lists(numbers, max_size=3) | json_values,
    }
)


@given(st.dictionaries(st.text(max_size=3), entries | json_values, max_size=3), st.binary(max_size=40))
def test_any_header(header: dict[str, Any], body: bytes) -> None:
    arrays = read_or_refuse(pack(header, body))
    if arrays is not None:
        assert arrays.keys() == header.keys() - {"__metadata__"}


CODES = np.array([[-127, 3], [0, 127]], np.int8)
SCALES = np.array([[0.5], [2.0]], np.float32)


def test_int8_is_multiplied_with_its_scales() -> None:
    arrays = read_safetensors(save({"w": CODES, "w.scale": SCALES, "v.scale": SCALES}), "here")
    assert arrays.keys() == {"w", "v.scale"}
    assert arrays["w"].dtype == np.float32 and arrays["w"].tolist() == [[-63.5, 1.5], [0.0, 254.0]]


@pytest.mark.parametrize(
    "scales", [None, np.ones(2, np.float32), np.ones((3, 1), np.float32), np.ones((2, 1), np.float16)]
)
def test_int8_without_scales_that_fit_is_refused(scales: npt.NDArray[Any] | None) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {"w": CODES, **({} if scales is None else {"w.scale": scales})}
    with pytest.raises(
        AffectError, match=r"here: 'w': expected F32 scales for int8 of shape \[2, 2\]"
    ) as caught:
        read_safetensors(save(arrays), "here")
    assert caught.value.code == "bundle.weights"
