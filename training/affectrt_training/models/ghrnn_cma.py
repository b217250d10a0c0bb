"""GHRNN-CMA: text queries attend to voice and face, gated recurrences read the pairs.

Source: ghrnn_cma §3.2, equations 9–12; ablations: its figures 8 and 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from affectrt.affect import MODALITIES
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
from affectrt_training.models.parts import AttentionProjections, PairwiseAttention, Projection, last_valid

Pair = Literal["at", "vt", "av", "va", "ta", "tv"]

PAIRS: Mapping[Pair, tuple[int, int]] = {
    "at": (TEXT, AUDIO),
    "vt": (TEXT, VISION),
    "tv": (VISION, TEXT),
    "av": (VISION, AUDIO),
    "ta": (AUDIO, TEXT),
    "va": (AUDIO, VISION),
}
"""Cross-modal representation → who asks and who answers, as the paper names c_at, its text-based voice.

The note below its figure 8 explains the names otherwise, and contradicts itself: there "at+av" and "at+va"
are both the text asking voice and face.
"""


@dataclass(frozen=True)
class GhrnnCmaConfig(FusionConfig):
    """Shape of a GHRNN-CMA fusion model. The paper states the dropout alone; the sizes are ours."""

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
    dropout: float = 0.3
    """On projected features and on the fused vector, while training (§4.1)."""
    causal: bool = False
    """Of :class:`CausalGhrnnCma`, which answers at every tick from the past alone; else :class:`GhrnnCma`."""
    window_s: float = 10.0
    """How far back a tick attends; causal models only."""
    pairs: tuple[Pair, ...] = ("at", "vt")
    """Cross-modal representations, of :data:`PAIRS`, in any order (fig. 8). A modality that none of them
    names isn't read at all."""
    attention: bool = True
    """Whether there are cross-modal representations; without them (GHRNN-a, fig. 10a) a recurrence reads each
    projected modality alone, whatever ``pairs`` says."""
    joint: bool = True
    """Whether cross-modal representations are also read with each other, as [at; vt], the last line of eq. 9.
    "Removed the combination of cross-modal attention interaction representations" may mean this, too."""
    cell: Literal["ghrnn", "gru", "lstm"] = "ghrnn"
    """Of the recurrences: one gate (eq. 12), two gates, or an LSTM (GHRNN-b, fig. 10a)."""

    def __post_init__(self) -> None:
        if self.model_dim % self.heads:
            raise ValueError(f"heads: expected a divisor of model_dim {self.model_dim}, got {self.heads}")
        if not self.pairs or len(set(self.pairs)) < len(self.pairs) or not set(self.pairs) <= set(PAIRS):
            got = ", ".join(map(str, self.pairs)) or "none"
            raise ValueError(f"pairs: expected some of {', '.join(PAIRS)}, each once, got {got}")

    @property
    def ablated(self) -> bool:
        """Whether any flag takes it away from the paper's own model."""
        whole = set(self.pairs) == {"at", "vt"} and self.attention and self.joint
        return not whole or self.cell != "ghrnn"


@dataclass(frozen=True)
class Timeline:
    """The recurrences that walk the rows of one modality.

    Only rows that stand for the same moment can be joined: a modality's own and those that it asked for.
    """

    modality: int
    """Whose rows."""
    pairs: tuple[Pair, ...]
    """The cross-modal representations that it asks for."""
    inputs: tuple[tuple[int, ...], ...]
    """What each recurrence reads: 0 is the modality's own representation, others are those of ``pairs``."""


def timelines(config: GhrnnCmaConfig) -> list[Timeline]:
    """All recurrences: every two representations of a timeline are read together, by default as in eq. 9."""
    if not config.attention:
        return [Timeline(modality, (), ((0,),)) for modality in (TEXT, AUDIO, VISION)]
    found = []
    for modality in (TEXT, AUDIO, VISION):
        pairs = tuple(p for p, (asking, _) in PAIRS.items() if asking == modality and p in config.pairs)
        inputs = tuple(c for c in combinations(range(1 + len(pairs)), 2) if config.joint or 0 in c)
        if pairs:
            found.append(Timeline(modality, pairs, inputs))
    return found


