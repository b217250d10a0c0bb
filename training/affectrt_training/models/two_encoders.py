"""The encoders that CM-MSF runs side by side over the rows of one modality (cm_msf §3.2).

All take rows (B, 1 + T, d) with the null slot in front, ``lengths`` (3, B), which do not count it, and which
of those is theirs; all return (B, 1 + T, d). What they return beyond a length is finite and means nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from affectrt_training.models.parts import AttentionProjections, GatedRecurrence, PairwiseAttention


def reverse_rows(rows: Tensor, counts: Tensor) -> Tensor:
    """The first ``counts`` (B,) rows of (B, T, d) in reverse order; those behind them stay where they are."""
    place = torch.arange(rows.shape[1], device=rows.device)
    mirrored = counts.unsqueeze(1) - 1 - place
    index = torch.where(mirrored >= 0, mirrored, place)
    return rows.gather(1, index.unsqueeze(-1).expand_as(rows))


def positions(rows: Tensor) -> Tensor:
    """Sines and cosines (T, d) for rows (B, T, d), d even: the encoding of arXiv:1706.03762, §3.5."""
    half = rows.shape[2] // 2
    rates = 10_000 ** (-torch.arange(half, device=rows.device, dtype=rows.dtype) / half)
    angles = torch.arange(rows.shape[1], device=rows.device, dtype=rows.dtype).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Given(nn.Module):
    """Rows as they came: the half of a pair whose network, BERT or ResNet, has already made them."""

    def forward(self, rows: Tensor, lengths: Tensor, modality: int) -> Tensor:
        return rows


class Lstm(nn.Module):
    """An LSTM from left to right. What lies behind a row never reaches it, so padding needs no care."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, batch_first=True)

    def forward(self, rows: Tensor, lengths: Tensor, modality: int) -> Tensor:
        states: Tensor = self.lstm(rows)[0]
        return states


class BiGru(nn.Module):
    """A reset-before GRU in both directions, each half as wide as the rows, so that the width stays."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gru = GatedRecurrence(dim, dim // 2, gates=2, bidirectional=True)

    def forward(self, rows: Tensor, lengths: Tensor, modality: int) -> Tensor:
        states: Tensor = self.gru(rows.unsqueeze(0), lengths[modality] + 1)[0]
        return states.squeeze(0)


class TransformerLayer(nn.Module):
    """Self-attention, then two linear layers, each around a skip and behind a norm."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before_attention, self.before_linear = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.projections = AttentionProjections(dim, heads)
        self.attention = PairwiseAttention()
        self.linear = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor, lengths: Tensor, modality: int) -> Tensor:
        normed = self.before_attention(rows)
        q, k, v = self.projections.split(normed, normed)
        [attended] = self.attention([q], [k], [v], [(modality, modality)], lengths)
        rows = rows + self.dropout(self.projections.join(attended))
        moved: Tensor = rows + self.dropout(self.linear(self.before_linear(rows)))
        return moved


class Transformer(nn.Module):
    """Transformer encoder layers over rows with their positions.

    The paper says no more than "Transformer" and its sizes. Norms stand before the layers (arXiv:2002.04745)
    because that trains without a warm-up; the inner layer is four times as wide, as in arXiv:1706.03762.
    """

    def __init__(self, dim: int, *, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, rows: Tensor, lengths: Tensor, modality: int) -> Tensor:
        rows = rows + positions(rows)
        for layer in self.layers:
            rows = layer(rows, lengths, modality)
        normed: Tensor = self.norm(rows)
        return normed
