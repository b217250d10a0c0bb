"""What every fusion model is: three padded sequences in, sentiment and emotion out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from affectrt.affect import EMOTIONS, SENTIMENT_LIMIT, Modality

# Rows of a model's ``lengths`` (3, B), in the order of ``affectrt.affect.MODALITIES``.
TEXT, AUDIO, VISION = range(3)


RATINGS = 7
"""Classes of sentiment, as acc-7 counts them: -3 … 3."""


@dataclass(frozen=True)
class FusionConfig:
    """What the configs of all fusion models begin with."""

    text_dim: int = 384
    """Features per text row."""
    audio_dim: int = 128
    """Features per audio row."""
    vision_dim: int = 128
    """Features per vision row."""


@dataclass(frozen=True)
class Fused:
    """What a fusion model makes of a batch."""

    sentiment: Tensor
    """(B,) in [-3, 3]."""
    emotion_logits: Tensor
    """(B, 7), in the order of ``EMOTIONS``."""
    views: Mapping[Modality, Tensor] = field(default_factory=dict)
    """(B, d) of each modality before they are fused, alike in width: what contrastive losses compare.
    Empty for models whose paper has no such loss."""
    rating_logits: Tensor | None = None
    """(B, 7) of the sentiment's classes -3 … 3, from models that also name them while training."""


class WithHeads(nn.Module):
    """The two heads that read a fused vector."""

    config: FusionConfig

    def add_heads(self, fused_dim: int) -> None:
        """Add a linear head for sentiment and one for emotion."""
        self.sentiment = nn.Linear(fused_dim, 1)
        self.emotion = nn.Linear(fused_dim, len(EMOTIONS))

    def answer(self, fused: Tensor, views: Mapping[Modality, Tensor] | None = None) -> Fused:
        """Read the heads: the fused vector (…, fused_dim) → sentiment (…,) and emotion logits (…, 7)."""
        return Fused(self.within_range(self.sentiment(fused).squeeze(-1)), self.emotion(fused), views or {})

    def within_range(self, sentiment: Tensor) -> Tensor:
        """Sentiment cut to [-3, 3]; while training its gradient passes as if it were not.

        Deep models overshoot in their first steps: with MulT and Adam at the paper's rate of 1e-3, the second
        step puts every row of a batch beyond 3, where a plain clamp has no gradient to bring it back. What is
        passed on never pushes further out, as labels lie in the range.
        """
        cut = sentiment.clamp(-SENTIMENT_LIMIT, SENTIMENT_LIMIT)
        return sentiment + (cut - sentiment).detach() if self.training else cut


class FusionModel(WithHeads, ABC):
    """A system of one of the papers, or a peer of theirs.

    Subclasses name their config class in ``Config``, call ``add_heads`` when they know how wide their fused
    vector is, keep their config as ``config`` and define :meth:`fuse`. A length of 0 means that the
    modality is absent; then its rows are never read, whatever they hold, and its null slot stands for it. T_m
    is at least 1.
    """

    Config: ClassVar[type[FusionConfig]]

    @abstractmethod
    def fuse(
        self,
        text: Tensor,
        text_lengths: Tensor,
        audio: Tensor,
        audio_lengths: Tensor,
        vision: Tensor,
        vision_lengths: Tensor,
    ) -> Fused:
        """Sequences (B, T_m, D_m) with lengths (B,) int64 → everything that training needs."""

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        audio: Tensor,
        audio_lengths: Tensor,
        vision: Tensor,
        vision_lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Sequences (B, T_m, D_m) with lengths (B,) int64 → sentiment (B,) and emotion logits (B, 7)."""
        fused = self.fuse(text, text_lengths, audio, audio_lengths, vision, vision_lengths)
        return fused.sentiment, fused.emotion_logits


def stack_lengths(text: Tensor, audio: Tensor, vision: Tensor) -> Tensor:
    """Lengths of the three modalities, each (B,) → (3, B), rows TEXT, AUDIO, VISION."""
    return torch.stack([text, audio, vision])
