"""``affectrt::pairwise_attention``: all directed pairs of modalities as one operator that trains and exports.

Forward runs in C++ on the CPU and in Triton on NVIDIA GPUs; backward starts from the log-sum-exp that forward
kept, so the softmax is not normalised a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from affectrt_kernels import checks, native, reference
from affectrt_kernels.ops import triton_kernels, widened

Pairs = Sequence[tuple[int, int]]


def pairwise_attention(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    pairs: Pairs,
    lengths: Tensor | None = None,
    windows: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """The outputs of ``reference.pairwise_attention``, differentiable; arguments are described there.

    Half-precision inputs are computed in float32 and rounded at the end. Steps beyond a length get gradients
    of exactly zero, whatever they hold. Second derivatives are not defined.
    """
    flat_pairs = list(chain.from_iterable(pairs))
    checks.pairwise_attention(q, k, v, _unflattened(flat_pairs), lengths, windows)
    results = torch.ops.affectrt.pairwise_attention(
        list(q), list(k), list(v), flat_pairs, lengths, list(windows or [])
    )
    return list(results[: len(pairs)])


# The schemas are written out: torch infers lists of tensors differently from release to release. A list of no
# windows stands for None, which a list of tensors can't be, and results are one flat list, which is the only
# form that the ONNX exporter takes apart: here first all outputs, then all log-sums.
@torch.library.custom_op(
    "affectrt::pairwise_attention",
    mutates_args=(),
    schema="(Tensor[] q, Tensor[] k, Tensor[] v, int[] pairs, Tensor? lengths, Tensor[] windows) -> Tensor[]",
)
def _forward(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    flat_pairs: Sequence[int],
    lengths: Tensor | None,
    windows: Sequence[Tensor],
) -> list[Tensor]:
    pairs = _unflattened(flat_pairs)
    checks.pairwise_attention(q, k, v, pairs, lengths, windows or None)
    dtype = q[0].dtype
    if q[0].device.type == "cuda" and dtype != torch.float64:
        forward = triton_kernels("triton_attention").forward
        outputs, log_sums = forward(q, k, v, pairs, lengths, windows or None)
        return [*outputs, *log_sums]
    q, k, v = widened(*q), widened(*k), widened(*v)
    if q[0].device.type == "cpu" and q[0].dtype == torch.float32:
        found = native.pairwise_attention(
            [_numpy(x) for x in q],
            [_numpy(x) for x in k],
            [_numpy(x) for x in v],
            pairs,
            None if lengths is None else lengths.contiguous().numpy(),
            [window.contiguous().numpy() for window in windows] or None,
            threads=torch.get_num_threads(),
        )
        outputs, log_sums = ([torch.from_numpy(array) for array in arrays] for arrays in found)
    else:
        outputs, log_sums = reference.pairwise_attention(q, k, v, pairs, lengths, windows or None)
    # Contiguous, as the fake kernel promises: compiled code around the operator relies on it.
    return [*(output.to(dtype).contiguous() for output in outputs), *(sums.contiguous() for sums in log_sums)]


@_forward.register_fake
def _forward_fake(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    flat_pairs: Sequence[int],
    lengths: Tensor | None,
    windows: Sequence[Tensor],
) -> list[Tensor]:
    checks.pairwise_attention(q, k, v, _unflattened(flat_pairs), lengths, windows or None)
    wide = torch.float64 if q[0].dtype == torch.float64 else torch.float32
    outputs = [query.new_empty(query.shape) for query in q]
    return outputs + [query.new_empty(_log_sums_shape(query), dtype=wide) for query in q]


def _log_sums_shape(query: Tensor) -> tuple[int, int, int]:
    batch, rows, heads, _ = query.shape
    return batch, heads, rows


@torch.library.custom_op(
    "affectrt::pairwise_attention_backward",
    mutates_args=(),
    schema="(Tensor[] d_outputs, Tensor[] q, Tensor[] k, Tensor[] v, Tensor[] outputs, Tensor[] log_sums, "
    "int[] pairs, Tensor? lengths, Tensor[] windows) -> Tensor[]",
)
def _backward(
    d_outputs: Sequence[Tensor],
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    outputs: Sequence[Tensor],
    log_sums: Sequence[Tensor],
    flat_pairs: Sequence[int],
    lengths: Tensor | None,
    windows: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of every q, then every k, then every v."""
    pairs = _unflattened(flat_pairs)
    dtype = q[0].dtype
    if q[0].device.type == "cuda" and dtype != torch.float64:
        backward = triton_kernels("triton_attention").backward
        parts = backward(d_outputs, q, k, v, outputs, log_sums, pairs, lengths, windows or None)
        return [gradient for part in parts for gradient in part]
    dq: list[Tensor] = []
    dk: list[Tensor] = []
    dv: list[Tensor] = []
    for p, (asking, answering) in enumerate(pairs):
        asks = _valid(q[p], None if lengths is None else lengths[asking])
        answers = _valid(k[p], None if lengths is None else lengths[answering])
        hidden = None if answers is None else ~answers[:, None, None]
        if windows:
            rows = torch.arange(k[p].shape[1], device=k[p].device)
            outside = (rows < windows[p][:, None, :, :1]) | (rows >= windows[p][:, None, :, 1:])
            outside &= rows > 0  # the null slot is seen in any case
            hidden = outside if hidden is None else hidden | outside
        d_output, query, output = (_by_head(x, asks) for x in (d_outputs[p], q[p], outputs[p]))
        key, value = (_by_head(x, answers) for x in (k[p], v[p]))
        scale = query.shape[-1] ** -0.5

        # The softmax again: where the query is beyond its length the log-sum is +∞, so this is 0.
        weights = (query @ key.mT).mul_(scale).sub_(log_sums[p][..., None]).exp_()
        if hidden is not None:
            weights.masked_fill_(hidden, 0.0)
        d_value = weights.mT @ d_output
        d_scores = (d_output @ value.mT).sub_((d_output * output).sum(-1, keepdim=True))
        d_scores.mul_(weights).mul_(scale)
        for found, gradient in ((dq, d_scores @ key), (dk, d_scores.mT @ query), (dv, d_value)):
            found.append(gradient.transpose(1, 2).to(dtype).contiguous())
    return dq + dk + dv


