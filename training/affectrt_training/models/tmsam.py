"""TMSAM: BiGRUs, cross-modal attention, two levels of self-attention, a branch for each of two tasks.

Source: tmsam §III, equations 2–9, and its table III.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from affectrt_training.models.cross_modal import CROSS_PAIRS
from affectrt_training.models.fusion import (
    Fused,
    FusionConfig,
    FusionModel,
    stack_lengths,
)
from affectrt_training.models.parts import (
    AttentionProjections,
    GatedRecurrence,
    PairwiseAttention,
    Projection,
    masked_mean,
)


@dataclass(frozen=True)
class TmsamConfig(FusionConfig):
    """Shape of a TMSAM fusion model.

    The paper's own size is ``hidden_dim=200``: five million weights, and five times the time a batch. The
    default is a fifth of it, with every width in proportion: a size that some hundred clips can train.
    """

    conv_dim: int = 40
    """Kernels of eq. 2, alike for all modalities. The paper states none."""
    kernel_steps: int = 3
    """Steps seen by eq. 2; odd. The paper states none."""
    hidden_dim: int = 40
    """State of a GRU in one direction, and width of one pair's cross-modal attention. The paper: 200 for
    both, so that rows are 400 wide before and after that attention."""
    cross_heads: int = 4
    """Heads of the cross-modal attention; divides hidden_dim. The paper: 4."""
    first_heads: int = 5
    """Heads of self-attention within a modality; divides 2 · hidden_dim. The paper: 6, which does not divide
    its 400; 5 does and is nearest."""
    second_heads: int = 8
    """Heads of self-attention over all modalities; divides 2 · hidden_dim. The paper: 8."""
    task_dim: int = 64
    """Width of the layers of the two branches. The paper states none."""
    dropout: float = 0.3
    """On given rows, states, attention's results and in the branches, while training. The paper: 0.3."""
    residual: bool = True
    """Add what a row was to what attention tells it, and normalise. False: eq. 6 and 8 to the letter."""
    cross_modal: bool = True
    """False: eq. 6–7 left out; modalities meet in the second level only."""
    first_level: bool = True
    """False: no self-attention within a modality."""
    second_level: bool = True
    """False: no self-attention over all modalities (eq. 8); their rows are averaged as they are."""

    def __post_init__(self) -> None:
        for name, width in (
            ("cross_heads", self.hidden_dim),
            ("first_heads", 2 * self.hidden_dim),
            ("second_heads", 2 * self.hidden_dim),
        ):
            if width % getattr(self, name):
                raise ValueError(f"{name}: expected a divisor of {width}, got {getattr(self, name)}")
        if self.kernel_steps % 2 == 0:
            raise ValueError(f"kernel_steps: expected an odd number, got {self.kernel_steps}")


