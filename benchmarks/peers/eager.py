"""The two operators in PyTorch, as fast as that goes without a kernel of one's own.

``affectrt_kernels.reference`` reads like the equations and clears padding at every step; these, "lean" in the
tables, do not. Both take part: the reference is what one writes first, this what one may get to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def step(from_x: Tensor, h: Tensor, w_gates: Tensor, w_candidate: Tensor) -> Tensor:
    """One step of eq. 12, or of the GRU where there are two gates, for rows that all run.

    from_x (S, B, (gates+1)·H), h (S, B, H), w_gates (S, H, gates·H), w_candidate (S, H, H).
    """
    hidden = h.shape[-1]
    cut = w_gates.shape[-1]
    gate = torch.baddbmm(from_x[..., :cut], h, w_gates).sigmoid()
    z, r = gate[..., :hidden], gate[..., -hidden:]
    g = torch.baddbmm(from_x[..., cut:], r * h, w_candidate).tanh()
    return torch.lerp(h, g, z)


def gated_rnn(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    lengths: Tensor | None = None,
    *,
    gates: int = 1,
    step: Step = step,
) -> tuple[Tensor, Tensor]:
    """``reference.gated_rnn`` from a state of zeros, forward; ``y`` beyond a length is not cleared.

    With ``lengths``, each at least 1, the last state is picked from all: cheaper than a mask in every step.
    """
    cut = gates * w_h.shape[2]
    w_gates, w_candidate = w_h[:, :cut].mT, w_h[:, cut:].mT
    from_x = torch.baddbmm(bias[:, None], x.flatten(1, 2), w_x.mT).view(*x.shape[:3], -1)
    h = x.new_zeros(*x.shape[:2], w_h.shape[2])
    states = []
    for at_step in from_x.unbind(2):
        h = step(at_step, h, w_gates, w_candidate)
        states.append(h)
    y = torch.stack(states, 2)
    if lengths is not None:
        h = y[:, torch.arange(len(lengths), device=x.device), lengths - 1]
    return y, h


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of q (…, Tq, D) over k and v (…, Tk, D); ``bias`` is added to the scores."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if bias is not None:
        scores = scores + bias
    attended: Tensor = scores.softmax(-1) @ v
    return attended


def pairwise_attention(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    lengths: Tensor,
    windows: None = None,
) -> list[Tensor]:
    """``reference.pairwise_attention`` for finite rows; queries beyond a length are not cleared."""
    outputs = []
    for p, (_, answering) in enumerate(pairs):
        rows = torch.arange(k[p].shape[1], device=k[p].device)
        hidden = rows > lengths[answering, :, None, None, None]  # (B, 1, 1, 1 + T)
        bias = torch.zeros(hidden.shape, dtype=q[p].dtype).masked_fill_(hidden, -torch.inf)
        query, key, value = (x.transpose(1, 2) for x in (q[p], k[p], v[p]))
        outputs.append(attention(query, key, value, bias).transpose(1, 2))
    return outputs
