"""What the operators demand of their arguments: ``ValueError`` says what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gated_rnn(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    lengths: Tensor | None,
    h0: Tensor | None,
    gates: int,
) -> None:
    """Raise ``ValueError`` with what was expected and what came, unless they fit together."""
    if gates not in (1, 2):
        raise ValueError(f"gated_rnn: gates: expected 1 or 2, got {gates}")
    if x.ndim != 4:
        raise ValueError(f"gated_rnn: x: expected (S, B, T, I), got shape {tuple(x.shape)}")
    if w_h.ndim != 3:
        raise ValueError(f"gated_rnn: w_h: expected (S, (gates+1)·H, H), got shape {tuple(w_h.shape)}")
    streams, batch, _, inputs = x.shape
    hidden = w_h.shape[2]
    blocks = (gates + 1) * hidden
    expected: list[tuple[str, Tensor | None, str, tuple[int, ...]]] = [
        ("w_x", w_x, "(S, (gates+1)·H, I)", (streams, blocks, inputs)),
        ("w_h", w_h, "(S, (gates+1)·H, H)", (streams, blocks, hidden)),
        ("bias", bias, "(S, (gates+1)·H)", (streams, blocks)),
        ("h0", h0, "(S, B, H)", (streams, batch, hidden)),
        ("lengths", lengths, "(B,)", (batch,)),
    ]
    for name, tensor, symbols, shape in expected:
        if tensor is None:
            continue
        if tensor.ndim != len(shape) or any(
            got != want for got, want in zip(tensor.shape, shape, strict=True)
        ):
            raise ValueError(
                f"gated_rnn: {name}: expected {symbols} = {shape}, got shape {tuple(tensor.shape)}"
            )
        if name != "lengths" and tensor.dtype != x.dtype:
            raise ValueError(f"gated_rnn: {name}: expected the type of x, {x.dtype}, got {tensor.dtype}")
    if lengths is not None and lengths.dtype != torch.int64:
        raise ValueError(f"gated_rnn: lengths: expected torch.int64, got {lengths.dtype}")


def lengths(values: Tensor, steps: int, operator: str = "gated_rnn") -> None:
    """Raise ``ValueError`` naming the first row whose length is outside 0..``steps``."""
    outside = (values < 0) | (values > steps)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(f"{operator}: lengths[{row}]: expected 0..{steps}, got {int(values[row])}")


def pairwise_attention(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    lengths: Tensor | None,
    windows: Sequence[Tensor] | None,
) -> None:
    """Raise ``ValueError`` unless they fit together; values of ``lengths`` are not looked at."""

    def refuse(name: str, expected: object, got: object) -> None:
        raise ValueError(f"pairwise_attention: {name}: expected {expected}, got {got}")

    for name, tensors in (("q", q), ("k", k), ("v", v), ("windows", windows)):
        if tensors is not None and len(tensors) != len(pairs):
            refuse(name, f"one tensor for each of {len(pairs)} pairs", len(tensors))
    if not pairs:
        refuse("pairs", "at least one", "none")
    if q[0].ndim != 4:
        refuse("q[0]", "(B, 1+T, N, D)", f"shape {tuple(q[0].shape)}")
    batch, _, heads, dim = q[0].shape
    rows: dict[int, int] = {}
    for p, (asking, answering) in enumerate(pairs):
        for name, modality, tensor in (
            (f"q[{p}]", asking, q[p]),
            (f"k[{p}]", answering, k[p]),
            (f"v[{p}]", answering, v[p]),
        ):
            if modality < 0 or (lengths is not None and lengths.ndim == 2 and modality >= lengths.shape[0]):
                refuse(f"pairs[{p}]", "modalities that are rows of lengths", (asking, answering))
            if tensor.ndim != 4 or tensor.shape[1] < 1:
                refuse(name, "(B, 1+T, N, D)", f"shape {tuple(tensor.shape)}")
            shape = (batch, rows.setdefault(modality, tensor.shape[1]), heads, dim)
            if tuple(tensor.shape) != shape:
                refuse(name, f"(B, 1+T, N, D) = {shape}", f"shape {tuple(tensor.shape)}")
            if tensor.dtype != q[0].dtype:
                refuse(name, f"the type of q[0], {q[0].dtype}", tensor.dtype)
        if windows is not None:
            if tuple(windows[p].shape) != (batch, q[p].shape[1], 2):
                refuse(f"windows[{p}]", f"(B, 1+T, 2) = {(batch, q[p].shape[1], 2)}", tuple(windows[p].shape))
            if windows[p].dtype != torch.int64:
                refuse(f"windows[{p}]", torch.int64, windows[p].dtype)
    if lengths is not None:
        if lengths.ndim != 2 or lengths.shape[1] != batch:
            refuse("lengths", f"(M, B) with B = {batch}", f"shape {tuple(lengths.shape)}")
        if lengths.dtype != torch.int64:
            refuse("lengths", torch.int64, lengths.dtype)


def pairwise_lengths(
    q: Sequence[Tensor], k: Sequence[Tensor], pairs: Sequence[tuple[int, int]], values: Tensor
) -> None:
    """Raise ``ValueError`` naming the first modality and row whose length is outside 0..T."""
    for p, (asking, answering) in enumerate(pairs):
        for modality, steps in ((asking, q[p].shape[1] - 1), (answering, k[p].shape[1] - 1)):
            lengths(values[modality], steps, f"pairwise_attention: modality {modality}")
