"""CM-MSF: two encoders a modality, cascaded cross-modal encoders, mask-gated GRUs.

Source: cm_msf §3, equations 1–21.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from affectrt_training.models.cross_modal import CROSS_PAIRS
from affectrt_training.models.fusion import (
    AUDIO,
    TEXT,
    VISION,
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
    valid_steps,
)
from affectrt_training.models.two_encoders import BiGru, Given, Lstm, Transformer, reverse_rows


@dataclass(frozen=True)
class CmMsfConfig(FusionConfig):
    """Shape of a CM-MSF fusion model.

    The paper's own sizes are ``model_dim=100, cascade=8, bilstm='every', transformer_layers=5,
    transformer_heads=5``: thirteen million weights, and ten times the time a batch. The defaults are its
    structure at a size that some hundred clips can train.
    """

    model_dim: int = 40
    """Width d of all rows. The paper's "BiLSTM with a hidden size of 100", both directions summed: 100."""
    heads: int = 5
    """Heads of the mutual attention and of the cross-modal encoders; divides model_dim. The paper: 5 (fig.
    13)."""
    cascade: int = 2
    """Cross-modal encoders N, one behind the other. The paper: 8 (fig. 13)."""
    transformer_layers: int = 2
    """Of voice and of face. The paper: 5 (§4.2)."""
    transformer_heads: int = 8
    """Divides model_dim. The paper: 8 (§4.2), which does not divide its 100."""
    kernel_steps: int = 3
    """Steps seen by the convolutions of eq. 11; odd. The paper states none."""
    fused_dim: int = 64
    """Width d_F of eq. 20. The paper states none."""
    dropout: float = 0.3
    """On given rows, attention's results and the fused vectors, while training. The paper: 0.3 (§4.2)."""
    mask_threshold: float = 0.5
    """Rows of voice and face weaker than this share of their clip's mean are masked; 0: none. The paper calls
    its threshold adaptive and states no rule."""
    text_encoders: Literal["both", "bert", "lstm"] = "both"
    """Ablation of fig. 11 and table 7. 'bert' is the rows as given."""
    audio_encoders: Literal["both", "transformer", "bigru"] = "both"
    """Ablation of fig. 11."""
    vision_encoders: Literal["both", "resnet", "transformer"] = "both"
    """Ablation of fig. 11. 'resnet' is the rows as given. CM-MSF (I) is 'bert', 'transformer', 'transformer';
    CM-MSF (II) is 'lstm', 'bigru', 'resnet'."""
    bilstm: Literal["last", "every", "none"] = "last"
    """Which cross-modal encoders end in a BiLSTM. 'none' is the ablation of table 6."""
    mask_gate: bool = True
    """False: eq. 13–19 left out, the ablation of table 6."""

    def __post_init__(self) -> None:
        for name in ("heads", "transformer_heads"):
            if self.model_dim % getattr(self, name):
                raise ValueError(f"{name}: expected a divisor of model_dim {self.model_dim}")
        if self.model_dim % 2:
            raise ValueError(f"model_dim: expected an even number, got {self.model_dim}")
        if self.kernel_steps % 2 == 0:
            raise ValueError(f"kernel_steps: expected an odd number, got {self.kernel_steps}")


