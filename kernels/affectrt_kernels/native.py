"""The C++ forward pass on numpy arrays: what the device runs, without torch."""

from __future__ import annotations

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


def gated_rnn(
    x: NDArray[np.float32],
    w_x: NDArray[np.float32],
    w_h: NDArray[np.float32],
    bias: NDArray[np.float32],
    lengths: NDArray[np.int64] | None = None,
    h0: NDArray[np.float32] | None = None,
    *,
    gates: int = 1,
    reverse: bool = False,
    threads: int = 1,
    instruction_set: str = "",
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """``reference.gated_rnn`` in float32 C++, with the interpreter lock released.

    Arrays must be C-contiguous; nothing is converted or copied behind the caller's back. Rows are shared
    between ``threads`` threads; the result does not depend on their number. ``instruction_set`` is one of
    ``instruction_sets()``, by default the first.

    Raises:
        ValueError: a type, layout, shape or length does not fit.
    """
    return _native.gated_rnn(
        x,
        w_x,
        w_h,
        bias,
        lengths,
        h0,
        gates=gates,
        reverse=reverse,
        threads=threads,
        instruction_set=instruction_set,
    )


def instruction_sets() -> list[str]:
    """What the kernels can use on this machine, widest first (``["avx512", "avx2", "baseline"]``)."""
    return _native.instruction_sets()
