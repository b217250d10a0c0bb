"""BERT-Inception: self-attention over text, 2D-Inception blocks over voice and face, contrast within each.

Source: bert_inception §3, equations 1–12.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from affectrt_training.encoders.face import BatchNorm2d, Inception2d
from affectrt_training.models.cross_modal import Transformers
from affectrt_training.models.fusion import (
    AUDIO,
    TEXT,
    VISION,
    Fused,
    FusionConfig,
    FusionModel,
    stack_lengths,
)
from affectrt_training.models.parts import PairwiseAttention, Projection, masked_mean, valid_steps

MIN_CHANNELS = 48
"""Fewer leave one of the Inception block's branches without a channel."""


@dataclass(frozen=True)
class BertInceptionConfig(FusionConfig):
    """Shape of a BERT-Inception fusion model. The paper states ``text_layers`` alone."""

    model_dim: int = 64
    """Width d of text rows, of each modality's view and of the fully connected layer before eq. 10."""
    text_layers: int = 5
    """Self-attention layers over text rows (§4.2: "the number of transform layers is set to 5"); 0: none."""
    heads: int = 4
    """Attention heads over text; divides model_dim."""
    map_width: int = 16
    """Columns of the maps that voice and face rows are laid out as."""
    channels: tuple[int, int] = (48, 48)
    """Channels of the two blocks of each map (fig. 3); at least 48."""
    base_width: int = 3
    """The paper's d, odd: kernels are d and 2d wide, pooling is 1.5d (§3.2.1)."""
    inception: bool = True
    """False: plain convolutions of d × d in place of the 2D-Inception blocks (table 1, "CNN")."""
    map_attention: bool = True
    """Self-attention between the places of a map (eq. 5)."""
    dropout: float = 0.2
    """On projected rows, between text layers and on the fused vector, while training."""

    def __post_init__(self) -> None:
        if self.model_dim % self.heads:
            raise ValueError(f"heads: expected a divisor of model_dim = {self.model_dim}, got {self.heads}")
        if min(self.channels) < MIN_CHANNELS:
            raise ValueError(f"channels: expected at least {MIN_CHANNELS} each, got {self.channels}")
        if self.base_width % 2 == 0 or self.map_width < 2:
            raise ValueError(
                f"expected an odd base_width and a map_width of at least 2, got {self.base_width} and "
                f"{self.map_width}"
            )


class PlainBlock(nn.Module):
    """What an Inception block is compared with: one convolution. (N, C_in, H, W) → (N, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, d: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, d, padding=d // 2, bias=False)
        self.norm = BatchNorm2d(out_channels)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x) * valid, valid))


class PlaceAttention(nn.Module):
    """Self-attention between the places of a map, added to it (§3.2.2, eq. 5).

    (B, C, H, W), of which the first ``rows`` (B,) ≥ 1 of the H rows are valid → the same shape. Places in
    reading order make the valid ones a prefix, so the operator for sequences serves. Scores are plain
    products as in eq. 5, so the operator's 1 / √d is undone; g asks and f answers, which is eq. 5's softmax
    over i. Values have a quarter of the channels too, and a linear layer back: the paper gives no widths.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = channels // 4
        self.fgh = nn.Linear(channels, 3 * self.narrow)
        self.out = nn.Linear(self.narrow, channels)
        self.attention = PairwiseAttention()

    def forward(self, x: Tensor, rows: Tensor, modality: int) -> Tensor:
        width = x.shape[3]
        f, g, h = self.fgh(x.flatten(2).transpose(1, 2)).unsqueeze(2).chunk(3, dim=-1)  # (B, H · W, 1, C/4)
        # One place fewer: the operator counts the first, always valid one as a null slot.
        lengths = (rows * width - 1).expand(3, -1)
        [o] = self.attention([g * self.narrow**0.5], [f], [h], [(modality, modality)], lengths)
        added: Tensor = x + self.out(o.squeeze(2)).transpose(1, 2).unflatten(2, (-1, width))
        return added


