"""What several fusion models are built from. Sequences here have their null slot in front: (B, 1 + T, d)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from affectrt_kernels.attention_ops import pairwise_attention
from affectrt_kernels.ops import gated_rnn


def valid_steps(lengths: Tensor, steps: int) -> Tensor:
    """(B,) lengths → (B, steps) bool, true where a row is valid."""
    return torch.arange(steps, device=lengths.device) < lengths.unsqueeze(1)


class Projection(nn.Module):
    """Temporal convolution to the model width, with the null slot put in front.

    (B, T, D) with lengths (B,) → (B, 1 + T, d). Rows past the length are cleared before the convolution, so
    that padding never reaches a valid row; a causal one sees a row and those before it. The null slot joins
    after it: a learned row that is always valid, which is what attention falls on when a modality is absent.
    """

    def __init__(
        self, in_dim: int, dim: int, *, kernel_steps: int = 3, dropout: float = 0.0, causal: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.causal = causal
        self.conv = nn.Conv1d(in_dim, dim, kernel_steps, padding=0 if causal else kernel_steps // 2)
        self.null = nn.Parameter(torch.randn(dim) * 0.02)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        valid = valid_steps(lengths, rows.shape[1]).unsqueeze(-1)
        # masked_fill, not a product: padding may hold NaN.
        rows = self.norm(rows.masked_fill(~valid, 0.0)) * valid.to(rows.dtype)
        channels = self.dropout(rows).transpose(1, 2)
        if self.causal:
            channels = nn.functional.pad(channels, (self.conv.kernel_size[0] - 1, 0))
        projected = self.conv(channels).transpose(1, 2)
        return torch.cat([self.null.expand(rows.shape[0], 1, -1), projected], dim=1)


class PairwiseAttention(nn.Module):
    """The operator as a module without weights, so that a forward hook sees q, k and lengths of every call.

    Attention maps (MulG, fig. 4) are made from what such a hook sees.
    """

    def forward(
        self,
        q: Sequence[Tensor],
        k: Sequence[Tensor],
        v: Sequence[Tensor],
        pairs: Sequence[tuple[int, int]],
        lengths: Tensor,
        windows: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """As :func:`affectrt_kernels.attention_ops.pairwise_attention`; a modality may ask itself."""
        return pairwise_attention(q, k, v, pairs, lengths, windows)


class AttentionProjections(nn.Module):
    """The projections around the attention of one sequence's rows over another's.

    The attention itself is one call for all pairs: :class:`PairwiseAttention`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def split(self, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, Tq, d) and memory (B, Tm, d) → q, k and v by head, (B, T, heads, d / heads)."""
        k, v = self.key_value(memory).chunk(2, dim=-1)
        by_head = (self.heads, -1)
        return self.query(query).unflatten(-1, by_head), k.unflatten(-1, by_head), v.unflatten(-1, by_head)

    def join(self, attended: Tensor) -> Tensor:
        """(B, Tq, heads, d / heads) → (B, Tq, d)."""
        joined: Tensor = self.out(attended.flatten(-2))
        return joined


class GatedRecurrence(nn.Module):
    """Stacked reset-before recurrences (GHRNN: one gate; GRU of MulG eq. 1–4: two), S of them side by side.

    (S, B, T, I) with lengths (B,) that count every valid row → states (S, B, T, H) of the last layer, zero
    beyond the length, and its last states (S, B, H). Both directions: the two are concatenated, so H doubles.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        *,
        gates: int,
        streams: int = 1,
        layers: int = 1,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.gates, self.layers = gates, layers
        self.directions = 2 if bidirectional else 1
        blocks = gates + 1
        self.w_x, self.w_h, self.bias = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for layer in range(layers):
            width = in_dim if layer == 0 else hidden_dim * self.directions
            for _ in range(self.directions):
                w_x = torch.empty(streams, blocks * hidden_dim, width)
                w_h = torch.empty(streams, blocks * hidden_dim, hidden_dim)
                for stream in range(streams):
                    for block in range(blocks):
                        rows = slice(block * hidden_dim, (block + 1) * hidden_dim)
                        nn.init.xavier_uniform_(w_x[stream, rows])
                        nn.init.orthogonal_(w_h[stream, rows])
                self.w_x.append(nn.Parameter(w_x))
                self.w_h.append(nn.Parameter(w_h))
                self.bias.append(nn.Parameter(torch.zeros(streams, blocks * hidden_dim)))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        # Autocast knows nothing of the operator. Rounding adds up over steps: the weights' precision it is.
        x = last = x.to(self.bias[0].dtype)
        for layer in range(self.layers):
            results = [
                gated_rnn(
                    x,
                    self.w_x[index],
                    self.w_h[index],
                    self.bias[index],
                    lengths,
                    gates=self.gates,
                    reverse=direction == 1,
                )
                for direction in range(self.directions)
                for index in [layer * self.directions + direction]
            ]
            x = torch.cat([states for states, _ in results], dim=-1)
            last = torch.cat([state for _, state in results], dim=-1)
        return x, last


def last_valid(states: Tensor, lengths: Tensor) -> Tensor:
    """The state (B, d) at the last valid row of (B, T, d); lengths (B,) count every valid row, at least 1."""
    index = (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
    return states.gather(1, index).squeeze(1)


def masked_mean(rows: Tensor, lengths: Tensor) -> Tensor:
    """Mean (B, d) over the valid rows of (B, T, d); lengths (B,) count every valid row, at least 1."""
    valid = valid_steps(lengths, rows.shape[1]).unsqueeze(-1)
    return rows.masked_fill(~valid, 0.0).sum(1) / lengths.unsqueeze(1)
