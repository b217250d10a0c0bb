"""INPNRLN-MD: self-attention over voice and face, and outer products of both with the text.

Source: ghrnn_cma §3.1, equations 1–8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from affectrt_training.models.fusion import AUDIO, VISION, Fused, FusionConfig, FusionModel, stack_lengths
from affectrt_training.models.parts import (
    AttentionProjections,
    PairwiseAttention,
    Projection,
    masked_mean,
    valid_steps,
)


@dataclass(frozen=True)
class InpnrlnMdConfig(FusionConfig):
    """Shape of an INPNRLN-MD. The paper states the dropout alone; the rest is ours."""

    model_dim: int = 32
    """Width d of c_t, c_a and c_v; the outer products of eq. 6 have d² entries. Even."""
    heads: int = 4
    """Attention heads of eq. 4; divides model_dim."""
    fused_dim: int = 64
    """Width d_z that the outer products are projected to (eq. 7)."""
    kernel_steps: int = 3
    """Steps q_k seen by the convolutions of voice and face (eq. 2); odd."""
    text_state: Literal["mean", "first"] = "mean"
    """What stands for the text, the mean of its rows or the first: the prose above eq. 1 names both."""
    dropout: float = 0.3
    """On the features of every modality, while training (§4.1 doesn't say where). On the products or on the
    fused vector it biases the sentiment: then not even 32 reviews can be fitted."""

    def __post_init__(self) -> None:
        if self.model_dim % 2 or self.model_dim % self.heads:
            raise ValueError(
                f"model_dim: expected an even multiple of heads ({self.heads}), got {self.model_dim}"
            )


class ExpressionAttention(nn.Module):
    """The paper's ELN after its attention: residual, normalisation and the mean weighted over time.

    Rows (B, 1 + T, d) and what they attended to, of the same shape, → (B, d).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.projections = AttentionProjections(dim, heads)
        self.norm = nn.LayerNorm(dim)
        self.weight = nn.Linear(dim, 1)

    def read(self, rows: Tensor, attended: Tensor, lengths: Tensor) -> Tensor:
        """``attended`` by head (B, 1 + T, heads, d / heads); lengths (B,) don't count the null slot."""
        states = self.norm(rows + self.projections.join(attended))  # eq. 4
        valid = valid_steps(lengths + 1, rows.shape[1]).unsqueeze(-1)
        weights = self.weight(states).masked_fill(~valid, -torch.inf).softmax(1)
        mean: Tensor = (weights * states.masked_fill(~valid, 0.0)).sum(1)
        return mean


class InpnrlnMd(FusionModel):
    """Three sequences in, sentiment and emotion out, and c_t, c_a and c_v as views for the contrast of eq. 8.

    What the paper leaves open or garbles, and what is done here:

    - Eq. 1: BERT's states are the text features; a linear map takes them to d, as the outer product of 768
      entries with d would be most of the model. See ``text_state`` for which state is meant.
    - Eq. 3: the position embedding isn't described; it is the sinusoidal one of arXiv:1706.03762 §3.5, which
      knows any length. Nor are residual and normalisation mentioned; both are as in that paper's §3.1.
    - Fig. 2 ends in a "mean weighted filter" without an equation: a softmax over time of a learned score.
    - Eq. 6 calls ⊗ a dot product of dimension m·n; an outer product has that dimension.
    - Eq. 7 has the ReLU around the prediction, which could then never be negative: it is put around the
      projection to d_z, and a linear head follows. There is no eq. 5.
    - Eq. 8: the contrast is InfoNCE between modalities (``losses.across_loss``).
    """

    Config = InpnrlnMdConfig
    config: InpnrlnMdConfig

    def __init__(self, config: InpnrlnMdConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or InpnrlnMdConfig()
        d = config.model_dim
        self.text = Projection(config.text_dim, d, kernel_steps=1, dropout=config.dropout)
        self.audio, self.vision = (
            Projection(dim, d, kernel_steps=config.kernel_steps, dropout=config.dropout)
            for dim in (config.audio_dim, config.vision_dim)
        )
        self.attention = PairwiseAttention()
        self.express_audio, self.express_vision = (ExpressionAttention(d, config.heads) for _ in range(2))
        self.project = nn.Linear(2 * d * d, config.fused_dim)
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
        c_t = self.read_text(self.text(text, text_lengths), text_lengths)  # eq. 1
        rows = [
            with_positions(self.audio(audio, audio_lengths)),  # eq. 2
            with_positions(self.vision(vision, vision_lengths)),
        ]
        modules = (self.express_audio, self.express_vision)
        parts = [module.projections.split(x, x) for module, x in zip(modules, rows, strict=True)]
        queries, keys, values = zip(*parts, strict=True)
        pairs = [(AUDIO, AUDIO), (VISION, VISION)]
        lengths = stack_lengths(text_lengths, audio_lengths, vision_lengths)
        attended = self.attention(queries, keys, values, pairs, lengths)  # eq. 3
        c_a = self.express_audio.read(rows[0], attended[0], audio_lengths)
        c_v = self.express_vision.read(rows[1], attended[1], vision_lengths)
        products = [(c.unsqueeze(2) * c_t.unsqueeze(1)).flatten(1) for c in (c_a, c_v)]  # eq. 6
        fused = torch.relu(self.project(torch.cat(products, -1)))  # eq. 7
        return self.answer(fused, {"text": c_t, "audio": c_a, "vision": c_v})

    def read_text(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Rows (B, 1 + T, d) → c_t (B, d). The null slot stands for absent text and is part of the mean."""
        if self.config.text_state == "mean":
            return masked_mean(rows, lengths + 1)
        return torch.where((lengths > 0).unsqueeze(1), rows[:, 1], rows[:, 0])


def with_positions(rows: Tensor) -> Tensor:
    """Rows (B, S, d), d even, plus sines and cosines of their place (arXiv:1706.03762 §3.5)."""
    steps, dim = rows.shape[1:]
    place = torch.arange(steps, device=rows.device, dtype=rows.dtype).unsqueeze(1)
    rates = torch.exp(
        torch.arange(0, dim, 2, device=rows.device, dtype=rows.dtype) * (-math.log(10_000.0) / dim)
    )
    return rows + torch.cat([torch.sin(place * rates), torch.cos(place * rates)], dim=-1)
