"""MulG: six directed cross-modal transformers, then a reset-before GRU for each modality.

Source: mulg, equations 1–9, figures 1, 3 and 5, tables 1 and 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from affectrt_training.models.cross_modal import (
    CROSS_PAIRS,
    SELF_PAIRS,
    Norm,
    ResidualReadout,
    Transformers,
    by_target,
    check_shape,
    with_positions,
)
from affectrt_training.models.fusion import Fused, FusionConfig, FusionModel, stack_lengths
from affectrt_training.models.parts import GatedRecurrence, Projection


@dataclass(frozen=True)
class MulGConfig(FusionConfig):
    """Shape of a MulG fusion model; the defaults are the paper's for CMU-MOSI where it states them."""

    model_dim: int = 40
    """Width that every modality is projected to (table 1: hidden unit size)."""
    heads: int = 4
    """Attention heads; divides model_dim (table 7)."""
    layers: int = 2
    """Layers of each transformer (table 7)."""
    hidden_dim: int = 40
    """State size of the GRUs, and width of the fused vector of eq. 9 (Discussion: 40)."""
    gru_layers: int = 2
    """Layers of each GRU (Discussion: two)."""
    kernel_steps: int = 3
    """Steps seen by the input convolutions; odd. Not stated."""
    norm: Norm = "pre"
    """Where the transformers normalise (fig. 5); not stated which one the tables use."""
    positions: bool = True
    """Add sinusoidal positions before the transformers. Not stated."""
    attention: Literal["cross", "self", "none"] = "cross"
    """What precedes the GRUs. ``self``, each modality looking at itself, and ``none`` are the two readings of
    "not using cross-modal" (tables 2 to 6)."""
    text_dropout: float = 0.2
    """On text rows, while training (table 1: textual embedding)."""
    block_dropout: float = 0.1
    """On what the transformers' sublayers add, while training (table 1: cross-modal attention block)."""
    relu_dropout: float = 0.1
    """Between the two linear layers of each transformer's layer, while training (table 7)."""
    output_dropout: float = 0.1
    """On the GRUs' last states and within the last layers, while training (table 1)."""

    def __post_init__(self) -> None:
        check_shape("MulGConfig", self.model_dim, self.heads, self.kernel_steps)


class MulG(FusionModel):
    """Three sequences in, sentiment and emotion out.

    How the paper's equations are read, and what is done where it is silent:

    * Eq. 5 scores rows by a bilinear form x₁ᵀ W x₂. Figure 3 and table 7 make it four heads of a transformer,
      so W = W_Qᵀ W_K / √(d / heads) for each head, of that rank; the bias of the queries adds a term that
      depends on x₂ alone, that of the keys cancels in eq. 6. Eq. 7 averages x₂ itself, the heads its
      projections W_V x₂. Keys and values of every layer come from the projected rows, not from another
      layer's output: "attend to low-level features" (Conclusion).
    * Figure 5 contradicts the prose about post-LN ("first normalised, and then the residual is added");
      figure and common usage are followed. ResiDual is that of arXiv:2304.14802.
    * The paper names no positions. Without them eq. 5 compares contents only and no row knows when it is, so
      MulT's sinusoids are added, which the paper builds on; ``positions`` turns them off.
    * Eq. 1–4 have no biases; these have. The prose under eq. 4 says that z near 1 keeps the old state, the
      equation that it replaces it: the equation is followed.
    * Each GRU reads what both transformers of its modality found, side by side (fig. 3), and gives its last
      state: h_l, h_a and h_v of eq. 8. With ``attention="none"`` it reads the projected rows.
    * Eq. 9 reduces the 120 values of eq. 8 to as many as one GRU has, as no width is given. The "residual
      connections and output" of figure 1 are two linear layers with ReLU around which that vector passes.
    * Batch normalisation, which the Discussion mentions without a place, is not used: a row's answer would
      depend on its batch.
    """

    Config = MulGConfig
    config: MulGConfig

    def __init__(self, config: MulGConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MulGConfig()
        d, h = config.model_dim, config.hidden_dim
        self.text = Projection(
            config.text_dim, d, kernel_steps=config.kernel_steps, dropout=config.text_dropout
        )
        self.audio = Projection(config.audio_dim, d, kernel_steps=config.kernel_steps)
        self.vision = Projection(config.vision_dim, d, kernel_steps=config.kernel_steps)
        self.transformers = None
        if config.attention != "none":
            self.transformers = Transformers(
                CROSS_PAIRS if config.attention == "cross" else SELF_PAIRS,
                d,
                heads=config.heads,
                layers=config.layers,
                norm=config.norm,
                dropout=config.block_dropout,
                relu_dropout=config.relu_dropout,
            )
        width = 2 * d if config.attention == "cross" else d
        self.recurrences = nn.ModuleList(
            GatedRecurrence(width, h, gates=2, layers=config.gru_layers) for _ in range(3)
        )
        self.reduce = nn.Linear(3 * h, h)
        self.dropout = nn.Dropout(config.output_dropout)
        self.readout = ResidualReadout(h, config.output_dropout)
        self.add_heads(h)

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
        rows = [
            self.text(text, text_lengths),
            self.audio(audio, audio_lengths),
            self.vision(vision, vision_lengths),
        ]
        if self.transformers is not None:
            if self.config.positions:
                rows = [with_positions(x) for x in rows]
            rows = by_target(self.transformers(rows, lengths), self.transformers.pairs)  # eq. 5–7
        read = zip(self.recurrences, rows, lengths + 1, strict=True)
        last = [recurrence(x.unsqueeze(0), valid)[1][0] for recurrence, x, valid in read]  # eq. 1–4
        fused = self.reduce(self.dropout(torch.cat(last, dim=-1)))  # eq. 8–9
        return self.answer(self.readout(fused))
