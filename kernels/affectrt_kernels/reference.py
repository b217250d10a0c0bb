"""The gated recurrence as its papers write it: what every faster implementation must equal."""

from __future__ import annotations

import torch
from torch import Tensor


def gated_rnn(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    lengths: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    gates: int = 1,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run ``S`` independent reset-before recurrences over a padded batch.

    ``gates=1`` is the GHRNN of GHRNN-CMA, eq. 12, whose one gate also resets (r = z); ``gates=2`` is the
    GRU of MulG, eq. 1–4 (and of arXiv:1406.1078v1 up to the sign of z), with a reset gate of its own:

        z_t = σ(W_xz x_t + W_hz h_{t-1} + b_z)
        r_t = z_t, or with two gates σ(W_xr x_t + W_hr h_{t-1} + b_r)
        g_t = tanh(W_xh x_t + W_hh (r_t ∘ h_{t-1}) + b_h)
        h_t = (1 − z_t) ∘ h_{t-1} + z_t ∘ g_t

    The prose below MulG's eq. 4 says that z near 1 *keeps* the old state, its eq. 4 says the opposite;
    the equation is followed, as it agrees with eq. 12. The reset comes before the matmul: ``torch.nn.GRU``
    has the same shapes and computes something else.

    Args:
        x: (S, B, T, I) inputs. Steps beyond a row's length are never read and may hold anything.
        w_x: (S, (gates+1)·H, I) input weights, blocks ordered z, (r,) candidate.
        w_h: (S, (gates+1)·H, H) recurrent weights, ordered alike.
        bias: (S, (gates+1)·H), ordered alike.
        lengths: (B,) int64 valid steps per row, each in 0..T; None: all T.
        h0: (S, B, H) initial state; None: zeros.
        reverse: walk every row from its last valid step to its first.

    Returns:
        ``y`` (S, B, T, H), at every step the state after it, zero beyond the length, and ``h_n`` (S, B, H),
        the state after the last step walked: ``h0`` where the length is 0.

    Raises:
        ValueError: a shape or a length does not fit.
    """
    check_shapes(x, w_x, w_h, bias, lengths, h0, gates)
    streams, batch, steps, _ = x.shape
    hidden = w_h.shape[2]
    if lengths is None:
        lengths = torch.full((batch,), steps, device=x.device)
    check_lengths(lengths, steps)
    valid = torch.arange(steps, device=x.device) < lengths[:, None]  # (B, T)

    x = x.masked_fill(~valid[..., None], 0.0)
    w_hg, w_hh = w_h[:, : gates * hidden].mT, w_h[:, gates * hidden :].mT
    from_x = torch.einsum("sbti,soi->sbto", x, w_x) + bias[:, None, None]

    h = x.new_zeros(streams, batch, hidden) if h0 is None else h0
    y = [torch.zeros_like(h)] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        gate = torch.sigmoid(from_x[:, :, t, : gates * hidden] + h @ w_hg)
        z, r = gate[..., :hidden], gate[..., -hidden:]  # one gate: the same block twice
        g = torch.tanh(from_x[:, :, t, gates * hidden :] + (r * h) @ w_hh)
        now = valid[:, t, None]
        h = torch.where(now, (1 - z) * h + z * g, h)
        y[t] = torch.where(now, h, 0.0)
    return (torch.stack(y, dim=2) if steps else x.new_zeros(streams, batch, 0, hidden)), h.clone()


def check_shapes(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    lengths: Tensor | None,
    h0: Tensor | None,
    gates: int,
) -> None:
    """Raise ``ValueError`` with what was expected and what came, unless the arguments fit together."""
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


def check_lengths(lengths: Tensor, steps: int) -> None:
    """Raise ``ValueError`` naming the first row whose length is outside 0..``steps``."""
    outside = (lengths < 0) | (lengths > steps)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(f"gated_rnn: lengths[{row}]: expected 0..{steps}, got {int(lengths[row])}")