class Alignment(nn.Module):
    """The encoders of one modality and the mutual attention that fuses what they made (eq. 1–7)."""

    def __init__(self, encoders: list[nn.Module], modality: int, config: CmMsfConfig) -> None:
        super().__init__()
        self.modality, d = modality, config.model_dim
        self.encoders = nn.ModuleList(encoders)
        if len(encoders) == 2:
            self.a_to_b, self.b_to_a = (AttentionProjections(d, config.heads) for _ in encoders)
            self.attention = PairwiseAttention()
            self.joined = nn.Linear(2 * d, d)
        self.inner, self.outer = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Projected rows (B, 1 + T, d), lengths (3, B) → U_m (B, 1 + T, d)."""
        found = [encoder(rows, lengths) for encoder in self.encoders]
        h = self.fuse(found[0], found[1], lengths) if len(found) == 2 else found[0]
        u: Tensor = self.outer(torch.relu(self.inner(h)))  # eq. 7
        return u

    def fuse(self, a: Tensor, b: Tensor, lengths: Tensor) -> Tensor:
        """A and B, each (B, 1 + T, d) → H_m, alike: each asks the other (eq. 1–6)."""
        queries, keys, values = zip(self.a_to_b.split(a, b), self.b_to_a.split(b, a), strict=True)
        pairs = [(self.modality, self.modality)] * 2
        c_a, c_b = self.attention(queries, keys, values, pairs, lengths)
        h: Tensor = self.joined(torch.cat([self.a_to_b.join(c_a), self.b_to_a.join(c_b)], -1))
        return h


class CrossModalEncoder(nn.Module):
    """One encoder of one pair: attention, a convolution and, where asked for, a summed BiLSTM (eq. 10–11)."""

    def __init__(self, config: CmMsfConfig, *, bilstm: bool) -> None:
        super().__init__()
        d = config.model_dim
        self.projections = AttentionProjections(d, config.heads)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(4))
        self.conv = nn.Conv1d(d, d, config.kernel_steps, padding=config.kernel_steps // 2)
        self.directions = nn.ModuleList(nn.LSTM(d, d, batch_first=True) for _ in range(2 * bilstm))
        self.dropout = nn.Dropout(config.dropout)

    def update(self, rows: Tensor, attended: Tensor, counts: Tensor) -> Tensor:
        """Asking rows (B, 1 + T, d), what they were told by head, valid rows (B,) → (B, 1 + T, d)."""
        told, own, local, whole = self.norms
        hat = told(self.dropout(self.projections.join(attended))) + own(rows)  # eq. 10
        valid = valid_steps(counts, rows.shape[1]).unsqueeze(-1)
        seen = self.conv((hat * valid).transpose(1, 2)).transpose(1, 2)
        rows = local(seen) + whole(hat)
        if not self.directions:
            return rows
        ahead, back = self.directions
        backward = reverse_rows(back(reverse_rows(rows, counts))[0], counts)
        summed: Tensor = ahead(rows)[0] + backward  # eq. 11
        return summed


class CrossModalLevel(nn.Module):
    """One step of the cascade: an encoder for each of the six pairs (eq. 8–11)."""

    def __init__(self, config: CmMsfConfig, *, bilstm: bool) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(CrossModalEncoder(config, bilstm=bilstm) for _ in CROSS_PAIRS)
        self.attention = PairwiseAttention()

    def forward(self, rows: list[Tensor], u: list[Tensor], lengths: Tensor) -> list[Tensor]:
        """Rows (B, 1 + T, d) of the pairs, U_m^[0] of the modalities, lengths (3, B) → rows of the pairs."""
        encoders = cast("Sequence[CrossModalEncoder]", self.encoders)
        parts = [
            encoder.projections.split(own, u[answering])
            for encoder, own, (_, answering) in zip(encoders, rows, CROSS_PAIRS, strict=True)
        ]
        queries, keys, values = zip(*parts, strict=True)
        attended = self.attention(queries, keys, values, CROSS_PAIRS, lengths)
        return [
            encoder.update(own, told, lengths[asking] + 1)
            for encoder, own, told, (asking, _) in zip(encoders, rows, attended, CROSS_PAIRS, strict=True)
        ]


class MaskGate(nn.Module):
    """What is left of a modality's rows after mask and gate, and a GRU's view of it (eq. 13–19)."""

    def __init__(self, dim: int, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.gate = nn.Linear(dim, dim)
        self.gru = GatedRecurrence(dim, dim, gates=2)

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """U_m (B, 1 + T, d) with valid rows (B,) → H_m, alike."""
        kept = rows * torch.sigmoid(self.gate(rows)) * self.mask(rows, counts)  # eq. 13–14
        states = self.gru(kept.unsqueeze(0), counts)[0].squeeze(0)  # eq. 15–18
        h: Tensor = states + kept  # eq. 19
        return h

    def mask(self, rows: Tensor, counts: Tensor) -> Tensor:
        """M_m (B, 1 + T, 1): 1 for the null slot and for rows no weaker than the threshold, else 0."""
        strength = rows.abs().mean(-1, keepdim=True)
        strong = strength >= self.threshold * masked_mean(strength, counts).unsqueeze(1)
        null = torch.arange(rows.shape[1], device=rows.device).view(1, -1, 1) == 0
        return (strong | null).to(rows.dtype)


class CmMsf(FusionModel):
    """Three sequences in, sentiment and emotion out.

    What the paper leaves open or contradicts, and what is done here:

    * BERT and ResNet-101 (§3.2) made the rows that come in; a linear projection stands in their place. The
      other encoder of the modality reads the same projected rows ("parameter sharing", §3.2.2).
    * Eq. 1–4 project keys and values twice, K_b W^K with K_b = B W^K: two linear maps, so one.
    * Eq. 8 writes Q_A with K_V for U_TA and its text projects K_T by W_K: keys and values of T → A are the
      text's, as in eq. 10. They are those of before the cascade, U_T^[0], in all its encoders.
    * Eq. 9 normalises the sum, eq. 10 the summands. Eq. 10 is followed, as eq. 11 does the same.
    * Eq. 11 has its result at level M, its input at level i: here one BiLSTM, behind the last of the N
      encoders. ``bilstm='every'`` reads M as i, so that each has its own.
    * Before eq. 12 the paper pairs (U_TV, U_AV) to U_A; eq. 12 pairs (U_TA, U_VA), which are voice's own
      rows, and is followed. The "dimensionality reduction" there halves each, so that the width stays d.
    * The binary masks M_m are described and not in any equation. Text keeps all its rows; a row of voice or
      face is kept if its mean magnitude is at least ``mask_threshold`` of the clip's. M multiplies eq. 14.
    * Eq. 13–18 don't say whether the modalities share weights: they don't. In eq. 15–17 the brackets take the
      bias into the product: W·[F, h] + b is meant. The GRU is reset-before (eq. 17).
    * Eq. 20 wants vectors, eq. 19 gives rows: the maximum over valid rows, as in §3.2.4.
    * Eq. 22 is for classes. Here the heads are a regression and emotion logits, as in all systems.
    * An encoder that an ablation takes away leaves nothing to attend to: the other's rows go to eq. 7.
    """

    Config = CmMsfConfig
    config: CmMsfConfig

    def __init__(self, config: CmMsfConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CmMsfConfig()
        d = config.model_dim
        self.projections = nn.ModuleList(
            Projection(dim, d, kernel_steps=1, dropout=config.dropout)
            for dim in (config.text_dim, config.audio_dim, config.vision_dim)
        )
        self.alignments = nn.ModuleList(
            Alignment(encoders, modality, config) for modality, encoders in enumerate(_encoders(config))
        )
        self.cascade = nn.ModuleList(
            CrossModalLevel(
                config, bilstm=config.bilstm == "every" or (config.bilstm == "last" and level == 0)
            )
            for level in reversed(range(config.cascade))
        )
        self.reductions = nn.ModuleList(nn.Linear(d, d // 2) for _ in CROSS_PAIRS)
        if config.mask_gate:
            self.gates = nn.ModuleList(
                MaskGate(d, 0.0 if modality == TEXT else config.mask_threshold) for modality in range(3)
            )
        self.fused = nn.Linear(3 * d, config.fused_dim)
        self.dropout = nn.Dropout(config.dropout)
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
        lengths = stack_lengths(text_lengths, audio_lengths, vision_lengths)
        u = [
            align(project(rows, own), lengths)  # eq. 1–7
            for project, align, rows, own in zip(
                self.projections, self.alignments, (text, audio, vision), lengths, strict=True
            )
        ]
        u = self.interact(u, lengths)
        if self.config.mask_gate:
            u = [gate(rows, own + 1) for gate, rows, own in zip(self.gates, u, lengths, strict=True)]
        pooled = [
            rows.masked_fill(~valid_steps(own + 1, rows.shape[1]).unsqueeze(-1), -torch.inf).amax(1)
            for rows, own in zip(u, lengths, strict=True)
        ]
        fused = torch.relu(self.fused(self.dropout(torch.cat(pooled, -1))))  # eq. 20
        return self.answer(self.dropout(fused))  # eq. 21

    def interact(self, u: list[Tensor], lengths: Tensor) -> list[Tensor]:
        """U_m of the modalities (B, 1 + T_m, d), lengths (3, B) → U_m after the cascade (eq. 8–12)."""
        rows = [u[asking] for asking, _ in CROSS_PAIRS]
        for level in self.cascade:
            rows = level(rows, u, lengths)
        halves = [reduce(own) for reduce, own in zip(self.reductions, rows, strict=True)]
        return [torch.cat(halves[2 * m : 2 * m + 2], -1) for m in range(3)]  # eq. 12


def _encoders(config: CmMsfConfig) -> list[list[nn.Module]]:
    """Of text, voice and face, those that the config asks for (§3.2.1–3.2.3)."""
    d = config.model_dim

    def transformer(modality: int) -> Transformer:
        layers, heads = config.transformer_layers, config.transformer_heads
        return Transformer(d, modality, layers=layers, heads=heads, dropout=config.dropout)

    made: list[tuple[str, dict[str, nn.Module]]] = [
        (config.text_encoders, {"bert": Given(), "lstm": Lstm(d)}),
        (config.audio_encoders, {"transformer": transformer(AUDIO), "bigru": BiGru(d, AUDIO)}),
        (config.vision_encoders, {"resnet": Given(), "transformer": transformer(VISION)}),
    ]
    return [list(known.values()) if asked == "both" else [known[asked]] for asked, known in made]