@_backward.register_fake
def _backward_fake(
    d_outputs: Sequence[Tensor],
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    outputs: Sequence[Tensor],
    log_sums: Sequence[Tensor],
    flat_pairs: Sequence[int],
    lengths: Tensor | None,
    windows: Sequence[Tensor],
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (*q, *k, *v)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    q, k, v, flat_pairs, lengths, windows = inputs
    ctx.save_for_backward(*q, *k, *v, *output, lengths, *windows)
    ctx.mark_non_differentiable(*output[len(q) :])
    ctx.flat_pairs = list(flat_pairs)


def _apply_backward(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    count = len(ctx.flat_pairs) // 2
    q, k, v, outputs, log_sums = (list(ctx.saved_tensors[i * count : (i + 1) * count]) for i in range(5))
    lengths, *windows = ctx.saved_tensors[5 * count :]
    found = torch.ops.affectrt.pairwise_attention_backward(
        gradients[:count], q, k, v, outputs, log_sums, ctx.flat_pairs, lengths, windows
    )
    dq, dk, dv = (list(found[i * count : (i + 1) * count]) for i in range(3))
    return dq, dk, dv, None, None, [None] * len(windows)


_forward.register_autograd(_apply_backward, setup_context=_setup_context)


def _numpy(rows: Tensor) -> Any:
    """Without a copy where every row lies in one piece, as it does in a view of a joint projection."""
    rows = rows.detach()
    in_one_piece = rows.stride(3) == 1 and rows.stride(2) == rows.shape[3]
    return (rows if in_one_piece else rows.contiguous()).numpy()


def _unflattened(flat_pairs: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat_pairs[::2], flat_pairs[1::2], strict=True))


def _valid(rows: Tensor, length: Tensor | None) -> Tensor | None:
    """(B, 1 + T): which rows count, None where all do."""
    return None if length is None else torch.arange(rows.shape[1], device=rows.device) <= length[:, None]


def _by_head(rows: Tensor, valid: Tensor | None) -> Tensor:
    """(B, 1 + T, N, D) → (B, N, 1 + T, D) in at least float32, zero where not valid."""
    (rows,) = widened(rows)
    if valid is not None:
        rows = rows.masked_fill(~valid[..., None, None], 0.0)
    return rows.transpose(1, 2)
