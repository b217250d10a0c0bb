"""Gradients of the attention of ``triton_flash``, one kernel by blocks of queries and one by blocks of keys.

Each adds up what is its own, so nothing is added atomically.
"""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from affectrt_kernels.triton_flash import (
    LOG2_E,
    ROW_COUNTS,
    entry,
    head_rows,
    head_start,
    in_window,
    key_blocks,
    own_rows,
    own_sums,
    place,
    valid_rows,
)
from affectrt_kernels.triton_numerics import dot


@triton.jit(do_not_specialize=ROW_COUNTS)
def backward_queries(
    d_outputs: tl.tuple,
    outputs: tl.tuple,
    log_sums: tl.tuple,
    q: tl.tuple,
    k: tl.tuple,
    v: tl.tuple,
    lengths: tl.tensor,
    windows: tl.tuple,
    q_batch: tl.tuple,
    q_time: tl.tuple,
    k_batch: tl.tuple,
    k_time: tl.tuple,
    v_batch: tl.tuple,
    v_time: tl.tuple,
    q_rows0: tl.tensor,
    q_rows1: tl.tensor,
    q_rows2: tl.tensor,
    q_rows3: tl.tensor,
    q_rows4: tl.tensor,
    q_rows5: tl.tensor,
    k_rows0: tl.tensor,
    k_rows1: tl.tensor,
    k_rows2: tl.tensor,
    k_rows3: tl.tensor,
    k_rows4: tl.tensor,
    k_rows5: tl.tensor,
    dq: tl.tuple,
    ASKING: tl.constexpr,
    ANSWERING: tl.constexpr,
    PAIRS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Gradients of q, contiguous (B, rows, N, D), from those of the outputs. Otherwise as ``forward``.

    With P the attention weights, recomputed from the log-sums, and Δ_i = Σ_d dO_id O_id:
    dS = P ∘ (dO Vᵀ − Δ), dQ = dS K / √D.
    """
    q_rows = (q_rows0, q_rows1, q_rows2, q_rows3, q_rows4, q_rows5)
    k_rows = (k_rows0, k_rows1, k_rows2, k_rows3, k_rows4, k_rows5)
    pair, first = place(q_rows, QUERIES, PAIRS)
    queries = entry(q_rows, pair, PAIRS)
    asks = valid_rows(lengths, ASKING, queries, pair, PAIRS)
    answers = valid_rows(lengths, ANSWERING, entry(k_rows, pair, PAIRS), pair, PAIRS)
    i = first + tl.arange(0, QUERIES)
    inside = (i < asks)[:, None] & (tl.arange(0, DP) < D)[None, :]
    query = head_rows(head_start(q, q_batch, pair, D, PAIRS), i, entry(q_time, pair, PAIRS), asks, D, DP)
    d_output = tl.load(own_rows(d_outputs, pair, i, queries, D, DP, PAIRS), mask=inside, other=0.0)
    output = tl.load(own_rows(outputs, pair, i, queries, D, DP, PAIRS), mask=inside, other=0.0)
    delta = tl.sum(d_output.to(tl.float32) * output.to(tl.float32), 1)
    log_sum = tl.load(own_sums(log_sums, pair, i, queries, PAIRS), mask=i < asks, other=float("inf"))
    k_start = head_start(k, k_batch, pair, D, PAIRS)
    v_start = head_start(v, v_batch, pair, D, PAIRS)
    k_stride = entry(k_time, pair, PAIRS)
    v_stride = entry(v_time, pair, PAIRS)
    low, high, begin, visits = key_blocks(windows, pair, i, queries, asks, answers, KEYS, PAIRS)

    gradient = tl.zeros([QUERIES, DP], tl.float32)
    for visit in range(visits):
        j = tl.where(visit == 0, 0, begin + visit - 1) * KEYS + tl.arange(0, KEYS)
        key = head_rows(k_start, j, k_stride, answers, D, DP)
        value = head_rows(v_start, j, v_stride, answers, D, DP)
        exponent = dot(query, tl.trans(key)) * (D**-0.5 * LOG2_E) - (log_sum * LOG2_E)[:, None]
        sees = in_window(low[:, None], high[:, None], j[None, :])
        weights = tl.where(sees, tl.exp2(exponent), 0.0)
        d_scores = weights * (dot(d_output, tl.trans(value)) - delta[:, None])
        gradient += dot(d_scores.to(key.dtype), key)
    inside = (i < queries)[:, None] & (tl.arange(0, DP) < D)[None, :]
    tl.store(own_rows(dq, pair, i, queries, D, DP, PAIRS), gradient * (D**-0.5), mask=inside)


@triton.jit(do_not_specialize=ROW_COUNTS)
def backward_keys(
    d_outputs: tl.tuple,
    outputs: tl.tuple,
    log_sums: tl.tuple,
    q: tl.tuple,
    k: tl.tuple,
    v: tl.tuple,
    lengths: tl.tensor,
    windows: tl.tuple,
    q_batch: tl.tuple,
    q_time: tl.tuple,
    k_batch: tl.tuple,
    k_time: tl.tuple,
    v_batch: tl.tuple,
    v_time: tl.tuple,
    q_rows0: tl.tensor,
    q_rows1: tl.tensor,
    q_rows2: tl.tensor,
    q_rows3: tl.tensor,
    q_rows4: tl.tensor,
    q_rows5: tl.tensor,
    k_rows0: tl.tensor,
    k_rows1: tl.tensor,
    k_rows2: tl.tensor,
    k_rows3: tl.tensor,
    k_rows4: tl.tensor,
    k_rows5: tl.tensor,
    dk: tl.tuple,
    dv: tl.tuple,
    ASKING: tl.constexpr,
    ANSWERING: tl.constexpr,
    PAIRS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Gradients of k and v, contiguous (B, rows, N, D): dV = Pᵀ dO, dK = dSᵀ Q / √D.

    Otherwise as ``backward_queries``.
    Grid: (blocks of KEYS rows of all pairs, N, B).
    """
    q_rows = (q_rows0, q_rows1, q_rows2, q_rows3, q_rows4, q_rows5)
    k_rows = (k_rows0, k_rows1, k_rows2, k_rows3, k_rows4, k_rows5)
    pair, first = place(k_rows, KEYS, PAIRS)
    keys = entry(k_rows, pair, PAIRS)
    queries = entry(q_rows, pair, PAIRS)
    asks = valid_rows(lengths, ASKING, queries, pair, PAIRS)
    answers = valid_rows(lengths, ANSWERING, keys, pair, PAIRS)
    j = first + tl.arange(0, KEYS)
    key = head_rows(head_start(k, k_batch, pair, D, PAIRS), j, entry(k_time, pair, PAIRS), answers, D, DP)
    value = head_rows(head_start(v, v_batch, pair, D, PAIRS), j, entry(v_time, pair, PAIRS), answers, D, DP)
    q_start = head_start(q, q_batch, pair, D, PAIRS)
    q_stride = entry(q_time, pair, PAIRS)
    dims = (tl.arange(0, DP) < D)[None, :]

    d_key = tl.zeros([KEYS, DP], tl.float32)
    d_value = tl.zeros([KEYS, DP], tl.float32)
    # A block of absent keys has nothing to add up.
    for block in range(tl.where(first < answers, (asks + QUERIES - 1) // QUERIES, 0)):
        i = block * QUERIES + tl.arange(0, QUERIES)
        low, high, _, _ = key_blocks(windows, pair, i, queries, asks, answers, KEYS, PAIRS)
        query = head_rows(q_start, i, q_stride, asks, D, DP)
        inside = (i < asks)[:, None] & dims
        d_output = tl.load(own_rows(d_outputs, pair, i, queries, D, DP, PAIRS), mask=inside, other=0.0)
        output = tl.load(own_rows(outputs, pair, i, queries, D, DP, PAIRS), mask=inside, other=0.0)
        delta = tl.sum(d_output.to(tl.float32) * output.to(tl.float32), 1)
        log_sum = tl.load(own_sums(log_sums, pair, i, queries, PAIRS), mask=i < asks, other=float("inf"))
        exponent = dot(key, tl.trans(query)) * (D**-0.5 * LOG2_E) - (log_sum * LOG2_E)[None, :]
        sees = in_window(low[None, :], high[None, :], j[:, None])
        weights = tl.where(sees, tl.exp2(exponent), 0.0)
        d_value += dot(weights.to(value.dtype), d_output)
        d_scores = weights * (dot(value, tl.trans(d_output)) - delta[None, :])
        d_key += dot(d_scores.to(key.dtype), query)
    inside = (j < keys)[:, None] & dims
    tl.store(own_rows(dk, pair, j, keys, D, DP, PAIRS), d_key * (D**-0.5), mask=inside)
    tl.store(own_rows(dv, pair, j, keys, D, DP, PAIRS), d_value, mask=inside)
