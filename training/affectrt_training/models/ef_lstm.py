"""EF-LSTM: the modalities' rows side by side, read by one LSTM (early fusion).

Source: the baseline of that name in the MulT paper (arXiv:1906.00295, table 1) and in those before it; the
LSTM is Hochreiter and Schmidhuber's (1997).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from affectrt_training.models.alignment import AlignedRows
from affectrt_training.models.fusion import Fused, FusionConfig, FusionModel, stack_lengths
from affectrt_training.models.parts import last_valid


@dataclass(frozen=True)
class EfLstmConfig(FusionConfig):
    """Shape of an EF-LSTM. The papers that compare themselves with it give no sizes; these are ours."""

    hidden_dim: int = 128
    """State size of the LSTM."""
    layers: int = 1
    """LSTMs on top of each other."""
    fused_dim: int = 64
    """Width of the fully connected layer before the heads."""
    dropout: float = 0.2
    """On the inputs, between layers and on what the heads read, while training."""


class EfLstm(FusionModel):
    """x_t = [text_t; audio_t; vision_t], h_t = LSTM(x_t, h_{t-1}), fused = ReLU(W h_n + b).

    Its rows must be aligned; :class:`AlignedRows` says how unaligned ones and absent modalities are made so.
    """

    Config = EfLstmConfig
    config: EfLstmConfig

    def __init__(self, config: EfLstmConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or EfLstmConfig()
        dims = (config.text_dim, config.audio_dim, config.vision_dim)
        self.rows = AlignedRows(dims)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(sum(dims), config.hidden_dim, config.layers, batch_first=True, dropout=between)
        self.fused = nn.Linear(config.hidden_dim, config.fused_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.add_heads(config.fused_dim)

    def fuse(
        self,
        text: Tensor,
        text_lengths: Tensor,
        audio: Tensor,
        audio_lengths: Tensor,
        vision: Tensor,
        vision_lengths: Tensor,
    ) -> Fused:
        """As :meth:`FusionModel.fuse`."""
        lengths = stack_lengths(text_lengths, audio_lengths, vision_lengths)
        aligned, steps = self.rows((text, audio, vision), lengths)
        states, _ = self.lstm(self.dropout(torch.cat(aligned, dim=-1)))
        fused = torch.relu(self.fused(self.dropout(last_valid(states, steps))))
        return self.answer(self.dropout(fused))
