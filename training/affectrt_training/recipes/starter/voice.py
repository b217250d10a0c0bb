"""Stage 2: the voice encoder learns emotion from acted speech (RAVDESS, EmoDB)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from affectrt.affect import EMOTIONS
from affectrt.features.audio import level_normalise
from affectrt.features.log_mel import log_mel
from affectrt.media import read_audio
from affectrt_training.data.voice import Recording, acted_speech
from affectrt_training.encoders.voice import VoiceEncoder, VoiceEncoderConfig
from affectrt_training.metrics import emotion_metrics
from affectrt_training.recipes.starter.fit import SCORE, Stage, fit, warmup_cosine

FloatArray = npt.NDArray[np.float32]

SPEEDS = (0.88, 0.94, 1.0, 1.06, 1.12)
"""Each recording is also heard at these speeds; pitch follows, as with another speaker."""


@dataclass(frozen=True)
class VoiceRecipe:
    """How the voice encoder is trained."""

    encoder: VoiceEncoderConfig = field(default_factory=VoiceEncoderConfig)
    """Its shape."""
    epochs: int = 60
    """Passes over the recordings."""
    batch_size: int = 32
    """Recordings per step."""
    rows: int = 320
    """Log-mel rows of a training crop (10 ms each)."""
    lr: float = 1.5e-3
    """Peak learning rate."""
    label_smoothing: float = 0.1
    """Acted labels are not that sure."""


def augment_voice(rows: FloatArray, generator: np.random.Generator) -> FloatArray:
    """What rooms, microphones and speakers vary, on raw log-mel energies (T, n_mels).

    Vocal-tract length (a warp of the mel axis), microphone response (a smooth curve over it) and coloured
    room noise 10 to 45 dB under the voice, added in the power domain.
    """
    bins = rows.shape[1]
    axis = np.arange(bins)
    source = np.clip(axis * generator.uniform(0.93, 1.07), 0, bins - 1)
    low = np.floor(source).astype(int)
    high = np.minimum(low + 1, bins - 1)
    warped = rows[:, low] * (1 - (source - low)) + rows[:, high] * (source - low)
    knots = generator.normal(0.0, 0.35, 6)
    coloured = warped + np.interp(axis, np.linspace(0, bins - 1, len(knots)), knots)
    loud = np.quantile(coloured, 0.95)
    noise = loud - generator.uniform(2.3, 10.3) + np.linspace(0, generator.uniform(-3, 1), bins)
    hiss = np.log(generator.exponential(1.0, coloured.shape) + 0.05)
    return np.asarray(np.logaddexp(coloured, noise + hiss), np.float32)


def mask_spectrogram(rows: FloatArray, generator: np.random.Generator) -> FloatArray:
    """SpecAugment (arXiv:1904.08779): one band and one stretch of time go missing."""
    rows = rows.copy()
    width, start = generator.integers(0, 10), generator.integers(0, rows.shape[1] - 10)
    rows[:, start : start + width] = rows.mean()
    width, start = generator.integers(0, 40), generator.integers(0, max(1, len(rows) - 40))
    rows[start : start + width] = rows.mean()
    return rows


def crop_rows(rows: FloatArray, length: int, generator: np.random.Generator) -> FloatArray:
    """A random stretch of ``length`` rows; shorter ones are put at a random place in quiet."""
    if len(rows) >= length:
        start = generator.integers(0, len(rows) - length + 1)
        return rows[start : start + length]
    quiet = np.full((length, rows.shape[1]), np.quantile(rows, 0.02), np.float32)
    start = generator.integers(0, length - len(rows) + 1)
    quiet[start : start + len(rows)] = rows
    return quiet


class VoiceCrops(Dataset[tuple[Tensor, int]]):
    """Augmented crops of recordings; every access varies the crop."""

    def __init__(self, recordings: list[Recording], recipe: VoiceRecipe, seed: int) -> None:
        self.recipe = recipe
        self.generator = np.random.default_rng(seed)
        self.items = [
            ([spectrogram(r.path, speed) for speed in SPEEDS], r.emotion)
            for r in track(recordings, "hearing the recordings")
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        versions, emotion = self.items[index]
        draw = self.generator
        rows = crop_rows(versions[draw.integers(len(versions))], self.recipe.rows, draw)
        if draw.random() < 0.85:
            rows = augment_voice(rows, draw)
        return torch.from_numpy(mask_spectrogram(level_normalise(rows), draw)), emotion


def spectrogram(path: Path, speed: float = 1.0) -> FloatArray:
    """Raw log-mel rows (T, n_mels) of a file, as if spoken ``speed`` times as fast."""
    pcm, rate = read_audio(path)
    return log_mel(pcm, round(rate * speed))


class VoiceStage(Stage):
    """The encoder, attention pooling over time and a linear head."""

    def __init__(self, recipe: VoiceRecipe, total_steps: int) -> None:
        super().__init__()
        self.recipe, self.total_steps = recipe, total_steps
        self.encoder = VoiceEncoder(recipe.encoder)
        dim = recipe.encoder.dim
        self.attention = nn.Linear(dim, 1)
        self.head = nn.Sequential(nn.Dropout(0.4), nn.Linear(2 * dim, len(EMOTIONS)))
        self.seen: list[tuple[Tensor, Tensor, bool]] = []

    def forward(self, log_mels: Tensor) -> Tensor:
        states = self.encoder(log_mels).float()
        attended = (self.attention(states).softmax(dim=1) * states).sum(dim=1)
        logits: Tensor = self.head(torch.cat([attended, states.mean(dim=1)], dim=-1)).float()
        return logits

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        rows, emotion = batch
        # mixup (arXiv:1710.09412): the corpora are small and their actors few.
        share = float(torch.distributions.Beta(0.3, 0.3).sample())
        order = torch.randperm(len(rows))
        logits = self(share * rows + (1 - share) * rows[order])
        loss = share * self._loss(logits, emotion) + (1 - share) * self._loss(logits, emotion[order])
        self.log("train_loss", loss)
        return loss

    def _loss(self, logits: Tensor, emotion: Tensor) -> Tensor:
        return F.cross_entropy(logits, emotion, label_smoothing=self.recipe.label_smoothing)

    def validation_step(self, batch: tuple[Tensor, int, str], _: int) -> None:
        rows, emotion, corpus = batch
        self.seen.append((torch.tensor([emotion]), self(rows[None]).softmax(-1), corpus == "ravdess"))

    def on_validation_epoch_end(self) -> None:
        def scores(ravdess: bool) -> float:
            part = [(truth, p) for truth, p, is_ravdess in self.seen if is_ravdess == ravdess]
            return emotion_metrics(*(torch.cat(x).cpu().numpy() for x in zip(*part, strict=True))).uar

        ravdess, emodb = scores(True), scores(False)
        self.log("valid_ravdess_uar", ravdess)
        self.log("valid_emodb_uar", emodb)
        self.log(SCORE, ravdess + 0.2 * emodb)
        self.seen.clear()

    def configure_optimizers(self) -> Any:
        return warmup_cosine(
            [{"params": list(self.parameters()), "lr": self.recipe.lr}], self.total_steps, weight_decay=0.05
        )


def train_voice(data: Path, folder: Path, recipe: VoiceRecipe, seed: int) -> Path:
    """Train the voice encoder; returns the path of its best weights."""
    lightning.seed_everything(seed, verbose=False)
    valid = [
        (torch.from_numpy(level_normalise(spectrogram(r.path))), r.emotion, r.corpus)
        for r in acted_speech(data, "valid")
    ]
    loader = DataLoader(
        VoiceCrops(acted_speech(data, "train"), recipe, seed),
        batch_size=recipe.batch_size,
        shuffle=True,
        drop_last=True,
    )
    return fit(
        VoiceStage(recipe, recipe.epochs * len(loader)),
        loader,
        DataLoader(valid, batch_size=None),  # type: ignore[arg-type]
        epochs=recipe.epochs,
        folder=folder,
        precision="bf16-mixed",
    )
