"""GHRNN-CMA: text queries attend to voice and face, gated recurrences read the pairs.

Source: ghrnn_cma §3.2, equations 9–12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from affectrt_kernels.ops import gated_rnn
from affectrt_training.models.fusion import (
    AUDIO,
    TEXT,
    VISION,
    Fused,
    FusionConfig,
    FusionModel,
    WithHeads,
    stack_lengths,
)
from affectrt_training.models.parts import AttentionProjections, PairwiseAttention, Projection


@dataclass(frozen=True)
class GhrnnCmaConfig(FusionConfig):
    """Shape of a GHRNN-CMA fusion model."""

    model_dim: int = 64
    """Width d that every modality is projected to."""
    heads: int = 4
    """Attention heads; divides model_dim."""
    hidden_dim: int = 64
    """State size of each of the three recurrences."""
    fused_dim: int = 96
    """Width of the fully connected layer of eq. 11."""
    kernel_steps: int = 3
    """Steps seen by the input convolutions (the paper's 1-D temporal convolution, eq. 2); odd."""
    dropout: float = 0.2
    """On projected features and on the fused vector, while training."""
    causal: bool = False
    """Of :class:`CausalGhrnnCma`, which answers at every tick from the past alone; else :class:`GhrnnCma`."""
    window_s: float = 10.0
    """How far back a tick attends; causal models only."""


class Fusion(WithHeads):
    """The parts that the model of whole clips and the causal one share, under the same names."""

    config: GhrnnCmaConfig

    def __init__(self, config: GhrnnCmaConfig) -> None:
        super().__init__()
        self.config = config
        d, h = config.model_dim, config.hidden_dim
        self.text, self.audio, self.vision = (
            Projection(dim, d, kernel_steps=config.kernel_steps, dropout=config.dropout, causal=config.causal)
            for dim in (config.text_dim, config.audio_dim, config.vision_dim)
        )
        self.text_to_audio = AttentionProjections(d, config.heads)
        self.text_to_vision = AttentionProjections(d, config.heads)
        self.attention = PairwiseAttention()
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3))
        self.w_x = nn.Parameter(torch.empty(3, 2 * h, 2 * d))
        self.w_h = nn.Parameter(torch.empty(3, 2 * h, h))
        self.bias = nn.Parameter(torch.zeros(3, 2 * h))
        for stream in range(3):
            for block in range(2):
                rows = slice(block * h, (block + 1) * h)
                nn.init.xavier_uniform_(self.w_x.data[stream, rows])
                nn.init.orthogonal_(self.w_h.data[stream, rows])
        self.fused = nn.Linear(3 * h, config.fused_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.add_heads(config.fused_dim)

    def attend(
        self, t: Tensor, a: Tensor, v: Tensor, lengths: Tensor, windows: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Projected modalities (B, 1 + T_m, d), lengths (3, B) → what the recurrences read (3, B, 1 + T, 2d).

        Text rows look at voice and at face (eq. 3–4); the three are normalised, then paired (eq. 9).
        """
        both = (self.text_to_audio, self.text_to_vision)
        parts = [attention.split(t, memory) for attention, memory in zip(both, (a, v), strict=True)]
        queries, keys, values = zip(*parts, strict=True)
        pairs = [(TEXT, AUDIO), (TEXT, VISION)]
        attended = self.attention(queries, keys, values, pairs, lengths, windows)
        at, vt = (attention.join(x) for attention, x in zip(both, attended, strict=True))
        t, at, vt = (norm(x) for norm, x in zip(self.norms, (t, at, vt), strict=True))
        return torch.stack([torch.cat([t, at], -1), torch.cat([t, vt], -1), torch.cat([at, vt], -1)])

    def read(self, states: Tensor) -> Fused:
        """States of the three recurrences (3, …, h) → sentiment (…,) and emotion logits (…, 7), eq. 11."""
        joined = states.movedim(0, -2).flatten(-2)
        fused = self.dropout(torch.relu(self.fused(self.dropout(joined))))
        return self.answer(fused)


class GhrnnCma(Fusion, FusionModel):
    """Three sequences in, sentiment and emotion out.

    What the paper leaves open, and what is done here: the query timeline is the text's (its "text-based
    acoustic and visual representations"), so voice and face speak through every token, and through the text's
    null slot when there is no text; the attention output is normalised before it is paired, because the three
    inputs differ in scale. The last state of each recurrence (eq. 10) is the one after the last valid token.
    """

    Config = GhrnnCmaConfig

    def __init__(self, config: GhrnnCmaConfig | None = None) -> None:
        config = config or GhrnnCmaConfig()
        if config.causal:
            raise ValueError("GhrnnCma: config.causal: expected False, got True; that is CausalGhrnnCma")
        super().__init__(config)

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
        t, a, v = (
            self.text(text, text_lengths),
            self.audio(audio, audio_lengths),
            self.vision(vision, vision_lengths),
        )
        pairs = self.attend(t, a, v, lengths)
        _, last = gated_rnn(pairs, self.w_x, self.w_h, self.bias, text_lengths + 1)  # eq. 10, 12
        return self.read(last)
