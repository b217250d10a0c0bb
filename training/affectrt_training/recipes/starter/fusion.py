"""Stage 4: GHRNN-CMA learns to fuse the three encoders' features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt_training.losses import masked_l1
from affectrt_training.metrics import emotion_metrics, sentiment_metrics
from affectrt_training.models.ghrnn_cma import Fusion, GhrnnCma, GhrnnCmaConfig
from affectrt_training.recipes.starter.banks import Labelled, S, Sample
from affectrt_training.recipes.starter.compose import FusionSamples, Mixture, Sources, collate
from affectrt_training.recipes.starter.fit import SCORE, Stage, fit, warmup_cosine

STARTER = GhrnnCmaConfig(
    text_dim=384,
    audio_dim=128,
    vision_dim=128,
    model_dim=64,
    heads=4,
    hidden_dim=64,
    fused_dim=96,
    kernel_steps=3,
    dropout=0.2,
)
"""Shape of the starter's fusion model, whatever the defaults become."""


@dataclass(frozen=True)
class FusionRecipe:
    """How the fusion model is trained."""

    model: GhrnnCmaConfig = STARTER
    """Its shape."""
    mixture: Mixture = field(default_factory=Mixture)
    """What an epoch holds."""
    epochs: int = 12
    """Epochs of the mixture."""
    batch_size: int = 64
    """Samples per step."""
    lr: float = 1.5e-3
    """Peak learning rate."""
    emotion_weight: float = 0.6
    """Weight of the emotion cross-entropy beside the sentiment's absolute error."""
    label_smoothing: float = 0.05
    """Share of every emotion label that goes to all seven alike."""


@dataclass(frozen=True)
class Predictions:
    """What a fusion model says of N samples."""

    sentiment: Tensor
    """(N,)"""
    logits: Tensor
    """(N, 7)"""


@torch.no_grad()
def predict(model: GhrnnCma, samples: list[Sample], batch_size: int = 128) -> Predictions:
    """Run the model over samples, those of like length together; results keep the samples' order."""
    order = sorted(range(len(samples)), key=lambda i: max(map(len, samples[i].rows.values()), default=0))
    sentiment, logits = torch.empty(len(samples)), torch.empty(len(samples), len(EMOTIONS))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        s, e = model(**inputs(collate([samples[i] for i in chosen], dims(model.config))))
        sentiment[chosen], logits[chosen] = s, e
    return Predictions(sentiment, logits)


def inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a batch that the model takes."""
    return {key: batch[key] for m in MODALITIES for key in (m, f"{m}_lengths")}


def dims(config: GhrnnCmaConfig) -> dict[Modality, int]:
    """Features per row of each modality."""
    return {"text": config.text_dim, "audio": config.audio_dim, "vision": config.vision_dim}


def score(samples: Sequence[Labelled], predictions: Predictions) -> dict[str, float]:
    """Metrics of whatever labels the samples have."""
    found: dict[str, float] = {}
    truth = np.array([s.sentiment for s in samples])
    rated = ~np.isnan(truth)
    if rated.all():
        metrics = sentiment_metrics(truth, predictions.sentiment.numpy())
        found |= {"mae": metrics.mae, "acc2_non0": metrics.acc2_non0 or 0.0}
    labels = torch.stack([s.emotion for s in samples])
    if bool((labels.sum(-1) > 0).all()):
        names = emotion_metrics(labels.argmax(-1).numpy(), predictions.logits.softmax(-1).numpy())
        found |= {"accuracy": names.accuracy, "weighted_f1": names.weighted_f1, "uar": names.uar}
    return found


SELECTED_BY = {
    "mosi": ("mae", -1.0),
    "meld": ("weighted_f1", 1.0),
    "ravdess": ("uar", 1.0),
    "ferplus": ("accuracy", 1.0),
    "clips": ("accuracy", 0.3),
    "composed text+audio+vision": ("accuracy", 1.0),
}
"""The score that the best epoch is chosen by: validation set → metric and weight."""

AGREEMENT_WEIGHT = 4.0
"""Weight, in that score, of the worst that a further agreeing modality does; see :func:`worst_gain`."""

ENOUGH_GAIN = 0.02
"""More accuracy gained than this no longer counts here: modalities must help, how much the rest tells."""


def worst_gain(accuracy: Mapping[str, float]) -> float:
    """Smallest accuracy that modalities together gain on the best of them alone, over the composed sets.

    ``accuracy`` holds keys like "composed text+audio" for the singles, too; 0 where nothing is combined.
    """
    composed = {frozenset(k.removeprefix("composed ").split("+")): v for k, v in accuracy.items()}
    gains = [
        value - max(composed[frozenset({m})] for m in some)
        for some, value in composed.items()
        if len(some) > 1 and all(frozenset({m}) in composed for m in some)
    ]
    return min(gains, default=0.0)


class ScoredStage(Stage, Generic[S]):
    """A fusion model that is validated on named sets of people."""

    model: Fusion

    def __init__(
        self,
        valid: Mapping[str, list[S]],
        selected_by: Mapping[str, tuple[str, float]],
        lr: float,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.valid, self.selected_by, self.lr, self.total_steps = valid, selected_by, lr, total_steps

    @abstractmethod
    def predict(self, people: list[S]) -> Predictions:
        """What the model says of them."""
        ...

    def validation_step(self, _: Any, __: int) -> None:
        """The sets are scored whole at the end of the epoch."""

    def on_validation_epoch_end(self) -> None:
        total = 0.0
        composed: dict[str, float] = {}
        for name, people in self.valid.items():
            found = score(people, self.predict(people))
            for metric, value in found.items():
                self.log(f"valid {name} {metric}", value)
            metric, weight = self.selected_by.get(name, ("", 0.0))
            total += weight * found.get(metric, 0.0)
            if name.startswith("composed "):
                composed[name] = found["accuracy"]
        self.log(SCORE, total + AGREEMENT_WEIGHT * min(worst_gain(composed), ENOUGH_GAIN))

    def configure_optimizers(self) -> Any:
        return warmup_cosine(
            [{"params": list(self.parameters()), "lr": self.lr}], self.total_steps, weight_decay=0.02
        )

    def weights(self) -> dict[str, Tensor]:
        """The fusion model."""
        return self.model.state_dict()


class FusionStage(ScoredStage[Sample]):
    """The fusion model with its two losses."""

    model: GhrnnCma

    def __init__(self, recipe: FusionRecipe, valid: Mapping[str, list[Sample]], total_steps: int) -> None:
        super().__init__(valid, SELECTED_BY, recipe.lr, total_steps)
        self.recipe = recipe
        self.model = GhrnnCma(recipe.model)

    def predict(self, people: list[Sample]) -> Predictions:
        return predict(self.model, people)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        sentiment, logits = self.model(**inputs(batch))
        labels = batch["emotion"]
        target = smoothed(labels, self.recipe.label_smoothing)
        cross_entropy = -(target * logits.log_softmax(-1)).sum() / (labels.sum(-1) > 0).sum().clamp(min=1)
        loss: Tensor = masked_l1(sentiment, batch["sentiment"]) + self.recipe.emotion_weight * cross_entropy
        self.log("train_loss", loss)
        return loss


def smoothed(labels: Tensor, share: float) -> Tensor:
    """Labels (…, 7) of which a share goes to all seven alike; those of zeros stay so."""
    named = (labels.sum(-1, keepdim=True) > 0).to(labels.dtype)
    return labels * (1 - share) + named * share / len(EMOTIONS)


def train_fusion(
    sources: Sources[Tensor],
    clips: list[Sample],
    valid: Mapping[str, list[Sample]],
    folder: Path,
    recipe: FusionRecipe,
    seed: int,
) -> Path:
    """Train the fusion model; returns the path of its best weights."""
    lightning.seed_everything(seed, verbose=False)
    loader = DataLoader(
        FusionSamples(sources, clips, recipe.mixture, seed),
        batch_size=recipe.batch_size,
        shuffle=True,
        collate_fn=partial(collate, dims=dims(recipe.model)),
    )
    stage = FusionStage(recipe, valid, recipe.epochs * len(loader))
    return fit(stage, loader, DataLoader([0]), epochs=recipe.epochs, folder=folder)  # type: ignore[arg-type]