class Fusion(WithHeads):
    """The parts that the model of whole clips and the causal one share, under the same names."""

    config: GhrnnCmaConfig
    text: Projection
    audio: Projection
    vision: Projection

    def __init__(self, config: GhrnnCmaConfig) -> None:
        super().__init__()
        self.config = config
        self.timelines = timelines(config)
        d, h = config.model_dim, config.hidden_dim
        self.pairs = [PAIRS[pair] for line in self.timelines for pair in line.pairs]
        self.reads = sorted({line.modality for line in self.timelines}.union(*self.pairs))
        dims = (config.text_dim, config.audio_dim, config.vision_dim)
        for modality in self.reads:
            projection = Projection(
                dims[modality],
                d,
                kernel_steps=config.kernel_steps,
                dropout=config.dropout,
                causal=config.causal,
            )
            self.add_module(MODALITIES[modality], projection)
        for asking, answering in self.pairs:
            name = f"{MODALITIES[asking]}_to_{MODALITIES[answering]}"
            self.add_module(name, AttentionProjections(d, config.heads))
        self.attention = PairwiseAttention()
        self.norms = nn.ModuleList(nn.LayerNorm(d) for line in self.timelines for _ in (0, *line.pairs))
        streams = sum(len(line.inputs) for line in self.timelines)
        width = 2 * d if config.attention else d
        if config.cell == "lstm":
            self.lstms = nn.ModuleList(nn.LSTM(width, h, batch_first=True) for _ in range(streams))
        else:
            self.gates = 1 if config.cell == "ghrnn" else 2
            blocks = self.gates + 1
            self.w_x = nn.Parameter(torch.empty(streams, blocks * h, width))
            self.w_h = nn.Parameter(torch.empty(streams, blocks * h, h))
            self.bias = nn.Parameter(torch.zeros(streams, blocks * h))
            for stream in range(streams):
                for block in range(blocks):
                    rows = slice(block * h, (block + 1) * h)
                    nn.init.xavier_uniform_(self.w_x.data[stream, rows])
                    nn.init.orthogonal_(self.w_h.data[stream, rows])
        self.fused = nn.Linear(streams * h, config.fused_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.add_heads(config.fused_dim)

    def project(self, given: Sequence[tuple[Tensor, Tensor]]) -> dict[int, Tensor]:
        """Rows (B, T_m, D_m) with lengths (B,) of each modality → (B, 1 + T_m, d) of those that it reads."""
        return {m: getattr(self, MODALITIES[m])(*given[m]) for m in self.reads}

    def attend(
        self, rows: Mapping[int, Tensor], lengths: Tensor, windows: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """What the recurrences of each timeline read, (S, B, 1 + T_m, 2d).

        ``rows`` are projected modalities (B, 1 + T_m, d), ``lengths`` (3, B). Those who ask look at those who
        answer (eq. 3–4); all representations are normalised, then paired (eq. 9).
        """
        attended = iter(self.ask(rows, lengths, windows) if self.pairs else [])
        norms = iter(self.norms)
        read = []
        for line in self.timelines:
            own = [rows[line.modality], *(next(attended) for _ in line.pairs)]
            own = [next(norms)(x) for x in own]
            read.append(torch.stack([torch.cat([own[i] for i in chosen], -1) for chosen in line.inputs]))
        return read

    def ask(
        self, rows: Mapping[int, Tensor], lengths: Tensor, windows: Sequence[Tensor] | None
    ) -> list[Tensor]:
        """The cross-modal representations (B, 1 + T_asking, d), all in one launch."""
        names = (f"{MODALITIES[asking]}_to_{MODALITIES[answering]}" for asking, answering in self.pairs)
        modules: list[AttentionProjections] = [getattr(self, name) for name in names]
        parts = [
            module.split(rows[asking], rows[answering])
            for module, (asking, answering) in zip(modules, self.pairs, strict=True)
        ]
        queries, keys, values = zip(*parts, strict=True)
        attended = self.attention(queries, keys, values, self.pairs, lengths, windows)
        return [module.join(x) for module, x in zip(modules, attended, strict=True)]

    def read(self, states: Tensor) -> Fused:
        """States of the recurrences (S, …, h) → sentiment (…,) and emotion logits (…, 7), eq. 11."""
        joined = states.movedim(0, -2).flatten(-2)
        fused = self.dropout(torch.relu(self.fused(self.dropout(joined))))
        return self.answer(fused)


class GhrnnCma(Fusion, FusionModel):
    """Three sequences in, sentiment and emotion out.

    What the paper leaves open, and what is done here: the query timeline is the text's (its "text-based
    acoustic and visual representations"), so voice and face speak through every token, and through the text's
    null slot when there is no text; the attention output is normalised before it is paired, because the three
    inputs differ in scale. The last state of each recurrence (eq. 10) is the one after the last valid token.

    Its ablations are flags of the config. Where other modalities ask (fig. 8: av, va), representations are
    paired timeline by timeline, as the modalities' lengths differ; "at+av", say, reads [t; at] and [v; av].
    Of figure 10b, the initial representations a and v beside at and vt need word-aligned sequences: not done.
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
        lengths = (text_lengths, audio_lengths, vision_lengths)
        rows = self.project(list(zip((text, audio, vision), lengths, strict=True)))
        return self.read(self.walk(self.attend(rows, stack_lengths(*lengths)), lengths))

    def walk(self, inputs: Sequence[Tensor], lengths: Sequence[Tensor]) -> Tensor:
        """What :meth:`attend` gave, with each modality's lengths (B,) → last states (S, B, h), eq. 10, 12."""
        last, first = [], 0
        for line, x in zip(self.timelines, inputs, strict=True):
            steps = lengths[line.modality] + 1
            streams = slice(first, first + len(line.inputs))
            first = streams.stop
            if self.config.cell == "lstm":
                states = [lstm(of)[0] for lstm, of in zip(self.lstms[streams], x, strict=True)]
                last.append(torch.stack([last_valid(of, steps) for of in states]))
            else:
                w_x, w_h, bias = (parameter[streams] for parameter in (self.w_x, self.w_h, self.bias))
                last.append(gated_rnn(x, w_x, w_h, bias, steps, gates=self.gates)[1])
        return torch.cat(last)
