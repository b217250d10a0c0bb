"""Attention of all directed pairs on a GPU: blocks of keys and a running softmax (arXiv:2307.08691, §3).

One launch serves up to six pairs of modalities that each have a length of their own: the first axis of the
grid counts the row blocks of all pairs, one pair after the other, and a program finds its pair from that.
Tensors come as tuples with one entry a pair. A modality's null slot is its row 0, so no softmax is empty.

Arguments come as pointers read, integers, pointers written, constants.
"""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from affectrt_kernels.triton_numerics import dot

LOG2_E = tl.constexpr(1.4426950408889634)
ROW_COUNTS = [f"{side}_rows{pair}" for side in "qk" for pair in range(6)]


@triton.jit
def entry(values: tl.tuple, pair: tl.tensor, PAIRS: tl.constexpr) -> tl.tensor:
    """The entry of a tuple for a pair that is known at run time only."""
    chosen = values[0]
    for p in tl.static_range(1, PAIRS):
        chosen = tl.where(pair == p, values[p], chosen)
    return chosen


@triton.jit
def place(rows: tl.tuple, BLOCK: tl.constexpr, PAIRS: tl.constexpr) -> tl.tuple:
    """This program's pair and its first row there."""
    index = tl.program_id(0)
    pair = index * 0
    first = index * 0
    start = index * 0
    for p in tl.static_range(PAIRS):
        pair = tl.where(index >= start, p, pair)
        first = tl.where(index >= start, start, first)
        start += (rows[p] + BLOCK - 1) // BLOCK
    return pair, (index - first) * BLOCK


@triton.jit
def valid_rows(
    lengths: tl.tensor, modalities: tl.constexpr, rows: tl.tensor, pair: tl.tensor, PAIRS: tl.constexpr
) -> tl.tensor:
    """How many rows of this program's batch row count, with the null slot; never more than there are."""
    if lengths is None:
        count = rows
    else:
        at = entry(modalities, pair, PAIRS) * tl.num_programs(2) + tl.program_id(2)
        count = tl.minimum(tl.maximum(tl.load(lengths + at), 0) + 1, rows).to(tl.int32)
    return count


@triton.jit
def head_start(
    tensors: tl.tuple, strides: tl.tuple, pair: tl.tensor, D: tl.constexpr, PAIRS: tl.constexpr
) -> tl.tensor:
    """Pointer to row 0 of this program's batch row and head; ``strides`` are those of the batch."""
    batch = tl.program_id(2).to(tl.int64)
    return entry(tensors, pair, PAIRS) + batch * entry(strides, pair, PAIRS) + tl.program_id(1) * D


@triton.jit
def head_rows(
    start: tl.tensor, row: tl.tensor, stride: tl.tensor, count: tl.tensor, D: tl.constexpr, DP: tl.constexpr
) -> tl.tensor:
    """(rows, DP): rows of one head, zero from ``count`` on and beyond its D dimensions."""
    dim = tl.arange(0, DP)[None, :]
    return tl.load(start + row[:, None] * stride + dim, mask=(row < count)[:, None] & (dim < D), other=0.0)


@triton.jit
def own_rows(
    tensors: tl.tuple,
    pair: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    D: tl.constexpr,
    DP: tl.constexpr,
    PAIRS: tl.constexpr,
) -> tl.tensor:
    """Pointers to rows of one head of a contiguous (B, rows, N, D)."""
    line = tl.program_id(2).to(tl.int64) * rows + row
    at = (line * tl.num_programs(1) + tl.program_id(1)) * D
    return entry(tensors, pair, PAIRS) + at[:, None] + tl.arange(0, DP)[None, :]


@triton.jit
def own_sums(
    tensors: tl.tuple, pair: tl.tensor, row: tl.tensor, rows: tl.tensor, PAIRS: tl.constexpr
) -> tl.tensor:
    """Pointers to entries of one head of a contiguous (B, N, rows)."""
    line = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    return entry(tensors, pair, PAIRS) + line * rows + row


