"""oneDNN's vanilla GRU, which resets before the product as ours does, called through its C interface.

PyTorch does not reach it: its wheel hides oneDNN's symbols, and ``torch.ops.aten.mkldnn_rnn_layer`` answers
"could not create a primitive descriptor for the LSTM" to every mode but LSTM's. So it takes part where the
library itself is installed: ``pip install onednn-cpu-gomp``, Debian's ``libdnnl3``, or on the loader's path.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from ctypes import c_int, c_int64, c_size_t, c_uint, c_void_p
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.peers.onnx_runtime import Array, tied

# Of dnnl_types.h; the same in all releases of version 3.
_CPU, _F32, _ANY, _FORWARD_INFERENCE, _LEFT_TO_RIGHT, _MEMORY_OF_ARGUMENT = 1, 3, 1, 96, 1, 255
_X, _H0, _Y, _H_N, _W_X, _W_H, _BIAS = 1, 2, 17, 18, 33, 34, 41  # arguments; a reorder reads _X, writes _Y
_ALLOCATE = c_void_p(-1)


class _Version(ctypes.Structure):
    """How ``dnnl_version_t`` begins."""

    _fields_ = (("major", c_int), ("minor", c_int), ("patch", c_int))


class _Argument(ctypes.Structure):
    _fields_ = (("index", c_int), ("memory", c_void_p))


@cache
def library() -> ctypes.CDLL | None:
    """oneDNN 3, or None where it is not installed."""
    for name in (str(Path(sys.prefix) / "lib" / "libdnnl.so.3"), "libdnnl.so.3"):
        try:
            found = ctypes.CDLL(name)
        except OSError:
            continue
        found.dnnl_version.restype = ctypes.POINTER(_Version)
        found.dnnl_primitive_desc_query_md.restype = c_void_p
        return found
    return None


def version() -> str:
    """As "3.2.1". Raises ``RuntimeError`` where oneDNN is not installed."""
    of = _library().dnnl_version().contents
    return f"{of.major}.{of.minor}.{of.patch}"


def _library() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise RuntimeError("oneDNN is not installed; try: pip install onednn-cpu-gomp")
    return found


class Gru:
    """Recurrences with tied weights, one primitive a stream; weights lie as the primitive wants them.

    Everything it makes lives until the process ends.
    """

    def __init__(self, x: Array, w_x: Array, w_h: Array, bias: Array, gates: int, threads: int) -> None:
        """x (S, B, T, I) and weights as ``gated_rnn`` takes them."""
        self._threads = threads
        self._engine = self._make("dnnl_engine_create", c_int(_CPU), c_size_t(0))
        self._stream = self._make("dnnl_stream_create", self._engine, c_uint(1))
        self._kept: list[Array] = []
        self._results: list[tuple[Array, Array]] = []
        self._runs: list[tuple[c_void_p, ctypes.Array[_Argument]]] = []
        for stream in range(len(x)):
            of = tied(w_x[stream], gates), tied(w_h[stream], gates), tied(bias[stream], gates)
            self._runs.append(self._bound(x[stream], *of))

    def __call__(self) -> None:
        """Run once."""
        library = _library()
        library.omp_set_num_threads(self._threads)
        for primitive, arguments in self._runs:
            self._check(
                "dnnl_primitive_execute",
                library.dnnl_primitive_execute(primitive, self._stream, len(arguments), arguments),
            )
        self._check("dnnl_stream_wait", library.dnnl_stream_wait(self._stream))

    def outputs(self) -> list[Array]:
        """What the last run left: every state (S, B, T, H) and the last one (S, B, H)."""
        states, last = zip(*self._results, strict=True)
        return [np.stack([y.swapaxes(0, 1) for y in states]), np.stack([h[0, 0] for h in last])]

    def _bound(
        self, x: Array, w_x: Array, w_h: Array, bias: Array
    ) -> tuple[c_void_p, ctypes.Array[_Argument]]:
        """One stream's primitive and arguments. Layouts: (T, B, I), (1, 1, I, 3, H), (1, 1, 3, H)."""
        batch, steps, inputs = x.shape
        hidden = w_h.shape[1]
        given = {
            _X: np.ascontiguousarray(x.swapaxes(0, 1)),
            _H0: np.zeros((1, 1, batch, hidden), np.float32),
            _W_X: np.ascontiguousarray(w_x.T.reshape(1, 1, inputs, 3, hidden)),
            _W_H: np.ascontiguousarray(w_h.T.reshape(1, 1, hidden, 3, hidden)),
            _BIAS: np.ascontiguousarray(bias.reshape(1, 1, 3, hidden)),
            _Y: np.zeros((steps, batch, hidden), np.float32),
            _H_N: np.zeros((1, 1, batch, hidden), np.float32),
        }
        self._results.append((given[_Y], given[_H_N]))
        plain = {index: self._layout(array.shape) for index, array in given.items()}
        asked = {
            index: self._any_layout(given[index].shape) if index in (_W_X, _W_H) else layout
            for index, layout in plain.items()
        }
        description = self._make(
            "dnnl_gru_forward_primitive_desc_create",
            self._engine,
            c_int(_FORWARD_INFERENCE),
            c_int(_LEFT_TO_RIGHT),
            *(asked[index] for index in (_X, _H0, _W_X, _W_H, _BIAS, _Y, _H_N)),
            c_uint(0),
            c_void_p(),
        )
        memories = {index: self._memory(plain[index], array) for index, array in given.items()}
        for index in (_W_X, _W_H):
            memories[index] = self._reordered(description, index, plain[index], memories[index])
        arguments = (_Argument * len(memories))(*(_Argument(i, m.value) for i, m in memories.items()))
        return self._make("dnnl_primitive_create", description), arguments

    def _reordered(self, description: c_void_p, index: int, layout: c_void_p, memory: c_void_p) -> c_void_p:
        """Weights in the layout that the primitive chose."""
        query = _library().dnnl_primitive_desc_query_md
        wanted = c_void_p(query(description, c_int(_MEMORY_OF_ARGUMENT), c_int(index)))
        to = self._make("dnnl_memory_create", wanted, self._engine, _ALLOCATE)
        reorder = self._make(
            "dnnl_primitive_create",
            self._make(
                "dnnl_reorder_primitive_desc_create", layout, self._engine, wanted, self._engine, c_void_p()
            ),
        )
        arguments = (_Argument * 2)(_Argument(_X, memory.value), _Argument(_Y, to.value))
        library = _library()
        status = library.dnnl_primitive_execute(reorder, self._stream, 2, arguments)
        self._check("dnnl_primitive_execute", status or library.dnnl_stream_wait(self._stream))
        return to

    def _memory(self, layout: c_void_p, array: Array) -> c_void_p:
        self._kept.append(array)  # oneDNN sees an address only
        return self._make("dnnl_memory_create", layout, self._engine, c_void_p(array.ctypes.data))

    def _layout(self, shape: Sequence[int]) -> c_void_p:
        """C-contiguous."""
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
        of = c_int64 * len(shape)
        return self._make(
            "dnnl_memory_desc_create_with_strides", c_int(len(shape)), of(*shape), c_int(_F32), of(*strides)
        )

    def _any_layout(self, shape: Sequence[int]) -> c_void_p:
        """The primitive chooses."""
        of = c_int64 * len(shape)
        return self._make(
            "dnnl_memory_desc_create_with_tag", c_int(len(shape)), of(*shape), c_int(_F32), c_int(_ANY)
        )

    def _make(self, function: str, *arguments: object) -> c_void_p:
        """What a creating function writes to its first argument."""
        made = c_void_p()
        self._check(function, getattr(_library(), function)(ctypes.byref(made), *arguments))
        return made

    @staticmethod
    def _check(function: str, status: int) -> None:
        if status:
            raise RuntimeError(f"{function}: oneDNN {version()} answers status {status}")
