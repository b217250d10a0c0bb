"""The C++ forward pass on numpy arrays: what the device runs, without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

try:
    from affectrt_kernels import _native
except ImportError as error:
    raise ImportError(
        f"the C++ extension affectrt_kernels._native is not built ({error}); "
        "build it from the repository root with: pip install -e . "
        "(it needs a C++17 compiler; pip brings CMake and pybind11)"
    ) from error


FloatArray = NDArray[np.float32]


class GatedRnn:
    """``gated_rnn`` for many calls with the same weights, which are packed once; threads may share it.

    After the first call of its shape a call with ``out`` allocates nothing.
    """

    def __init__(
        self,
        w_x: FloatArray,
        w_h: FloatArray,
        bias: FloatArray,
        *,
        gates: int = 1,
        instruction_set: str = "",
    ) -> None:
        """Weights as :func:`gated_rnn` takes them; they may change afterwards, the packed ones stay."""
        self._rnn = _native.GatedRnn(w_x, w_h, bias, gates=gates, instruction_set=instruction_set)

    def __call__(
        self,
        x: FloatArray,
        lengths: NDArray[np.int64] | None = None,
        h0: FloatArray | None = None,
        *,
        reverse: bool = False,
        threads: int = 1,
        out: tuple[FloatArray, FloatArray] | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """As :func:`gated_rnn`; ``out`` takes the results, (S, B, T, H) and (S, B, H)."""
        return self._rnn(x, lengths, h0, reverse=reverse, threads=threads, out=out)


def gated_rnn(
    x: FloatArray,
    w_x: FloatArray,
    w_h: FloatArray,
    bias: FloatArray,
    lengths: NDArray[np.int64] | None = None,
    h0: FloatArray | None = None,
    *,
    gates: int = 1,
    reverse: bool = False,
    threads: int = 1,
    instruction_set: str = "",
) -> tuple[FloatArray, FloatArray]:
    """``reference.gated_rnn`` in float32 C++, with the interpreter lock released.

    Arrays must be C-contiguous; nothing is converted or copied behind the caller's back. Rows are shared
    between ``threads`` threads; the result does not depend on their number. ``instruction_set`` is one of
    ``instruction_sets()``, by default the first.

    Raises:
        ValueError: a type, layout, shape or length does not fit.
    """
    rnn = _native.GatedRnn(w_x, w_h, bias, gates=gates, instruction_set=instruction_set)
    return rnn(x, lengths, h0, reverse=reverse, threads=threads)


def pairwise_attention(
    q: Sequence[FloatArray],
    k: Sequence[FloatArray],
    v: Sequence[FloatArray],
    pairs: Sequence[tuple[int, int]],
    lengths: NDArray[np.int64] | None = None,
    windows: Sequence[NDArray[np.int64]] | None = None,
    *,
    threads: int = 1,
    instruction_set: str = "",
) -> tuple[list[FloatArray], list[FloatArray]]:
    """``reference.pairwise_attention`` in float32 C++, with the interpreter lock released.

    q, k and v may be views of a joint projection: only the last two axes must lie contiguously. Pairs, rows
    and heads are shared between ``threads`` threads.

    Raises:
        ValueError: a type, layout, shape, pair or length does not fit.
    """
    return _native.pairwise_attention(
        q, k, v, pairs, lengths, windows, threads=threads, instruction_set=instruction_set
    )


def instruction_sets() -> list[str]:
    """What the kernels can use on this machine, widest first (``["avx512", "avx2", "baseline"]``)."""
    return _native.instruction_sets()
