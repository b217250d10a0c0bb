"""The two operators as their papers write them: what every faster implementation must equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from affectrt_kernels import checks


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
    checks.gated_rnn(x, w_x, w_h, bias, lengths, h0, gates)
    streams, batch, steps, _ = x.shape
    hidden = w_h.shape[2]
    if lengths is None:
        lengths = torch.full((batch,), steps, device=x.device)
    checks.lengths(lengths, steps)
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


def pairwise_attention(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    lengths: Tensor | None = None,
    windows: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Directed cross-modal attention: for each pair, one modality's rows look at another's.

    MulG, eq. 5–7, and GHRNN-CMA, eq. 3–4, for every pair (α, β) of modalities:

        CM_{β→α} = softmax(Q_α K_βᵀ / √D) V_β

    Modality m has 1 + T_m rows: its null slot, which is always valid, and T_m steps. So no softmax is empty,
    and an absent modality is one of length 0.

    Args:
        q: per pair (B, 1 + T_α, N, D), the queries of N heads.
        k: per pair (B, 1 + T_β, N, D), keys. Steps beyond a length are never read, here as in q and v.
        v: per pair (B, 1 + T_β, N, D), values.
        pairs: per pair (α, β), which modality asks and which answers, as rows of ``lengths``.
        lengths: (M, B) int64 valid steps per modality, null slot not counted; None: all.
        windows: per pair (B, 1 + T_α, 2) int64, for each query the first key it sees and the one after the
            last, counted with the null slot, which it sees in any case; None: all. See :func:`key_windows`.

    Returns:
        Per pair the attended values (B, 1 + T_α, N, D), zero for queries beyond the length, and the
        log-sum-exp of the scores (B, N, 1 + T_α) that a backward pass starts from, +∞ for those queries.

    Raises:
        ValueError: a shape, a pair or a length does not fit.
    """
    checks.pairwise_attention(q, k, v, pairs, lengths, windows)
    if lengths is not None:
        checks.pairwise_lengths(q, k, pairs, lengths)
    outputs, log_sums = [], []
    for p, (asking, answering) in enumerate(pairs):
        batch, queries, _, dim = q[p].shape
        rows = torch.arange(k[p].shape[1], device=q[p].device)
        asks = torch.ones(batch, queries, dtype=torch.bool, device=q[p].device)
        answers = torch.ones(batch, len(rows), dtype=torch.bool, device=q[p].device)
        if lengths is not None:
            asks = torch.arange(queries, device=q[p].device) <= lengths[asking, :, None]
            answers = rows <= lengths[answering, :, None]
        sees = answers[:, None, :].expand(batch, queries, len(rows))
        if windows is not None:
            inside = (windows[p][..., :1] <= rows) & (rows < windows[p][..., 1:])
            sees = sees & (inside | (rows == 0))

        query = q[p].masked_fill(~asks[..., None, None], 0.0)
        key, value = (x.masked_fill(~answers[..., None, None], 0.0) for x in (k[p], v[p]))
        scores = torch.einsum("bind,bjnd->bnij", query, key) * dim**-0.5
        scores = scores.masked_fill(~sees[:, None], -torch.inf)
        output = torch.einsum("bnij,bjnd->bind", scores.softmax(-1), value)
        outputs.append(output.masked_fill(~asks[..., None, None], 0.0))
        log_sums.append(scores.logsumexp(-1).masked_fill(~asks[:, None], torch.inf))
    return outputs, log_sums


def key_windows(query_times: Tensor, key_times: Tensor, key_lengths: Tensor, window_s: float) -> Tensor:
    """Which keys each query sees when time limits attention: t − W < t_key ≤ t.

    Args:
        query_times: (B, T_α) seconds.
        key_times: (B, T_β) seconds, not decreasing within a row's length.
        key_lengths: (B,) int64 valid keys.
        window_s: W.

    Returns:
        (B, 1 + T_α, 2) int64 for ``windows`` of :func:`pairwise_attention`; the null query sees the null key
        only.
    """
    valid = torch.arange(key_times.shape[1], device=key_times.device) < key_lengths[:, None]
    key_times = key_times.masked_fill(~valid, torch.inf).contiguous()
    edges = [query_times - window_s, query_times]
    seen = torch.stack([torch.searchsorted(key_times, edge, right=True) for edge in edges], dim=-1)
    return 1 + torch.nn.functional.pad(seen, (0, 0, 1, 0))
