"""What text alone gives: the mean of its rows, read by the heads. The baseline that fusion has to beat."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from affectrt_training.models.fusion import RATINGS, Fused, FusionConfig, FusionModel
from affectrt_training.models.parts import valid_steps


@dataclass(frozen=True)
class TextMeanConfig(FusionConfig):
    """Shape of the text baseline."""

    dropout: float = 0.1
    """On the mean, while training."""
    ratings: bool = False
    """Whether a head of its own names the sentiment's class, for the loss ``rating_weight``."""


class TextMean(FusionModel):
    """Mean pooling (arXiv:1908.10084) and two linear heads; voice and face are not looked at.

    With a tuned encoder in front it is the usual way to fine-tune one. Absent text is answered from the null
    slot: the prior.
    """

    Config = TextMeanConfig

    def __init__(self, config: TextMeanConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TextMeanConfig()
        self.null = nn.Parameter(torch.zeros(config.text_dim))
        self.dropout = nn.Dropout(config.dropout)
        self.add_heads(config.text_dim)
        self.rating = nn.Linear(config.text_dim, RATINGS) if config.ratings else None

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
        valid = valid_steps(text_lengths, text.shape[1]).unsqueeze(-1)
        total = text.masked_fill(~valid, 0.0).sum(1)
        present = (text_lengths > 0).unsqueeze(1)
        mean = torch.where(present, total / text_lengths.clamp(min=1).unsqueeze(1), self.null)
        pooled = self.dropout(mean)
        fused = self.answer(pooled)
        return fused if self.rating is None else replace(fused, rating_logits=self.rating(pooled))
