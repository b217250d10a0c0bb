"""Directed pairwise attention (MulG, eq. 5–7): six pairs of 50 steps asking 500, four heads, float32.

Every sequence has its null slot in front, which for peers without one is one row more.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from affectrt_kernels import native, reference
from benchmarks.peers import eager
from benchmarks.peers.onnx_runtime import Array, Session, multi_head_attention
from benchmarks.timing import Case, Contender, difference, difference_of

PAIRS, HEADS, ASKING, ANSWERING = 6, 4, 50, 500
DIMS = (8, 16, 32, 64)
HELD_TO_TARGET = (8, 32)


def cases(threads: Iterable[int], quick: bool) -> list[Case]:
    """Every head dimension with every number of threads; ``quick``: the first."""
    return [_case(dim, count) for dim in (DIMS[:1] if quick else DIMS) for count in threads]


def _case(dim: int, threads: int) -> Case:
    generator = np.random.default_rng(0)
    drawn = [
        generator.standard_normal((PAIRS, 1, 1 + steps, HEADS, dim))
        for steps in (ASKING, ANSWERING, ANSWERING)
    ]
    q, k, v = (list(array.astype(np.float32)) for array in drawn)
    pairs = [(0, 1)] * PAIRS

    def run_native() -> list[Array]:
        return native.pairwise_attention(q, k, v, pairs, threads=threads)[0]

    q64, k64, v64 = ([torch.from_numpy(array).double() for array in arrays] for arrays in (q, k, v))
    truth = [output.numpy() for output in reference.pairwise_attention(q64, k64, v64, pairs)[0]]

    width = HEADS * dim
    session = Session(
        multi_head_attention(PAIRS, HEADS, dim),
        {
            f"{name}{p}": arrays[p].reshape(1, -1, width)
            for name, arrays in (("q", q), ("k", k), ("v", v))
            for p in range(PAIRS)
        },
        {f"y{p}": (1, 1 + ASKING, width) for p in range(PAIRS)},
        threads,
    )

    def from_onnx() -> list[Array]:
        return [array.reshape(1, -1, HEADS, dim) for array in session.outputs()]

    # All pairs in one batch, each head in one piece: (pairs, heads, rows, dim).
    queries, keys, values = (
        torch.from_numpy(np.concatenate(x)).transpose(1, 2).contiguous() for x in (q, k, v)
    )

    def sdpa() -> Tensor:
        with torch.inference_mode():
            return scaled_dot_product_attention(queries, keys, values)

    def plain() -> Tensor:
        with torch.inference_mode():
            return eager.attention(queries, keys, values)

    def apart(outputs: Tensor) -> list[Array]:
        return list(outputs.transpose(1, 2).unsqueeze(1).numpy())

    held = threads == 1
    return Case(
        operator="pairwise_attention",
        shape=f"pairs={PAIRS} B=1 heads={HEADS} {ASKING}×{ANSWERING} D={dim}",
        threads=threads,
        ours=Contender("native", run_native, lambda: difference(run_native(), truth)),
        peers=(
            Contender(
                f"onnxruntime MultiHeadAttention × {PAIRS}",
                session,
                difference_of(session, from_onnx, truth),
                3.0 if held and dim in HELD_TO_TARGET else None,
            ),
            Contender(
                "torch SDPA, pairs as one batch",
                sdpa,
                lambda: difference(apart(sdpa()), truth),
                1.0 if held else None,
            ),
            Contender("torch eager, pairs as one batch", plain, lambda: difference(apart(plain()), truth)),
        ),
        ours_threads=threads,
    )
