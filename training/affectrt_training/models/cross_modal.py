"""What MulG and MulT share: several transformers side by side, in which one modality looks at another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from affectrt_training.models.fusion import AUDIO, TEXT, VISION
from affectrt_training.models.parts import AttentionProjections, PairwiseAttention

Norm = Literal["post", "pre", "dual"]
"""Where layers are normalised: after the addition, before the sublayer, or both (ResiDual)."""

CROSS_PAIRS = (
    (TEXT, AUDIO),
    (TEXT, VISION),
    (AUDIO, TEXT),
    (AUDIO, VISION),
    (VISION, TEXT),
    (VISION, AUDIO),
)
"""(asking, answering) of all six directions, those of one target modality next to each other."""

SELF_PAIRS = ((TEXT, TEXT), (AUDIO, AUDIO), (VISION, VISION))
"""Each modality asks itself."""


def with_positions(rows: Tensor) -> Tensor:
    """(B, 1 + T, d), null slot in front → the same with sinusoidal positions added to the steps.

    The first step has position 0. The null slot has none: it stands at no time.
    """
    steps, dim = rows.shape[1] - 1, rows.shape[2]
    half = torch.arange(0, dim, 2, device=rows.device, dtype=torch.float32)
    angles = torch.arange(steps, device=rows.device).unsqueeze(1) * 10_000.0 ** (-half / dim)
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[:, :dim]
    return rows + nn.functional.pad(waves, (0, 0, 1, 0)).to(rows.dtype)


class Block(nn.Module):
    """The weights of one layer of one transformer: attention, then two linear layers with ReLU between.

    ``stream`` is what runs through the layers; ``trace`` collects what the sublayers add, for ResiDual.
    """

    def __init__(self, dim: int, heads: int, norm: Norm, dropout: float, relu_dropout: float) -> None:
        super().__init__()
        self.norm = norm
        self.attention = AttentionProjections(dim, heads)
        self.attention_norm, self.forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.inner, self.outer = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout, self.relu_dropout = nn.Dropout(dropout), nn.Dropout(relu_dropout)

    def ask(self, stream: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Stream (B, 1 + Tα, d) and memory (B, 1 + Tβ, d), None: the stream itself → q, k and v by head."""
        if self.norm == "pre":
            stream = self.attention_norm(stream)
            memory = None if memory is None else self.attention_norm(memory)
        return self.attention.split(stream, stream if memory is None else memory)

    def take(self, attended: Tensor, stream: Tensor, trace: Tensor) -> tuple[Tensor, Tensor]:
        """What attention found, by head → the next layer's stream and trace."""
        change = self.dropout(self.attention.join(attended))
        stream, trace = self._add(change, stream, trace, self.attention_norm)
        read = self.forward_norm(stream) if self.norm == "pre" else stream
        change = self.dropout(self.outer(self.relu_dropout(torch.relu(self.inner(read)))))
        return self._add(change, stream, trace, self.forward_norm)

    def _add(self, change: Tensor, stream: Tensor, trace: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
        if self.norm == "pre":
            return stream + change, trace
        return norm(stream + change), trace + change if self.norm == "dual" else trace


class Layer(nn.Module):
    """One layer of all transformers: a block each, and one call of the attention operator for all."""

    def __init__(self, pairs: Sequence[tuple[int, int]], blocks: Sequence[Block]) -> None:
        super().__init__()
        self.pairs, self.blocks = list(pairs), nn.ModuleList(blocks)
        self.attention = PairwiseAttention()

    def forward(
        self,
        streams: Sequence[Tensor],
        traces: Sequence[Tensor],
        memories: Sequence[Tensor | None],
        lengths: Tensor,
    ) -> tuple[list[Tensor], list[Tensor]]:
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        asked = [block.ask(x, memory) for block, x, memory in zip(blocks, streams, memories, strict=True)]
        queries, keys, values = zip(*asked, strict=True)
        attended = self.attention(queries, keys, values, self.pairs, lengths)
        found = zip(blocks, attended, streams, traces, strict=True)
        taken = [block.take(x, stream, trace) for block, x, stream, trace in found]
        return [stream for stream, _ in taken], [trace for _, trace in taken]


class Transformers(nn.Module):
    """One transformer for each pair of modalities, all in step.

    Where a modality looks at another, every layer reads the other's rows as they came in (MulT, eq. 4, and
    MulG's "low-level features"); where it looks at itself, every layer reads the layer before. ``dropout``
    acts on what the sublayers add, ``relu_dropout`` between the two linear layers; there is none on attention
    weights, which the operator keeps to itself.

    With f a sublayer, attention or the two linear layers, and m the memory, a layer computes

        post:  x ← LN(x + f(x, m))
        pre:   x ← x + f(LN(x), LN(m)), and after the last layer LN(x)
        dual:  x ← LN(x + f(x, m)) and d ← d + f(x, m), d beginning as x; after the last layer x + LN(d)

    (MulG, fig. 5; dual: ResiDual, arXiv:2304.14802.) LN(x) and LN(m) share their weights.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[int, int]],
        dim: int,
        *,
        heads: int,
        layers: int,
        norm: Norm,
        dropout: float,
        relu_dropout: float,
    ) -> None:
        super().__init__()
        self.pairs, self.norm = list(pairs), norm
        self.layers = nn.ModuleList(
            Layer(pairs, [Block(dim, heads, norm, dropout, relu_dropout) for _ in pairs])
            for _ in range(layers)
        )
        self.last_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in pairs if norm != "post")

    def forward(self, rows: Sequence[Tensor], lengths: Tensor) -> list[Tensor]:
        """Rows (B, 1 + T_m, d) of each modality, lengths (3, B) → per pair (B, 1 + Tα, d)."""
        streams = [rows[asking] for asking, _ in self.pairs]
        traces = streams
        memories = [rows[answering] if asking != answering else None for asking, answering in self.pairs]
        for layer in self.layers:
            streams, traces = layer(streams, traces, memories, lengths)
        if self.norm == "pre":
            return [norm(stream) for norm, stream in zip(self.last_norms, streams, strict=True)]
        if self.norm == "dual":
            last = zip(self.last_norms, streams, traces, strict=True)
            return [stream + norm(trace) for norm, stream, trace in last]
        return streams


class ResidualReadout(nn.Module):
    """Two linear layers with ReLU between, whose input is added to their output: (B, d) → (B, d)."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, fused: Tensor) -> Tensor:
        change: Tensor = self.outer(self.dropout(torch.relu(self.inner(fused))))
        return fused + change


def by_target(found: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> list[Tensor]:
    """What each pair found → for each target modality what its pairs did, side by side: (B, 1 + T, n · d)."""
    return [
        torch.cat([x for x, (asking, _) in zip(found, pairs, strict=True) if asking == target], dim=-1)
        for target in (TEXT, AUDIO, VISION)
    ]


def check_shape(who: str, dim: int, heads: int, kernel_steps: int) -> None:
    """Raise ``ValueError`` unless heads divide the width and the convolution keeps the number of steps."""
    if dim % heads:
        raise ValueError(f"{who}: heads: expected a divisor of model_dim = {dim}, got {heads}")
    if kernel_steps % 2 == 0:
        raise ValueError(f"{who}: kernel_steps: expected an odd number, got {kernel_steps}")
