"""What a run is made of: one frozen dataclass, as it stands in YAML files and in ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from affectrt_training.encoders.text import TextSettings
from affectrt_training.losses import LossConfig

Select = Literal[
    "auto", "mae", "r", "acc2_has0", "acc2_non0", "f1_has0", "f1_non0", "acc5", "acc7",
    "accuracy", "weighted_f1", "uar",
]  # fmt: skip


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. The defaults suit a few hundred examples; large sets want larger batches."""

    seed: int = 0
    """Of weights, order, dropout and dropped modalities."""
    epochs: int = 60
    """Passes over the training split, at most."""
    patience: int = 12
    """Epochs without a better validation score before training stops."""
    batch_size: int = 32
    """Examples per optimiser step, over all processes together."""
    lr: float = 1e-3
    """Peak learning rate of the fusion model."""
    encoder_lr: float = 5e-5
    """Peak learning rate of a text encoder that is tuned."""
    layer_decay: float = 1.0
    """Each layer of a tuned encoder learns this much slower than the one above it (arXiv:1801.06146, §3.2);
    1: all alike."""
    weight_decay: float = 0.01
    """AdamW's, decoupled from the gradient (arXiv:1711.05101)."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0: no limit."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Of the arithmetic; weights stay float32. ``16-mixed`` needs a GPU."""
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """What the learning rate does after that: falls to 0 along half a cosine or a line, or stays."""
    modality_dropout: float = 0.1
    """Chance that a present modality is taken away while training; an example never loses its last one."""
    select: Select = "auto"
    """Validation metric by which the best epoch is chosen; auto: mae, or weighted_f1 without sentiments."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train; auto: on a GPU where there is one."""
    devices: int = 1
    """Processes per node, each with a GPU of its own, or with a share of the CPU."""
    nodes: int = 1
    """Machines; they need a common run folder."""
    logger: Literal["csv", "tensorboard"] = "csv"
    """``metrics.csv`` is always written; tensorboard: event files beside it."""

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size", "devices", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("lr", "encoder_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "gradient_clip", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: expected a share in (0, 1], got {self.layer_decay}")
        for name in ("warmup", "modality_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a share in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run learns, apart from the data."""

    system: str
    """Name of the fusion model, as ``affectrt systems`` lists them."""
    model: Mapping[str, object] = field(default_factory=dict)
    """Fields of the model's config other than the feature widths."""
    text: TextSettings = field(default_factory=TextSettings)
    """How words become text rows, where the data have words."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How it is trained."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What it is trained for."""

    def to_dict(self) -> dict[str, Any]:
        """As ``build(RunConfig, …)`` takes it back, also after a detour over JSON."""
        return asdict(self)
