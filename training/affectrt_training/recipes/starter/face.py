"""Stage 3: the 2D-Inception encoder learns facial expression from FER+ vote distributions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from affectrt.affect import EMOTIONS
from affectrt_training.data.faces import Faces, ferplus
from affectrt_training.encoders.face import FaceEncoder, FaceEncoderConfig
from affectrt_training.metrics import emotion_metrics
from affectrt_training.recipes.starter.fit import SCORE, Stage, fit, warmup_cosine


@dataclass(frozen=True)
class FaceRecipe:
    """How the face encoder is trained."""

    encoder: FaceEncoderConfig = field(default_factory=FaceEncoderConfig)
    """Its shape."""
    epochs: int = 24
    """Passes over FER+ train."""
    batch_size: int = 64
    """Faces per step."""
    lr: float = 2.5e-3
    """Peak learning rate."""
    rarity_power: float = 0.25
    """A face weighs (1 / frequency of its emotion) to this power: 0 ignores rarity, 1 levels it out."""


def augment_faces(faces: Tensor) -> Tensor:
    """What cameras and detectors vary: mirror, framing, tilt, sharpness, noise, occlusion.

    faces (N, 48, 48) in [0, 1] → the same shape, each face varied on its own.
    """
    n, size = len(faces), faces.shape[-1]
    angle = (torch.rand(n) * 2 - 1) * math.radians(14)
    zoom = 1.0 + (torch.rand(n) * 2 - 1) * 0.16
    mirror = torch.randint(0, 2, (n,)).float() * 2 - 1
    shift = (torch.rand(n, 2) * 2 - 1) * 0.14
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    theta = torch.stack(
        [
            torch.stack([cos * mirror, -sin, shift[:, 0]], -1),
            torch.stack([sin * mirror, cos, shift[:, 1]], -1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, [n, 1, size, size], align_corners=False)
    x = F.grid_sample(faces.unsqueeze(1), grid, padding_mode="border", align_corners=False)
    blurred = torch.rand(n) < 0.25
    if blurred.any():
        small = F.interpolate(x[blurred], scale_factor=0.5, mode="area")
        x[blurred] = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    x = x.squeeze(1)
    gamma = torch.exp((torch.rand(n, 1, 1) * 2 - 1) * 0.35)
    x = x.clamp(0, 1) ** gamma + torch.randn_like(x) * 0.02 * torch.rand(n, 1, 1)
    hidden = torch.randint(4, 16, (n, 2))
    top, left = torch.randint(0, size - 4, (n,)), torch.randint(0, size - 4, (n,))
    steps = torch.arange(size)
    rows = (steps >= top[:, None]) & (steps < (top + hidden[:, 0])[:, None])
    columns = (steps >= left[:, None]) & (steps < (left + hidden[:, 1])[:, None])
    occluded = rows[:, :, None] & columns[:, None, :] & (torch.rand(n) < 0.5)[:, None, None]
    return torch.where(occluded, x.mean(dim=(1, 2), keepdim=True), x)


class FaceStage(Stage):
    """The encoder with a linear head on its states."""

    def __init__(self, recipe: FaceRecipe, weights: Tensor, total_steps: int) -> None:
        super().__init__()
        self.recipe, self.total_steps = recipe, total_steps
        self.encoder = FaceEncoder(recipe.encoder).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(0.4), nn.Linear(recipe.encoder.dim, len(EMOTIONS)))
        self.emotion_weights: Tensor
        self.register_buffer("emotion_weights", weights, persistent=False)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, faces: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(faces)).float()
        return logits

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, votes = batch
        with torch.no_grad():
            faces = augment_faces(images.float() / 255.0)
        losses = -(votes * self(faces).log_softmax(-1)).sum(-1) * (votes @ self.emotion_weights)
        loss: Tensor = losses.mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, emotions = batch
        self.seen.append((emotions, self(images.float() / 255.0).softmax(-1)))

    def on_validation_epoch_end(self) -> None:
        scores = emotion_metrics(*(torch.cat(part).cpu().numpy() for part in zip(*self.seen, strict=True)))
        self.log("valid_accuracy", scores.accuracy)
        self.log("valid_uar", scores.uar)
        self.log(SCORE, scores.accuracy + 0.25 * scores.uar)
        self.seen.clear()

    def configure_optimizers(self) -> Any:
        return warmup_cosine(
            [{"params": list(self.parameters()), "lr": self.recipe.lr}], self.total_steps, weight_decay=0.05
        )


def rarity_weights(faces: Faces, power: float) -> Tensor:
    """(7,) weights, (1 / share of votes) ** power, mean 1 over faces."""
    share = torch.from_numpy(faces.votes).mean(0)
    weights = (1.0 / share) ** power
    return weights / (weights * share).sum()


def train_face(data: Path, folder: Path, recipe: FaceRecipe, seed: int) -> Path:
    """Train the face encoder; returns the path of its best weights."""
    lightning.seed_everything(seed, verbose=False)
    train, valid = ferplus(data, "train"), ferplus(data, "valid")
    clear = valid.clear
    loader = DataLoader(
        TensorDataset(torch.from_numpy(train.images), torch.from_numpy(train.votes)),
        batch_size=recipe.batch_size,
        shuffle=True,
        drop_last=True,
    )
    stage = FaceStage(recipe, rarity_weights(train, recipe.rarity_power), recipe.epochs * len(loader))
    valid_set = TensorDataset(torch.from_numpy(valid.images[clear]), torch.from_numpy(valid.emotions[clear]))
    return fit(
        stage,
        loader,
        DataLoader(valid_set, batch_size=256),
        epochs=recipe.epochs,
        folder=folder,
        precision="bf16-mixed",
    )
