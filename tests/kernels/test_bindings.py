"""Arrays as few callers hand them over: short-lived, misaligned, of odd bytes. test_cpp runs this too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from affectrt_kernels import _native, native

FloatArray = NDArray[np.float32]
PAIR = [(0, 1)]


def numbers(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def misaligned(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers one byte off."""
    raw = bytearray(1) + bytearray(array.tobytes())
    view = np.frombuffer(raw, array.dtype, array.size, offset=1).reshape(array.shape)
    assert view.flags.c_contiguous and not view.flags.aligned
    return view


class Made(Sequence[FloatArray]):
    """A list that makes its array when it is asked, and does not keep it."""

    def __init__(self, make: Callable[[], FloatArray]) -> None:
        self._make = make

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        return self._make()


class MadeWeights(dict[str, FloatArray]):
    """Weights that are copied anew for whoever asks."""

    def __getitem__(self, name: str) -> FloatArray:
        copy: FloatArray = super().__getitem__(name).copy()
        return copy


def test_arrays_that_only_the_call_holds() -> None:
    q, k, v = (numbers(2, 300, 2, 8, seed=seed) for seed in range(3))
    want, _ = native.pairwise_attention([q], [k], [v], PAIR)
    got, _ = native.pairwise_attention(Made(q.copy), Made(k.copy), Made(v.copy), PAIR)
    assert np.array_equal(got[0], want[0])


@pytest.mark.parametrize("seconds", [0.0005, 0.002, 0.008])
def test_a_list_emptied_meanwhile(seconds: float) -> None:
    q, k, v = ([numbers(4, 700, 4, 16, seed=seed)] for seed in range(3))
    want, _ = native.pairwise_attention(q, k, v, PAIR)
    got: list[FloatArray] = []
    worker = threading.Thread(target=lambda: got.extend(native.pairwise_attention(q, k, v, PAIR)[0]))
    worker.start()
    worker.join(seconds)  # into the computation
    for arrays in (q, k, v):
        arrays.clear()
    worker.join()
    assert np.array_equal(got[0], want[0])


def weights(d: int = 4, h: int = 3) -> dict[str, FloatArray]:
    shapes: dict[str, tuple[int, ...]] = {
        "w_x": (3, 2 * h, 2 * d),
        "w_h": (3, 2 * h, h),
        "bias": (3, 2 * h),
        "fused.weight": (5, 3 * h),
        "fused.bias": (5,),
        "sentiment.weight": (1, 5),
        "sentiment.bias": (1,),
        "emotion.weight": (7, 5),
        "emotion.bias": (7,),
    }
    for index, name in enumerate(["text", "audio", "vision"]):
        shapes |= {f"{name}.norm.weight": (6,), f"{name}.norm.bias": (6,), f"{name}.null": (d,)}
        shapes |= {f"{name}.conv.weight": (d, 6, 3), f"{name}.conv.bias": (d,)}
        shapes |= {f"norms.{index}.weight": (d,), f"norms.{index}.bias": (d,)}
    for name in ["text_to_audio", "text_to_vision"]:
        for layer, rows in [("query", d), ("key_value", 2 * d), ("out", d)]:
            shapes |= {f"{name}.{layer}.weight": (rows, d), f"{name}.{layer}.bias": (rows,)}
    return {name: numbers(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}


def test_weights_that_only_the_call_holds() -> None:
    clip = numbers(9, 6, seed=1), numbers(9, 6, seed=2), numbers(9, 6, seed=3)
    subsets = np.ones((1, 3), np.bool_)
    kept = weights()
    want = _native.GhrnnCma(kept, heads=2)(*clip, subsets)
    got = _native.GhrnnCma(MadeWeights(kept), heads=2)(*clip, subsets)
    assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1])


def test_a_flag_is_any_byte_but_0() -> None:
    model = _native.GhrnnCma(weights(), heads=2)
    clip = numbers(9, 6, seed=1), numbers(9, 6, seed=2), numbers(9, 6, seed=3)
    flags = np.array([[1, 0, 1], [0, 1, 1]], np.uint8)
    want = model(*clip, flags.astype(np.bool_))
    got = model(*clip, (flags * 254).view(np.bool_))
    assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1])


@pytest.mark.parametrize("name", ["x", "w_x", "w_h", "bias", "lengths", "h0"])
def test_misaligned_arrays_of_the_recurrence_are_refused(name: str) -> None:
    arrays: dict[str, Any] = {
        "x": numbers(1, 2, 5, 3),
        "w_x": numbers(1, 8, 3),
        "w_h": numbers(1, 8, 4),
        "bias": numbers(1, 8),
        "lengths": np.array([5, 2]),
        "h0": numbers(1, 2, 4),
    }
    native.gated_rnn(**arrays)
    arrays[name] = misaligned(arrays[name])
    with pytest.raises(ValueError, match=f"{name}: expected an array aligned to its type, got one at an odd"):
        native.gated_rnn(**arrays)


@pytest.mark.parametrize("name", ["q", "k", "v", "windows"])
def test_misaligned_arrays_of_attention_are_refused(name: str) -> None:
    arrays: dict[str, Any] = {part: numbers(1, 4, 2, 3) for part in "qkv"}
    arrays["windows"] = np.zeros((1, 4, 2), np.int64)
    arrays[name] = misaligned(arrays[name])
    with pytest.raises(ValueError, match=rf"{name}\[0\]: expected an array aligned to its type"):
        native.pairwise_attention(
            [arrays["q"]], [arrays["k"]], [arrays["v"]], PAIR, windows=[arrays["windows"]]
        )
