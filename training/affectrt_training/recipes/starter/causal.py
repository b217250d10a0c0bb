"""Stage 5: the causal GHRNN-CMA learns to answer at every tick, from the same three encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from affectrt.affect import EMOTIONS, Modality
from affectrt.calibration import presence_key
from affectrt_training.encoders.voice import VoiceEncoder
from affectrt_training.models.ghrnn_cma import GhrnnCmaConfig
from affectrt_training.models.ghrnn_cma_causal import CausalGhrnnCma
from affectrt_training.recipes.starter.banks import Item
from affectrt_training.recipes.starter.calibrate import AT_ONCE, calibrate_on, composed, only, patterns
from affectrt_training.recipes.starter.compose import Mixture, Person, Sources
from affectrt_training.recipes.starter.courses import Courses, lay
from affectrt_training.recipes.starter.fit import fit
from affectrt_training.recipes.starter.fusion import (
    SELECTED_BY,
    STARTER,
    Predictions,
    ScoredStage,
    dims,
    score,
    smoothed,
)
from affectrt_training.recipes.starter.moments import SETTLED_S, TICK_S, Course, Moment, collate
from affectrt_training.recipes.starter.tracks import Track

_HALVED = {name: (SELECTED_BY[name][0], SELECTED_BY[name][1] / 2) for name in ("mosi", "meld")}

CAUSAL_SELECTED_BY = {**SELECTED_BY, **_HALVED, **{name + AT_ONCE: by for name, by in _HALVED.items()}}
"""As the window's, words that come one by one and at once counting half each."""

CAUSAL = replace(STARTER, causal=True, window_s=4.0)
"""Shape of the starter's causal model: the fusion's, looking as far back as its window."""


FIRST_MOMENTS = Mixture(
    mosi=950, sst=1000, named_text=2000, voices=2000, faces=1500, clips=200, composed=3000
)
"""A quarter of the fusion's mixture, but for voices: they are what the window's encoder hears otherwise."""


@dataclass(frozen=True)
class CausalRecipe:
    """How the causal fusion model is trained."""

    model: GhrnnCmaConfig = CAUSAL
    """Its shape."""
    mixture: Mixture = FIRST_MOMENTS
    """What the first moments of an epoch's courses are. Fewer than the fusion's: a course has a hundred
    labelled ticks, and training begins with the fusion's weights."""
    epochs: int = 7
    """Epochs of the mixture."""
    batch_size: int = 64
    """Courses per step."""
    lr: float = 1.5e-3
    """Peak learning rate."""
    emotion_weight: float = 0.6
    """Weight of the emotion cross-entropy beside the sentiment's absolute error."""
    label_smoothing: float = 0.05
    """Share of every emotion label that goes to all seven alike."""


@torch.no_grad()
def predict(model: CausalGhrnnCma, moments: Sequence[Moment], batch_size: int = 128) -> Predictions:
    """What the model says of each moment :data:`SETTLED_S` after the last of its evidence."""
    courses = [Course([moment], moment.ends_s + SETTLED_S) for moment in moments]
    order = sorted(range(len(courses)), key=lambda i: courses[i].ticks)
    sentiment, logits = torch.empty(len(courses)), torch.empty(len(courses), len(EMOTIONS))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([courses[i] for i in chosen], dims(model.config))
        s, e = model(**inputs(batch))
        at_end = torch.arange(len(chosen)), batch["lengths"] - 1
        sentiment[chosen], logits[chosen] = s[at_end], e[at_end]
    return Predictions(sentiment, logits)


def inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a batch that the model takes."""
    return {key: x for key, x in batch.items() if key not in ("emotion", "sentiment", "weight")}


class CausalStage(ScoredStage[Moment]):
    """The causal model with its two losses at every tick."""

    model: CausalGhrnnCma

    def __init__(self, recipe: CausalRecipe, valid: Mapping[str, list[Moment]], total_steps: int) -> None:
        super().__init__(valid, CAUSAL_SELECTED_BY, recipe.lr, total_steps)
        self.recipe = recipe
        self.model = CausalGhrnnCma(recipe.model)

    def predict(self, people: list[Moment]) -> Predictions:
        return predict(self.model, people)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        sentiment, logits = self.model(**inputs(batch))
        weight, labels = batch["weight"], batch["emotion"]
        target = smoothed(labels, self.recipe.label_smoothing)
        rated = ~batch["sentiment"].isnan()
        error = (sentiment - batch["sentiment"].nan_to_num()).abs()
        surprise = -(target * logits.log_softmax(-1)).sum(-1)
        loss = _mean(error, weight * rated) + self.recipe.emotion_weight * _mean(
            surprise, weight * (labels.sum(-1) > 0)
        )
        self.log("train_loss", loss)
        return loss


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean; 0 where nothing weighs."""
    return (values * weight).sum() / weight.sum().clamp(min=1e-6)


def train_causal(
    sources: Sources[Track],
    clips: Sequence[Person[Track]],
    valid: Mapping[str, list[Moment]],
    folder: Path,
    recipe: CausalRecipe,
    seed: int,
    start: Mapping[str, Tensor] | None = None,
) -> Path:
    """Train the causal fusion model; returns the path of its best weights.

    ``start``: weights of a window model of the same shape to begin with.
    """
    lightning.seed_everything(seed, verbose=False)
    courses = Courses(sources, clips, recipe.mixture, recipe.batch_size, dims(recipe.model), seed)
    stage = CausalStage(recipe, valid, recipe.epochs * len(courses))
    if start is not None:
        stage.model.load_state_dict(dict(start), strict=False)
    return fit(
        stage,
        DataLoader(courses, batch_size=None),
        DataLoader([0]),  # type: ignore[arg-type]
        epochs=recipe.epochs,
        folder=folder,
    )


def validation_moments(
    valid: Sources[Track], clips: Sequence[Person[Track]], seed: int
) -> dict[str, list[Moment]]:
    """What the causal stage is validated on, by name: as the window's sets, and words at once."""
    generator = np.random.default_rng(seed)

    def alone(items: Sequence[Item[Track]], modality: Modality, version: int = 0) -> list[Moment]:
        people = [Person({modality: [_only(i, version)]}, i.emotion, i.sentiment) for i in items]
        return [see(person, generator) for person in people]

    people = composed(valid, see, rated=0.0, seed=seed)
    return {
        "mosi": alone(valid.rated_text, "text"),
        "mosi" + AT_ONCE: alone(valid.rated_text, "text", 1),
        "meld": alone(valid.named_text, "text"),
        "meld" + AT_ONCE: alone(valid.named_text, "text", 1),
        "ravdess": alone([v for v in valid.voices if v.corpus == "ravdess"], "audio"),
        "emodb": alone([v for v in valid.voices if v.corpus == "emodb"], "audio"),
        "ferplus": alone(valid.faces, "vision"),
        "clips": [see(clip, generator) for clip in clips],
        **{f"composed {presence_key(some)}": only(people, some) for some in patterns() if some},
    }


def _only(item: Item[Track], version: int) -> Item[Track]:
    return Item([item.versions[version]], item.emotion, item.sentiment, item.corpus)


def see(person: Person[Track], generator: np.random.Generator) -> Moment:
    """A person in a stream that begins a second before."""
    return lay(person, 1.0, generator)


def describe(
    model: CausalGhrnnCma, valid: Sources[Track], sets: Mapping[str, list[Moment]], seed: int
) -> dict[str, Any]:
    """The sidecar's "causal": the model's shape, how it is fed, its calibration and validation metrics."""

    def ask(moments: list[Moment]) -> Predictions:
        return predict(model, moments)

    return {
        "config": asdict(model.config),
        "tick_s": TICK_S,
        "audio_context_rows": VoiceEncoder.CONTEXT_ROWS,
        "calibration": calibrate_on(sets, ask, valid, see, seed),
        "metrics": {name: score(moments, ask(moments)) for name, moments in sets.items()},
    }
