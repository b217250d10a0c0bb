"""TFN: the outer product of the three modalities (arXiv:1707.07250, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from affectrt_training.models.alignment import FeatureRows
from affectrt_training.models.fusion import Fused, FusionConfig, FusionModel
from affectrt_training.models.parts import last_valid, masked_mean


@dataclass(frozen=True)
class TfnConfig(FusionConfig):
    """Shape of a tensor fusion network; the sizes are the paper's."""

    text_out_dim: int = 128
    """Width of the text embedding z^l and state size of its LSTM (section 4.1)."""
    audio_out_dim: int = 32
    """Width of z^a and of the two layers below it (section 4.1)."""
    vision_out_dim: int = 32
    """Width of z^v and of the two layers below it (section 4.1)."""
    fused_dim: int = 128
    """Width of the two layers that read the tensor (section 4.3)."""
    dropout: float = 0.15
    """Of the hidden layers, while training."""
    orders: tuple[int, ...] = (1, 2, 3)
    """Which entries of the tensor are read, by how many modalities they multiply: the paper's ablations.
    (1, 2) is its TFN_notrimodal, (2,) TFN_bimodal, (3,) TFN_trimodal."""

    def __post_init__(self) -> None:
        if not self.orders or not set(self.orders) <= {1, 2, 3}:
            raise ValueError(f"orders: expected some of 1, 2 and 3, got {list(self.orders)}")


class Pooled(nn.Module):
    """The subnetwork of voice or face: the mean over time, then ``layers`` ReLU layers (section 4.1)."""

    def __init__(self, in_dim: int, dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.rows = FeatureRows(in_dim)
        steps: list[nn.Module] = []
        for before, after in pairwise([in_dim] + [dim] * layers):
            steps += [nn.Dropout(dropout), nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*steps)

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, in_dim) with lengths (B,) → (B, dim). The null slot is one of the rows in the mean."""
        embedded: Tensor = self.layers(masked_mean(self.rows(rows, lengths), lengths + 1))
        return embedded


class Read(nn.Module):
    """The subnetwork of text: an LSTM's last state, then one ReLU layer (section 4.1)."""

    def __init__(self, in_dim: int, hidden_dim: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.rows = FeatureRows(in_dim)
        self.lstm = nn.LSTM(in_dim, hidden_dim, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_dim, dim)

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, in_dim) with lengths (B,) → (B, dim)."""
        states, _ = self.lstm(self.rows(rows, lengths))
        return torch.relu(self.out(self.dropout(last_valid(states, lengths + 1))))


def with_one(z: Tensor) -> Tensor:
    """[z; 1]: the constant that lets a product leave a modality out."""
    return torch.cat([z, z.new_ones(z.shape[0], 1)], dim=-1)


class Tfn(FusionModel):
    """z^m = [z^l; 1] ⊗ [z^v; 1] ⊗ [z^a; 1] (section 4.2), read by two ReLU layers (section 4.3).

    What the paper leaves open, and what is done here: its text network reads the LSTM's states of all words,
    which needs texts of one length; here it reads the last one. Its inference network ends in one sigmoid
    scaled to [-3, 3]; here, as in all systems, in the two linear heads. The entry 1·1·1 of the tensor is a
    constant; it is kept, as in the paper.
    """

    Config = TfnConfig
    config: TfnConfig
    read: Tensor
    """(entries of the tensor,) bool, those of the orders read."""

    def __init__(self, config: TfnConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TfnConfig()
        widths = (config.text_out_dim, config.vision_out_dim, config.audio_out_dim)
        self.text = Read(config.text_dim, config.text_out_dim, config.text_out_dim, config.dropout)
        self.audio = Pooled(config.audio_dim, config.audio_out_dim, 3, config.dropout)
        self.vision = Pooled(config.vision_dim, config.vision_out_dim, 3, config.dropout)
        text, vision, audio = ((torch.arange(width + 1) < width).int() for width in widths)
        order = (text[:, None, None] + vision[:, None] + audio).flatten()  # modalities that entries multiply
        self.register_buffer("read", torch.isin(order, torch.tensor([0, *config.orders])), persistent=False)
        self.inference = nn.Sequential(
            nn.Linear(len(order), config.fused_dim),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.fused_dim, config.fused_dim),
            nn.ReLU(),
            nn.Dropout(config.dropout),
        )
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
        t = with_one(self.text(text, text_lengths))
        v = with_one(self.vision(vision, vision_lengths))
        a = with_one(self.audio(audio, audio_lengths))
        tensor = (t[:, :, None, None] * (v[:, :, None] * a[:, None])[:, None]).flatten(1)
        if len(set(self.config.orders)) < 3:
            tensor = tensor * self.read
        return self.answer(self.inference(tensor))
