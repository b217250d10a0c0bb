"""GHRNN-CMA: text queries attend to voice and face, gated recurrences read the pairs.

Source: ghrnn_cma §3.2, equations 9–12.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from affectrt.affect import EMOTIONS
from affectrt_kernels.ops import gated_rnn


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


class Projection(nn.Module):
    """Temporal convolution to the model width, with the null slot put in front.

    (B, T, D) with lengths (B,) → (B, 1 + T, d) and the mask (B, 1 + T) of valid rows. Rows past the length
    are cleared before the convolution, so that padding never reaches a valid row. The null slot joins after
    it: a learned row that is always valid, which is what attention falls on when a modality is absent.
    """

    def __init__(self, in_dim: int, config: GhrnnCmaConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.conv = nn.Conv1d(in_dim, config.model_dim, config.kernel_steps, padding=config.kernel_steps // 2)
        self.null = nn.Parameter(torch.randn(config.model_dim) * 0.02)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(rows.shape[1], device=rows.device)
        valid = steps.unsqueeze(0) < lengths.unsqueeze(1)
        rows = self.norm(rows) * valid.unsqueeze(-1).to(rows.dtype)
        projected = self.conv(self.dropout(rows).transpose(1, 2)).transpose(1, 2)
        null = self.null.expand(rows.shape[0], 1, -1)
        always = torch.ones_like(valid[:, :1])
        return torch.cat([null, projected], dim=1), torch.cat([always, valid], dim=1)


class CrossModalAttention(nn.Module):
    """Multi-head attention of one modality's rows over another's (eq. 3–4 with Q from text).

    query (B, Tq, d), memory (B, Tm, d), valid (B, Tm) → (B, Tq, d).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, query: Tensor, memory: Tensor, valid: Tensor) -> Tensor:
        batch, steps, dim = query.shape

        def split(x: Tensor) -> Tensor:
            return x.view(batch, -1, self.heads, dim // self.heads).transpose(1, 2)

        q = split(self.query(query))
        k, v = (split(x) for x in self.key_value(memory).chunk(2, dim=-1))
        scores = q @ k.transpose(2, 3) * (dim // self.heads) ** -0.5
        # −1e9, not −inf: the null slot is always valid, so no row is ever fully masked.
        scores = scores.masked_fill(~valid[:, None, None, :], -1e9)
        attended = scores.softmax(dim=-1) @ v
        out: Tensor = self.out(attended.transpose(1, 2).reshape(batch, steps, dim))
        return out


class GhrnnCma(nn.Module):
    """Three sequences in, sentiment and emotion out.

    What the paper leaves open, and what is done here: the query timeline is the text's (its "text-based
    acoustic and visual representations"), so voice and face speak through every token, and through the text's
    null slot when there is no text; the attention output is normalised before it is paired, because the three
    inputs differ in scale. The last state of each recurrence (eq. 10) is the one after the last valid token.
    """

    def __init__(self, config: GhrnnCmaConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GhrnnCmaConfig()
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
        t, _ = self.text(text, text_lengths)
        a, a_valid = self.audio(audio, audio_lengths)
        v, v_valid = self.vision(vision, vision_lengths)
        at = self.text_to_audio(t, a, a_valid)
        vt = self.text_to_vision(t, v, v_valid)
        t, at, vt = (norm(x) for norm, x in zip(self.norms, (t, at, vt), strict=True))
        pairs = torch.stack(
            [torch.cat([t, at], -1), torch.cat([t, vt], -1), torch.cat([at, vt], -1)]
        )  # eq. 9
        _, last = gated_rnn(pairs, self.w_x, self.w_h, self.bias, text_lengths + 1)  # eq. 10, 12
        states = torch.cat([last[0], last[1], last[2]], dim=-1)
        fused = self.dropout(torch.relu(self.fused(self.dropout(states))))  # eq. 11
        return self.sentiment(fused).squeeze(-1).clamp(-3.0, 3.0), self.emotion(fused)
