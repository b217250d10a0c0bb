"""MulT: six directed cross-modal transformers, then self-attention for each modality.

Source: Tsai et al., Multimodal Transformer for Unaligned Multimodal Language Sequences, arXiv:1906.00295,
equations 1–5 and table 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from affectrt_training.models.cross_modal import (
    CROSS_PAIRS,
    SELF_PAIRS,
    ResidualReadout,
    Transformers,
    by_target,
    check_shape,
    with_positions,
)
from affectrt_training.models.fusion import Fused, FusionConfig, FusionModel, stack_lengths
from affectrt_training.models.parts import Projection, last_valid


@dataclass(frozen=True)
class MulTConfig(FusionConfig):
    """Shape of a MulT fusion model; the defaults are the paper's for CMU-MOSI (its table 5)."""

    model_dim: int = 40
    """Width d that every modality is projected to."""
    heads: int = 10
    """Attention heads of every transformer; divides model_dim."""
    layers: int = 4
    """Layers D of each cross-modal transformer."""
    self_layers: int = 4
    """Layers of each self-attention transformer. Not stated; the authors' code has D, and 3 at least."""
    kernel_steps: int = 3
    """Steps seen by the input convolutions; odd. The paper: 3, for text 1 or 3."""
    text_dropout: float = 0.2
    """On text rows, while training."""
    block_dropout: float = 0.2
    """On what the transformers' sublayers add, while training."""
    relu_dropout: float = 0.0
    """Between the two linear layers of each transformer's layer, while training. Not in the paper; the
    authors' code has 0.1, which would cost a quarter of the time on a CPU."""
    output_dropout: float = 0.1
    """Within the last layers, while training."""

    def __post_init__(self) -> None:
        check_shape("MulTConfig", self.model_dim, self.heads, self.kernel_steps)


class MulT(FusionModel):
    """Three sequences in, sentiment and emotion out.

    What differs from the paper or is left open there: eq. 4 as printed adds the normalised input to each
    sublayer's output; here, as in the authors' code and in every other pre-LN transformer, the input itself
    is added, and the last layer's output is normalised. Positions (eq. 3) are added once, before the
    cross-modal transformers. No row is kept from seeing later ones: the answer is given at the end. An absent
    modality's last element is its null slot.
    """

    Config = MulTConfig
    config: MulTConfig

    def __init__(self, config: MulTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MulTConfig()
        d = config.model_dim
        self.text = Projection(
            config.text_dim, d, kernel_steps=config.kernel_steps, dropout=config.text_dropout
        )
        self.audio = Projection(config.audio_dim, d, kernel_steps=config.kernel_steps)
        self.vision = Projection(config.vision_dim, d, kernel_steps=config.kernel_steps)
        self.cross = Transformers(
            CROSS_PAIRS,
            d,
            heads=config.heads,
            layers=config.layers,
            norm="pre",
            dropout=config.block_dropout,
            relu_dropout=config.relu_dropout,
        )
        self.own = Transformers(
            SELF_PAIRS,
            2 * d,
            heads=config.heads,
            layers=config.self_layers,
            norm="pre",
            dropout=config.block_dropout,
            relu_dropout=config.relu_dropout,
        )
        self.readout = ResidualReadout(6 * d, config.output_dropout)
        self.add_heads(6 * d)

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
        projected = [  # eq. 2
            self.text(text, text_lengths),
            self.audio(audio, audio_lengths),
            self.vision(vision, vision_lengths),
        ]
        rows = [with_positions(x) for x in projected]  # eq. 3
        rows = by_target(self.cross(rows, lengths), CROSS_PAIRS)  # eq. 4–5
        rows = self.own(rows, lengths)
        last = [last_valid(x, valid) for x, valid in zip(rows, lengths + 1, strict=True)]
        return self.answer(self.readout(torch.cat(last, dim=-1)))
