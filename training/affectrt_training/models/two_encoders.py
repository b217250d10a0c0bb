"""The encoders that CM-MSF runs side by side over the rows of one modality (cm_msf §3.2).

All take rows (B, 1 + T, d) with the null slot in front and the lengths (3, B) of all modalities, which do not
count it; all return (B, 1 + T, d). What they return beyond a length is finite and means nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from affectrt_training.models.cross_modal import Transformers, with_positions
from affectrt_training.models.parts import GatedRecurrence


def reverse_rows(rows: Tensor, counts: Tensor) -> Tensor:
    """The first ``counts`` (B,) rows of (B, T, d) in reverse order; those behind them stay where they are."""
    place = torch.arange(rows.shape[1], device=rows.device)
    mirrored = counts.unsqueeze(1) - 1 - place
    index = torch.where(mirrored >= 0, mirrored, place)
    return rows.gather(1, index.unsqueeze(-1).expand_as(rows))


class Given(nn.Module):
    """Rows as they came: the half of a pair whose network, BERT or ResNet, has already made them."""

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        return rows


class Lstm(nn.Module):
    """An LSTM from left to right. What lies behind a row never reaches it, so padding needs no care."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, batch_first=True)

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        states: Tensor = self.lstm(rows)[0]
        return states


class BiGru(nn.Module):
    """A reset-before GRU in both directions, each half as wide as the rows, so that the width stays."""

    def __init__(self, dim: int, modality: int) -> None:
        super().__init__()
        self.modality = modality
        self.gru = GatedRecurrence(dim, dim // 2, gates=2, bidirectional=True)

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        states: Tensor = self.gru(rows.unsqueeze(0), lengths[self.modality] + 1)[0]
        return states.squeeze(0)


class Transformer(nn.Module):
    """Transformer encoder layers over rows with their positions.

    The paper says no more than "Transformer" and its sizes. Norms stand before the sublayers
    (arXiv:2002.04745) because that trains without a warm-up; the inner layer is four times as wide, as in
    arXiv:1706.03762.
    """

    def __init__(self, dim: int, modality: int, *, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = Transformers(
            [(modality, modality)],
            dim,
            heads=heads,
            layers=layers,
            norm="pre",
            dropout=dropout,
            relu_dropout=0.0,
        )

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        found: list[Tensor] = self.layers([with_positions(rows)] * 3, lengths)  # all but its own unread
        return found[0]