@triton.jit
def key_blocks(
    windows: tl.tuple,
    pair: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    asks: tl.tensor,
    answers: tl.tensor,
    KEYS: tl.constexpr,
    PAIRS: tl.constexpr,
) -> tl.tuple:
    """First key and the one after the last that each query sees, and which blocks of keys to visit.

    Block 0 comes first: it has the null key, which every query sees. From ``begin`` on come those that some
    window touches.
    """
    if windows is None:
        low = row * 0
        high = low + answers
        begin = 1
        end = (answers + KEYS - 1) // KEYS
    else:
        at = entry(windows, pair, PAIRS) + (tl.program_id(2).to(tl.int64) * rows + row) * 2
        low = tl.load(at, mask=row < asks, other=answers)
        high = tl.load(at + 1, mask=row < asks, other=0)
        low = tl.minimum(tl.maximum(low, 0), answers).to(tl.int32)
        high = tl.minimum(tl.maximum(high, 0), answers).to(tl.int32)
        begin = tl.maximum(tl.min(low) // KEYS, 1)
        end = (tl.max(high) + KEYS - 1) // KEYS
    return low, high, begin, 1 + tl.maximum(end - begin, 0)


@triton.jit
def in_window(low: tl.tensor, high: tl.tensor, key: tl.tensor) -> tl.tensor:
    """Which keys are in a query's window, or the null key."""
    return ((low <= key) & (key < high)) | (key == 0)


@triton.jit(do_not_specialize=ROW_COUNTS)
def forward(
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
    outputs: tl.tuple,
    log_sums: tl.tuple,
    ASKING: tl.constexpr,
    ANSWERING: tl.constexpr,
    PAIRS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """``reference.pairwise_attention``: writes outputs (B, rows, N, D) and log_sums (B, N, rows) per pair.

    q, k, v: (B, rows, N, D) whose last two axes are contiguous, with the strides of the first two; lengths
    (M, B) int64 or None; windows (B, rows, 2) int64 or None. ASKING, ANSWERING: whose lengths count;
    DP: D rounded up for ``tl.dot``. Grid: (blocks of QUERIES rows of all pairs, N, B).
    """
    q_rows = (q_rows0, q_rows1, q_rows2, q_rows3, q_rows4, q_rows5)
    k_rows = (k_rows0, k_rows1, k_rows2, k_rows3, k_rows4, k_rows5)
    pair, first = place(q_rows, QUERIES, PAIRS)
    queries = entry(q_rows, pair, PAIRS)
    asks = valid_rows(lengths, ASKING, queries, pair, PAIRS)
    answers = valid_rows(lengths, ANSWERING, entry(k_rows, pair, PAIRS), pair, PAIRS)
    i = first + tl.arange(0, QUERIES)
    query = head_rows(head_start(q, q_batch, pair, D, PAIRS), i, entry(q_time, pair, PAIRS), asks, D, DP)
    k_start = head_start(k, k_batch, pair, D, PAIRS)
    v_start = head_start(v, v_batch, pair, D, PAIRS)
    k_stride = entry(k_time, pair, PAIRS)
    v_stride = entry(v_time, pair, PAIRS)
    low, high, begin, visits = key_blocks(windows, pair, i, queries, asks, answers, KEYS, PAIRS)

    most = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, DP], tl.float32)
    for visit in range(visits):
        j = tl.where(visit == 0, 0, begin + visit - 1) * KEYS + tl.arange(0, KEYS)
        key = head_rows(k_start, j, k_stride, answers, D, DP)
        value = head_rows(v_start, j, v_stride, answers, D, DP)
        scores = dot(query, tl.trans(key)) * (D**-0.5 * LOG2_E)
        scores = tl.where(in_window(low[:, None], high[:, None], j[None, :]), scores, -float("inf"))
        now = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - now[:, None])
        shrink = tl.exp2(most - now)
        total = total * shrink + tl.sum(weights, 1)
        mixed = mixed * shrink[:, None] + dot(weights.to(value.dtype), value)
        most = now
    mixed = tl.where((i < asks)[:, None], mixed / total[:, None], 0.0)
    log_sum = tl.where(i < asks, (most + tl.log2(total)) / LOG2_E, float("inf"))
    inside = (i < queries)[:, None] & (tl.arange(0, DP) < D)[None, :]
    tl.store(own_rows(outputs, pair, i, queries, D, DP, PAIRS), mixed, mask=inside)
    tl.store(own_sums(log_sums, pair, i, queries, PAIRS), log_sum, mask=i < queries)
