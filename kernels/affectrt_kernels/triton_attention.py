"""``pairwise_attention`` on an NVIDIA GPU: launches the kernels of ``triton_flash*``.

Nothing is waited for on the host, so both functions can be captured in a CUDA graph, and there are no atomic
additions: the same inputs give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from affectrt_kernels import triton_flash, triton_flash_backward
from affectrt_kernels.triton_numerics import HALF, multiprocessors, on_device_of, options

Pairs = Sequence[tuple[int, int]]


class Plan(NamedTuple):
    """How the kernels are compiled and launched."""

    own: int
    """Rows that a program computes the result of."""
    other: int
    """Rows of the other side that it takes at a time."""
    warps: int

    def options(self) -> dict[str, int | bool]:
        """For Triton's compiler."""
        return options(self.warps, stages=2)

    def blocks(self, *, own_queries: bool) -> dict[str, int]:
        """The kernels' block sizes."""
        queries, keys = (self.own, self.other) if own_queries else (self.other, self.own)
        return {"QUERIES": queries, "KEYS": keys}


def plan(dtype: torch.dtype, dim: int, *, many: bool) -> Plan:
    """The static table. Many programs share what they read by taking more rows each; few spread thin."""
    if dtype not in HALF:
        return Plan(own=16, other=32, warps=4)
    other = max(16, 1024 // _padded(dim))
    return Plan(own=64, other=other, warps=4) if many else Plan(own=16, other=other, warps=1)


def _padded(dim: int) -> int:
    """What ``tl.dot`` takes in the place of D."""
    return int(max(16, triton.next_power_of_2(dim)))


def constants(pairs: Pairs, dim: int) -> dict[str, Any]:
    """The kernels' other compile-time arguments, for at most six pairs."""
    return {
        "ASKING": tuple(asking for asking, _ in pairs),
        "ANSWERING": tuple(answering for _, answering in pairs),
        "PAIRS": len(pairs),
        "D": dim,
        "DP": _padded(dim),
    }


def forward(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    pairs: Pairs,
    lengths: Tensor | None,
    windows: Sequence[Tensor] | None,
    *,
    many: bool | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """``reference.pairwise_attention`` for float32, float16 and bfloat16; the log-sums are float32.

    Tensors may be views whose last two axes are contiguous, such as parts of one fused projection; others are
    copied. ``many`` chooses the block size; None: by how much there is to do. Shapes and lengths are taken as
    checked.
    """
    outputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in q]
    log_sums = [x.new_empty(x.shape[0], x.shape[2], x.shape[1], dtype=torch.float32) for x in q]
    for part in _launches(pairs):
        call = _Call(q[part], k[part], v[part], pairs[part], lengths, windows and windows[part], many)
        call.run(triton_flash.forward, [], [outputs[part], log_sums[part]], own_queries=True)
    return outputs, log_sums


def backward(
    d_outputs: Sequence[Tensor],
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    outputs: Sequence[Tensor],
    log_sums: Sequence[Tensor],
    pairs: Pairs,
    lengths: Tensor | None,
    windows: Sequence[Tensor] | None,
    *,
    many: bool | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of q, k and v per pair, from what ``forward`` gave; zero in padding."""
    dq, dk, dv = (
        [torch.empty_like(x, memory_format=torch.contiguous_format) for x in xs] for xs in (q, k, v)
    )
    for part in _launches(pairs):
        call = _Call(q[part], k[part], v[part], pairs[part], lengths, windows and windows[part], many)
        given = [[x.contiguous() for x in xs[part]] for xs in (d_outputs, outputs, log_sums)]
        call.run(triton_flash_backward.backward_queries, given, [dq[part]], own_queries=True)
        call.run(triton_flash_backward.backward_keys, given, [dk[part], dv[part]], own_queries=False)
    return dq, dk, dv


def _launches(pairs: Pairs) -> list[slice]:
    """Pairs in sixes, as many as a kernel takes: all directed ones among three modalities."""
    return [slice(start, start + 6) for start in range(0, len(pairs), 6)]


class _Call:
    """What forward and backward launches have in common."""

    def __init__(
        self,
        q: Sequence[Tensor],
        k: Sequence[Tensor],
        v: Sequence[Tensor],
        pairs: Pairs,
        lengths: Tensor | None,
        windows: Sequence[Tensor] | None,
        many: bool | None,
    ) -> None:
        self._qkv = [tuple(_rows_of_heads(x) for x in xs) for xs in (q, k, v)]
        self._rows = [[x.shape[1] for x in xs] for xs in (q, k)]
        self._batch, _, self._heads, dim = q[0].shape
        self._lengths = None if lengths is None else lengths.contiguous()
        self._windows = None if windows is None else tuple(window.contiguous() for window in windows)
        self._dim = dim
        self._constants = constants(pairs, dim)
        self._many = many

    def run(
        self,
        kernel: Any,
        given: Sequence[Sequence[Tensor]],
        written: Sequence[Sequence[Tensor]],
        *,
        own_queries: bool,
    ) -> None:
        """Launch ``kernel`` if there is anything to write; ``given`` is what only backward reads."""
        first = self._qkv[0][0]
        own_rows = self._rows[0 if own_queries else 1]

        def grid(own: int) -> tuple[int, int, int]:
            return sum(triton.cdiv(rows, own) for rows in own_rows), self._heads, self._batch

        many = self._many
        if many is None:
            blocks, heads, batch = grid(plan(first.dtype, self._dim, many=True).own)
            many = blocks * heads * batch >= 2 * multiprocessors(first)
        chosen = plan(first.dtype, self._dim, many=many)
        if first.shape[0] == 0 or first.shape[2] == 0 or first.shape[3] == 0:
            return
        # A row of a batch of one is at no distance, whatever the view says.
        strides = [
            tuple(x.stride(axis) if x.shape[axis] > 1 else 0 for x in xs)
            for xs in self._qkv
            for axis in (0, 1)
        ]
        rows = [count for side in self._rows for count in [*side, *[None] * (6 - len(side))]]
        with on_device_of(first):
            kernel[grid(chosen.own)](
                *map(tuple, given),
                *self._qkv,
                self._lengths,
                self._windows,
                *strides,
                *rows,
                *map(tuple, written),
                **self._constants,
                **chosen.blocks(own_queries=own_queries),
                **chosen.options(),
            )


def _rows_of_heads(x: Tensor) -> Tensor:
    """``x`` if each row (N, D) lies in one piece, else a copy of which that is true."""
    return x if x.stride(3) == 1 and x.stride(2) == x.shape[3] else x.contiguous()
