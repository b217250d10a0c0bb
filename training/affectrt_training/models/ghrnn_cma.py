"""GHRNN-CMA: text queries attend to voice and face, gated recurrences read the pairs.

Source: ghrnn_cma §3.2, equations 9–12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from affectrt.affect import EMOTIONS
from affectrt_kernels.attention_ops import pairwise_attention
from affectrt_kernels.ops import gated_rnn

# Rows of ``lengths``.
TEXT, AUDIO, VISION = range(3)


@dataclass(frozen=True)
class GhrnnCmaConfig:
    """Shape of a GHRNN-CMA fusion model."""

    text_dim: int = 384
    """Features per text row."""
    audio_dim: int = 128
    """Features per audio row."""
    vision_dim: int = 128
    """Features per vision row."""
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


class Projection(nn.Module):
    """Temporal convolution to the model width, with the null slot put in front.

    (B, T, D) with lengths (B,) → (B, 1 + T, d). Rows past the length are cleared before the convolution, so
    that padding never reaches a valid row; a causal one sees a row and those before it. The null slot joins
    after it: a learned row that is always valid, which is what attention falls on when a modality is absent.
    """

    def __init__(self, in_dim: int, config: GhrnnCmaConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.causal = config.causal
        padding = 0 if config.causal else config.kernel_steps // 2
        self.conv = nn.Conv1d(in_dim, config.model_dim, config.kernel_steps, padding=padding)
        self.null = nn.Parameter(torch.randn(config.model_dim) * 0.02)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(rows.shape[1], device=rows.device)
        valid = steps.unsqueeze(0) < lengths.unsqueeze(1)
        rows = self.norm(rows) * valid.unsqueeze(-1).to(rows.dtype)
        channels = self.dropout(rows).transpose(1, 2)
        if self.causal:
            channels = nn.functional.pad(channels, (self.conv.kernel_size[0] - 1, 0))
        projected = self.conv(channels).transpose(1, 2)
        return torch.cat([self.null.expand(rows.shape[0], 1, -1), projected], dim=1)


class CrossModalAttention(nn.Module):
    """The projections around the attention of one modality's rows over another's (eq. 3–4, Q from text).

    The attention itself is one call for all pairs: see :meth:`Fusion.attend`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def split(self, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, Tq, d) and memory (B, Tm, d) → q, k and v by head, (B, T, heads, d / heads)."""
        k, v = self.key_value(memory).chunk(2, dim=-1)
        by_head = (self.heads, -1)
        return self.query(query).unflatten(-1, by_head), k.unflatten(-1, by_head), v.unflatten(-1, by_head)

    def join(self, attended: Tensor) -> Tensor:
        """(B, Tq, heads, d / heads) → (B, Tq, d)."""
        joined: Tensor = self.out(attended.flatten(-2))
        return joined


class Fusion(nn.Module):
    """The parts that the model of whole clips and the causal one share, under the same names."""

    def __init__(self, config: GhrnnCmaConfig) -> None:
        super().__init__()
        self.config = config
        d, h = config.model_dim, config.hidden_dim
        self.text = Projection(config.text_dim, config)
        self.audio = Projection(config.audio_dim, config)
        self.vision = Projection(config.vision_dim, config)
        self.text_to_audio = CrossModalAttention(d, config.heads)
        self.text_to_vision = CrossModalAttention(d, config.heads)
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
        self.sentiment = nn.Linear(config.fused_dim, 1)
        self.emotion = nn.Linear(config.fused_dim, len(EMOTIONS))

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
        attended = pairwise_attention(queries, keys, values, pairs, lengths, windows)
        at, vt = (attention.join(x) for attention, x in zip(both, attended, strict=True))
        t, at, vt = (norm(x) for norm, x in zip(self.norms, (t, at, vt), strict=True))
        return torch.stack([torch.cat([t, at], -1), torch.cat([t, vt], -1), torch.cat([at, vt], -1)])

    def read(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """States of the three recurrences (3, …, h) → sentiment (…,) and emotion logits (…, 7), eq. 11."""
        joined = states.movedim(0, -2).flatten(-2)
        fused = self.dropout(torch.relu(self.fused(self.dropout(joined))))
        return self.sentiment(fused).squeeze(-1).clamp(-3.0, 3.0), self.emotion(fused)


class GhrnnCma(Fusion):
    """Three sequences in, sentiment and emotion out.

    What the paper leaves open, and what is done here: the query timeline is the text's (its "text-based
    acoustic and visual representations"), so voice and face speak through every token, and through the text's
    null slot when there is no text; the attention output is normalised before it is paired, because the three
    inputs differ in scale. The last state of each recurrence (eq. 10) is the one after the last valid token.
    """

    def __init__(self, config: GhrnnCmaConfig | None = None) -> None:
        config = config or GhrnnCmaConfig()
        if config.causal:
            raise ValueError("GhrnnCma: config.causal: expected False, got True; that is CausalGhrnnCma")
        super().__init__(config)

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        audio: Tensor,
        audio_lengths: Tensor,
        vision: Tensor,
        vision_lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Sequences (B, T_m, D_m) with lengths (B,) int64 → sentiment (B,) and emotion logits (B, 7).

        A length of 0 means that the modality is absent; T_m is at least 1.
        """
        lengths = torch.stack([text_lengths, audio_lengths, vision_lengths])
        t, a, v = (
            self.text(text, text_lengths),
            self.audio(audio, audio_lengths),
            self.vision(vision, vision_lengths),
        )
        pairs = self.attend(t, a, v, lengths)
        _, last = gated_rnn(pairs, self.w_x, self.w_h, self.bias, text_lengths + 1)  # eq. 10, 12
        return self.read(last)