class CrossProjections(AttentionProjections):
    """Projections that also narrow rows, from ``in_dim`` to ``dim`` (eq. 7)."""

    def __init__(self, in_dim: int, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.query, self.key_value = nn.Linear(in_dim, dim), nn.Linear(in_dim, 2 * dim)


class Told(nn.Module):
    """What becomes of rows once attention has told them something."""

    def __init__(self, dim: int, config: TmsamConfig) -> None:
        super().__init__()
        self.residual = config.residual
        self.dropout = nn.Dropout(config.dropout)
        if config.residual:
            self.norm = nn.LayerNorm(dim)

    def forward(self, rows: Tensor, told: Tensor) -> Tensor:
        told = self.dropout(told)
        result: Tensor = self.norm(rows + told) if self.residual else told
        return result


class CrossModal(nn.Module):
    """All directed pairs; a modality's two answers side by side (eq. 6–7)."""

    def __init__(self, config: TmsamConfig) -> None:
        super().__init__()
        h = config.hidden_dim
        self.projections = nn.ModuleList(CrossProjections(2 * h, h, config.cross_heads) for _ in CROSS_PAIRS)
        self.attention = PairwiseAttention()
        self.told = nn.ModuleList(Told(2 * h, config) for _ in range(3))

    def forward(self, z: list[Tensor], lengths: Tensor) -> list[Tensor]:
        """Rows (B, 1 + T_m, 2h) of the modalities, lengths (3, B) → alike."""
        projections = cast("Sequence[CrossProjections]", self.projections)
        parts = [
            p.split(z[asks], z[tells]) for p, (asks, tells) in zip(projections, CROSS_PAIRS, strict=True)
        ]
        queries, keys, values = zip(*parts, strict=True)
        attended = self.attention(queries, keys, values, CROSS_PAIRS, lengths)
        y = [p.join(x) for p, x in zip(projections, attended, strict=True)]
        return [told(z[m], torch.cat(y[2 * m : 2 * m + 2], -1)) for m, told in enumerate(self.told)]


class SelfAttention(nn.Module):
    """Rows of one sequence over one another (eq. 8)."""

    def __init__(self, dim: int, heads: int, config: TmsamConfig) -> None:
        super().__init__()
        self.projections = AttentionProjections(dim, heads)
        self.attention = PairwiseAttention()
        self.told = Told(dim, config)

    def forward(self, rows: Tensor, lengths: Tensor, row: int) -> Tensor:
        """(B, 1 + T, d), lengths (M, B) and which of them is theirs → (B, 1 + T, d)."""
        q, k, v = self.projections.split(rows, rows)
        [attended] = self.attention([q], [k], [v], [(row, row)], lengths)
        result: Tensor = self.told(rows, self.projections.join(attended))
        return result


def splice(rows: Sequence[Tensor], counts: Tensor) -> Tensor:
    """The valid rows of three sequences (B, T_m, d) one behind the other, (B, ΣT_m, d).

    ``counts`` (3, B) are the valid rows of each. What follows the last valid row means nothing.
    """
    joined = torch.cat(list(rows), 1)
    place = torch.arange(joined.shape[1], device=joined.device)
    skipped = torch.zeros_like(counts[0]).unsqueeze(1)
    end = torch.zeros_like(skipped)
    for m in range(2):
        own = counts[m].unsqueeze(1)
        end = end + own
        skipped = skipped + (rows[m].shape[1] - own) * (place >= end)
    index = (place + skipped).clamp(max=joined.shape[1] - 1)
    return joined.gather(1, index.unsqueeze(-1).expand_as(joined))


class Tmsam(FusionModel):
    """Three sequences in, sentiment and emotion out.

    What the paper leaves open or contradicts, and what is done here:

    * Eq. 2 is not padded in the paper, so that sequences get shorter; here they keep their length, as a clip
      may have a single row.
    * Eq. 4 has no reset gate, though eq. 3 computes one, and a "+" between z_t and ĥ_t. Without the reset,
      W_r, U_r and b_r would learn nothing; without the product, states could grow by 2 a step. What is
      computed is the GRU that the text speaks of, with the reset before the product by W_h:
      ĥ_t = tanh(U_h x_t + W_h (r_t ∘ h_{t−1}) + b_h), h_t = z_t ∘ ĥ_t + (1 − z_t) ∘ h_{t−1}.
    * Table III fits together as follows: 200 in each direction give rows of 400 (eq. 5); each of a modality's
      two pairs attends at 200, side by side 400 again, the "first level attention dimension".
    * Its "second level attention dimension" 1200 takes ⊕ of eq. 8 for three rows side by side, which demands
      sequences of one length. Ours have their own, so rows stand one behind the other and the width stays
      400; a row of one modality then still attends to all three, which is what the level is for.
    * Its 6 heads for 400: see ``first_heads``.
    * Eq. 6 and 8 keep nothing of a row but its query. With text alone its words would pass only through
      the queries of two null slots; hence ``residual``.
    * Fig. 3 and table III speak of a graph over dependency trees; no equation does, and feature rows have no
      trees. It is left out.
    * From rows to a vector: their mean; the paper is silent. A branch is three fully connected layers, as the
      text says of sentiment, the last of them eq. 9.
    * Its sentiment has 3 classes and its emotions 7. Sentiment here is a number in [-3, 3], as in all
      systems, and so without the softmax of eq. 9; emotions are 7 logits.
    """

    Config = TmsamConfig
    config: TmsamConfig

    def __init__(self, config: TmsamConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TmsamConfig()
        h, width = config.hidden_dim, 2 * config.hidden_dim
        self.projections = nn.ModuleList(
            Projection(dim, config.conv_dim, kernel_steps=config.kernel_steps, dropout=config.dropout)
            for dim in (config.text_dim, config.audio_dim, config.vision_dim)
        )
        self.recurrences = nn.ModuleList(
            GatedRecurrence(config.conv_dim, h, gates=2, bidirectional=True) for _ in range(3)
        )
        self.dropout = nn.Dropout(config.dropout)
        if config.cross_modal:
            self.cross_modal = CrossModal(config)
        if config.first_level:
            self.first = nn.ModuleList(SelfAttention(width, config.first_heads, config) for _ in range(3))
        if config.second_level:
            self.second = SelfAttention(width, config.second_heads, config)
        self.for_sentiment, self.for_emotion = (
            nn.Sequential(
                nn.Linear(width, config.task_dim),
                nn.ReLU(),
                nn.Dropout(config.dropout),
                nn.Linear(config.task_dim, config.task_dim),
                nn.ReLU(),
            )
            for _ in range(2)
        )
        self.add_heads(config.task_dim)

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
        z = [
            self.dropout(read(project(rows, own).unsqueeze(0), own + 1)[0].squeeze(0))  # eq. 2–5
            for project, read, rows, own in zip(
                self.projections, self.recurrences, (text, audio, vision), lengths, strict=True
            )
        ]
        if self.config.cross_modal:
            z = self.cross_modal(z, lengths)
        if self.config.first_level:
            z = [attend(rows, lengths, m) for m, (attend, rows) in enumerate(zip(self.first, z, strict=True))]
        counts = (lengths + 1).sum(0)
        joint = splice(z, lengths + 1)
        if self.config.second_level:
            joint = self.second(joint, (counts - 1).unsqueeze(0), 0)  # eq. 8
        fused = masked_mean(joint, counts)
        sentiment = self.sentiment(self.for_sentiment(fused)).squeeze(-1)  # eq. 9
        return Fused(self.within_range(sentiment), self.emotion(self.for_emotion(fused)))
