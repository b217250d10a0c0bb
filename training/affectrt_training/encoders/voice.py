"""Log-mel frames in, voice states out: a small convolutional encoder."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class VoiceEncoderConfig:
    """Shape of the voice encoder."""

    n_mels: int = 64
    """Mel bands per frame."""
    channels: tuple[int, int, int] = (32, 64, 96)
    """Channels after each halving of time and frequency."""
    dim: int = 128
    """Features per output row."""


def _conv(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class _TemporalBlock(nn.Module):
    """Residual dilated convolution over time: (B, D, T) → (B, D, T)."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


class VoiceEncoder(nn.Module):
    """``log_mel`` (B, T, n_mels), level-normalised → states (B, ceil(T / 8), dim).

    Every third of the stack halves time, so that a 10 ms hop becomes one row per 80 ms.
    """

    ROWS_PER_STATE = 8
    CONTEXT_ROWS = 45
    """State k rests on the rows from 8 k − 45 to 8 k + 45."""

    def __init__(self, config: VoiceEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VoiceEncoderConfig()
        widths = (1, *config.channels)
        self.spectral = nn.Sequential(
            *(nn.Sequential(_conv(i, o, stride=2), _conv(o, o, stride=1)) for i, o in pairwise(widths))
        )
        self.flatten = nn.Sequential(
            nn.Linear(config.channels[-1] * -(-config.n_mels // 8), config.dim), nn.ReLU(), nn.Dropout(0.2)
        )
        self.temporal = nn.Sequential(_TemporalBlock(config.dim, 1), _TemporalBlock(config.dim, 2))

    def forward(self, log_mel: Tensor) -> Tensor:
        x = self.spectral(log_mel.unsqueeze(1))
        x = self.flatten(x.permute(0, 2, 1, 3).flatten(2))
        states: Tensor = self.temporal(x.transpose(1, 2)).transpose(1, 2)
        return states