class MapEncoder(nn.Module):
    """The image module (fig. 3): block → average pooling, normalisation → self-attention → block → average.

    Rows (B, T, D) with lengths (B,) → (B, d).
    """

    def __init__(self, in_dim: int, config: BertInceptionConfig) -> None:
        super().__init__()
        first, second = config.channels
        block = Inception2d if config.inception else PlainBlock
        self.rows = Projection(in_dim, config.map_width, kernel_steps=1, dropout=config.dropout)
        self.first = block(1, first, config.base_width)
        self.norm = BatchNorm2d(first)
        self.attention = PlaceAttention(first) if config.map_attention else None
        self.second = block(first, second, config.base_width)
        self.out = nn.Linear(second, config.model_dim)

    def forward(self, rows: Tensor, lengths: Tensor, modality: int) -> Tensor:
        count = lengths + 1  # the null slot is the map's first row
        x = self.rows(rows, lengths).unsqueeze(1)
        valid = _valid(x, count)
        x = self.first(x * valid, valid)
        x, count = _halve(x, valid), (count + 1) // 2
        valid = _valid(x, count)
        x = self.norm(x, valid)
        if self.attention is not None:
            x = self.attention(x, count, modality) * valid
        x = self.second(x, valid)
        pooled: Tensor = self.out(masked_mean(x.mean(3).transpose(1, 2), count))
        return pooled


def _halve(x: Tensor, valid: Tensor) -> Tensor:
    """Average pooling 2 × 2 over valid places; the last of an odd number of rows stands alone."""
    # A row of zeros below, which no map counts, keeps that row.
    x, share = (F.avg_pool2d(F.pad(y, (0, 0, 0, 1)), 2) for y in (x, valid.expand_as(x[:, :1])))
    return x / share.clamp(min=0.5)


def _valid(x: Tensor, count: Tensor) -> Tensor:
    """(B, 1, H, 1): 1 in the first ``count`` (B,) rows of maps (B, C, H, W), else 0."""
    return valid_steps(count, x.shape[2]).to(x.dtype)[:, None, :, None]


class BertInception(FusionModel):
    """Three sequences in, sentiment and emotion out; the views of eq. 6–8 beside them.

    What the paper leaves open, and what is done here.

    * It writes of sentences with aspect words and single images. Here text rows are what BERT made of the
      words (eq. 1), and the sentence vector is their mean after self-attention (eq. 2); there are no aspect
      words, so eq. 3–4 have nothing to slice. Voice and face are sequences of feature rows: maps of time ×
      feature, as the "time-frequency graph" of its STFT is. As features have no order in general, a linear
      layer first lays each row out on ``map_width`` columns; the null slot is the map's first row.
    * Positive pairs in eq. 6–8 are two crops of one sample. A view here is one vector a modality, and
      ``losses.within_loss`` takes samples of one label as the pairs.
    * Eq. 9 names text, image and audio but concatenates the text with two crops of the image: here text,
      voice and face, one vector each. A fully connected layer with ReLU follows, then the heads (eq. 10).
    * Fig. 3 shows no kernel sizes or channels and §4.2 gives none: those here suit maps of some ten rows.
    """

    Config = BertInceptionConfig

    def __init__(self, config: BertInceptionConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or BertInceptionConfig()
        d = config.model_dim
        self.text = Projection(config.text_dim, d, kernel_steps=1, dropout=config.dropout)
        self.text_attention = Transformers(
            [(TEXT, TEXT)],
            d,
            heads=config.heads,
            layers=config.text_layers,
            norm="pre",
            dropout=config.dropout,
            relu_dropout=config.dropout,
        )
        self.audio, self.vision = (MapEncoder(dim, config) for dim in (config.audio_dim, config.vision_dim))
        self.fused = nn.Linear(3 * d, d)
        self.dropout = nn.Dropout(config.dropout)
        self.add_heads(d)

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
        [context] = self.text_attention([self.text(text, text_lengths)], lengths)
        t = masked_mean(context, text_lengths + 1)  # eq. 2
        a = self.audio(audio, audio_lengths, AUDIO)
        v = self.vision(vision, vision_lengths, VISION)
        fused = torch.relu(self.fused(self.dropout(torch.cat([t, a, v], dim=-1))))  # eq. 9
        return self.answer(self.dropout(fused), {"text": t, "audio": a, "vision": v})
