"""LMF: the outer product of the three modalities in low-rank factors (arXiv:1806.00064, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from affectrt_training.models.fusion import Fused, FusionConfig, FusionModel
from affectrt_training.models.tfn import Pooled, Read, with_one


@dataclass(frozen=True)
class LmfConfig(FusionConfig):
    """Shape of a low-rank fusion network."""

    text_out_dim: int = 64
    """Width of z_l, without its 1 (section 5.3: d_3)."""
    audio_out_dim: int = 32
    """Width of z_a and of the layer below it (section 5.3: d_1)."""
    vision_out_dim: int = 32
    """Width of z_v and of the layer below it (section 5.3: d_2)."""
    text_hidden_dim: int = 128
    """State size of the text's LSTM; the paper gives none."""
    rank: int = 4
    """r, factors a modality (section 5.3)."""
    fused_dim: int = 64
    """d_h, width of h. The paper counts with 1, as it has one output; ours has two heads that read h."""
    dropout: float = 0.15
    """In the subnetworks, while training; the paper gives none, this is TFN's."""


class Lmf(FusionModel):
    """h = Σ_i (W_l^(i) z_l) ∘ (W_a^(i) z_a) ∘ (W_v^(i) z_v) + b, i = 1…r, each z with a 1 appended (eq. 8).

    The last line of eq. 6 multiplies the sums over i, which is not what the line before it says. Eq. 8, which
    the paper says it uses, sums the products and does equal eq. 5: it is followed. The bias is that of eq. 2.
    The two layers of voice and face read the mean over time, as in TFN: section 4.3 says nothing of time.
    """

    Config = LmfConfig
    config: LmfConfig

    def __init__(self, config: LmfConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LmfConfig()
        self.text = Read(config.text_dim, config.text_hidden_dim, config.text_out_dim, config.dropout)
        self.audio = Pooled(config.audio_dim, config.audio_out_dim, 2, config.dropout)
        self.vision = Pooled(config.vision_dim, config.vision_out_dim, 2, config.dropout)
        self.factors = nn.ParameterList()
        for width in (config.text_out_dim, config.audio_out_dim, config.vision_out_dim):
            factor = torch.empty(config.rank, width + 1, config.fused_dim)
            for slice_ in factor:
                nn.init.xavier_normal_(slice_)
            self.factors.append(nn.Parameter(factor))
        self.bias = nn.Parameter(torch.zeros(config.fused_dim))
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
        embedded = (
            self.text(text, text_lengths),
            self.audio(audio, audio_lengths),
            self.vision(vision, vision_lengths),
        )
        t, a, v = (with_one(z) @ w for z, w in zip(embedded, self.factors, strict=True))  # (r, B, d_h)
        return self.answer((t * a * v).sum(0) + self.bias)
