"""MFN: LSTMs side by side, and a memory that watches how their cells change (arXiv:1802.00927)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from affectrt_training.models.alignment import AlignedRows
from affectrt_training.models.fusion import Fused, FusionConfig, FusionModel, stack_lengths
from affectrt_training.models.parts import last_valid

_EXPORTED_ROUNDS = 12
"""Doublings in an exported graph, which can't ask how many steps there are: enough for 4096."""


@dataclass(frozen=True)
class MfnConfig(FusionConfig):
    """Shape of a memory fusion network. The paper gives no sizes; these are its authors' for CMU-MOSI."""

    text_hidden_dim: int = 64
    """State size of the text's LSTM."""
    audio_hidden_dim: int = 16
    """State size of the voice's LSTM."""
    vision_hidden_dim: int = 32
    """State size of the face's LSTM."""
    memory_dim: int = 128
    """Width of the memory u."""
    attention_dim: int = 256
    """Hidden width of D_a."""
    gate_dim: int = 64
    """Hidden width of D_u, D_γ1 and D_γ2."""
    fused_dim: int = 64
    """Width of the layer that reads the last states and the memory."""
    dropout: float = 0.2
    """In these networks, while training; ours."""
    delta: bool = True
    """Attention over the cells before and after each step; False: over those after it alone (the paper's
    ablation without Δ)."""
    memory: bool = True
    """False: the last states alone (the paper's ablation without the memory)."""


class Mfn(FusionModel):
    """For every step t of aligned rows, with c^t the cells of all three LSTMs side by side:

        c^[t-1,t] = [c^{t-1}; c^t]                  a = softmax(D_a(c^[t-1,t]))     ĉ = c^[t-1,t] ∘ a
        û = tanh(D_u(ĉ))    γ1 = σ(D_γ1(ĉ))    γ2 = σ(D_γ2(ĉ))    u^t = γ1 ∘ u^{t-1} + γ2 ∘ û

    The last states h^n of the LSTMs and u^n go to the heads. Each D is two layers with a ReLU between. The
    gates see ĉ alone, as the paper writes them; its authors' code shows them u^{t-1} too. So they are had
    for all steps at once, and what is left of the recurrence is linear: :func:`linear_recurrence`.

    Cells of all steps are not something ``nn.LSTM`` gives. But it gives all states h; the gates of all steps
    follow from them in two products, and then c^t = f ∘ c^{t-1} + i ∘ g is linear too. That computes those
    products twice and saves a loop over time, which would be slow and could not be exported.

    Rows are aligned, and absent modalities stood for, by :class:`AlignedRows`.
    """

    Config = MfnConfig
    config: MfnConfig

    def __init__(self, config: MfnConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MfnConfig()
        dims = (config.text_dim, config.audio_dim, config.vision_dim)
        hidden = (config.text_hidden_dim, config.audio_hidden_dim, config.vision_hidden_dim)
        self.rows = AlignedRows(dims)
        self.lstms = nn.ModuleList(
            nn.LSTM(dim, width, batch_first=True) for dim, width in zip(dims, hidden, strict=True)
        )
        read = sum(hidden)
        if config.memory:
            watched = sum(hidden) * (2 if config.delta else 1)
            self.attention = _two_layers(watched, config.attention_dim, watched, config.dropout)
            self.update, self.retain, self.admit = (
                _two_layers(watched, config.gate_dim, config.memory_dim, config.dropout) for _ in range(3)
            )
            read += config.memory_dim
        self.fused = nn.Linear(read, config.fused_dim)
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
        aligned, steps = self.rows((text, audio, vision), lengths)
        states = [lstm(rows)[0] for lstm, rows in zip(self.lstms, aligned, strict=True)]
        read = [last_valid(state, steps) for state in states]
        if self.config.memory:
            cells = [
                cell_states(lstm, rows, state)
                for lstm, rows, state in zip(self.lstms, aligned, states, strict=True)
                if isinstance(lstm, nn.LSTM)
            ]
            read.append(last_valid(self.remember(torch.cat(cells, dim=-1)), steps))
        fused = torch.relu(self.fused(self.dropout(torch.cat(read, dim=-1))))
        return self.answer(self.dropout(fused))

    def remember(self, cells: Tensor) -> Tensor:
        """c of all steps (B, T, H) → u of all steps (B, T, memory_dim)."""
        watched = torch.cat([_before(cells), cells], dim=-1) if self.config.delta else cells
        attended = watched * self.attention(watched).softmax(-1)
        proposed = torch.tanh(self.update(attended))
        retain, admit = torch.sigmoid(self.retain(attended)), torch.sigmoid(self.admit(attended))
        return linear_recurrence(retain, admit * proposed)


def cell_states(lstm: nn.LSTM, rows: Tensor, states: Tensor) -> Tensor:
    """The cells (B, T, H) of a one-layer LSTM that read ``rows`` (B, T, D) and gave ``states`` (B, T, H)."""
    w_x, w_h, b_x, b_h = lstm.all_weights[0]
    gates = nn.functional.linear(rows, w_x, b_x) + nn.functional.linear(_before(states), w_h, b_h)
    i, f, g, _ = gates.chunk(4, dim=-1)
    return linear_recurrence(torch.sigmoid(f), torch.sigmoid(i) * torch.tanh(g))


def linear_recurrence(decay: Tensor, drive: Tensor) -> Tensor:
    """y_t = decay_t ∘ y_{t-1} + drive_t, y_0 = drive_0, over all steps of (B, T, H); decays lie in [0, 1].

    By doubling: after round k every step has taken in the 2^k steps that end in it. ⌈log2 T⌉ rounds without
    a division or a logarithm, so it is as stable as the loop.
    """
    steps = drive.shape[1]
    rounds = _EXPORTED_ROUNDS if torch.compiler.is_compiling() else (steps - 1).bit_length()
    for k in range(rounds):
        drive = drive + decay * _before(drive, 2**k)
        decay = decay * _before(decay, 2**k)
    return drive


def _before(x: Tensor, steps: int = 1) -> Tensor:
    """What stood so many steps before in (B, T, H); zero before the first."""
    return nn.functional.pad(x, (0, 0, steps, 0))[:, : x.shape[1]]


def _two_layers(in_dim: int, hidden_dim: int, out_dim: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden_dim, out_dim)
    )
