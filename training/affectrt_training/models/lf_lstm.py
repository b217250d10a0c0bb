"""LF-LSTM: one LSTM a modality, their last states side by side (late fusion).

Source: the baseline of that name in the MulT paper (arXiv:1906.00295, table 1) and in those before it; the
LSTM is Hochreiter and Schmidhuber's (1997).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from affectrt_training.models.alignment import FeatureRows
from affectrt_training.models.fusion import Fused, FusionConfig, FusionModel
from affectrt_training.models.parts import last_valid


@dataclass(frozen=True)
class LfLstmConfig(FusionConfig):
    """Shape of an LF-LSTM. The papers that compare themselves with it give no sizes; these are ours."""

    text_hidden_dim: int = 64
    """State size of the text's LSTM."""
    audio_hidden_dim: int = 32
    """State size of the voice's LSTM."""
    vision_hidden_dim: int = 32
    """State size of the face's LSTM."""
    fused_dim: int = 64
    """Width of the fully connected layer before the heads."""
    dropout: float = 0.2
    """On the inputs and on what the heads read, while training."""


class LfLstm(FusionModel):
    """fused = ReLU(W [h_n(text); h_n(audio); h_n(vision)] + b); each is read at its own pace, unaligned."""

    Config = LfLstmConfig
    config: LfLstmConfig

    def __init__(self, config: LfLstmConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LfLstmConfig()
        shapes = (
            (config.text_dim, config.text_hidden_dim),
            (config.audio_dim, config.audio_hidden_dim),
            (config.vision_dim, config.vision_hidden_dim),
        )
        self.rows = nn.ModuleList(FeatureRows(dim) for dim, _ in shapes)
        self.lstms = nn.ModuleList(nn.LSTM(dim, hidden, batch_first=True) for dim, hidden in shapes)
        self.fused = nn.Linear(sum(hidden for _, hidden in shapes), config.fused_dim)
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
        given = ((text, text_lengths), (audio, audio_lengths), (vision, vision_lengths))
        last = []
        for (sequence, lengths), rows, lstm in zip(given, self.rows, self.lstms, strict=True):
            states, _ = lstm(self.dropout(rows(sequence, lengths)))
            last.append(last_valid(states, lengths + 1))
        fused = torch.relu(self.fused(self.dropout(torch.cat(last, dim=-1))))
        return self.answer(self.dropout(fused))
