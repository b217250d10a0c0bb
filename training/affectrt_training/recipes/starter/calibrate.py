"""Honest confidence: a temperature and an interval width for every pattern of present modalities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt.calibration import presence_key
from affectrt_training.recipes.starter.banks import S, V
from affectrt_training.recipes.starter.compose import MISLEADING, Person, Sources, cast
from affectrt_training.recipes.starter.fusion import Predictions

COVERAGE = 0.9
"""Share of truths that intervals are made to hold."""

AT_ONCE = " at once"
"""Ends the names of validation sets whose words come together when all has been said."""

PER_EMOTION = 100
"""Composed validation samples per emotion and pattern."""


def patterns() -> list[frozenset[Modality]]:
    """All eight, the empty one first."""
    return [frozenset(some) for count in range(4) for some in combinations(MODALITIES, count)]


def composed(
    sources: Sources[V],
    see: Callable[[Person[V], np.random.Generator], S],
    *,
    rated: float,
    seed: int,
    misleading: Mapping[Modality, float] | None = None,
) -> list[S]:
    """People with all three modalities, as many of each emotion; the same for the same seed.

    ``see`` makes of a person what the model sees.
    """
    generator = np.random.default_rng(seed)
    everything = frozenset(MODALITIES)
    return [
        see(cast(sources, emotion, everything, generator, rated=rated, misleading=misleading), generator)
        for emotion in range(len(EMOTIONS))
        for _ in range(PER_EMOTION)
    ]


def only(samples: list[S], present: frozenset[Modality]) -> list[S]:
    """The same people with fewer modalities."""
    return [sample.only(present) for sample in samples]


def fit_temperature(logits: Tensor, truth: Tensor) -> float:
    """The temperature that minimises the negative log-likelihood (arXiv:1706.04599 §4.2), in [0.25, 8].

    logits (N, 7), truth (N,) class indices.
    """
    grid = torch.exp(torch.linspace(math.log(0.25), math.log(8.0), 400))
    losses = torch.stack([torch.nn.functional.cross_entropy(logits / t, truth) for t in grid])
    return round(float(grid[losses.argmin()]), 4)


def half_width(truth: Tensor, prediction: Tensor, coverage: float = COVERAGE) -> float:
    """Split-conformal half width: the ceil((n + 1) coverage)-th smallest residual (arXiv:2107.07511 §1)."""
    residuals = (truth - prediction).abs().sort().values
    rank = min(math.ceil((len(residuals) + 1) * coverage), len(residuals))
    return round(float(residuals[rank - 1]), 4)


def calibrate(
    predict: Callable[[list[S]], Predictions],
    sources: Sources[V],
    see: Callable[[Person[V], np.random.Generator], S],
    named: dict[frozenset[Modality], list[S]],
    rated: dict[frozenset[Modality], list[S]],
    seed: int,
) -> dict[str, object]:
    """The manifest's "calibration" of a trained model, from validation data.

    ``predict`` asks the model, ``see`` makes of a person what it sees. ``named`` and ``rated`` hold real
    samples with emotion and with sentiment for patterns that have some. For
    other patterns confidence comes from composed people, whose modalities contradict each other as often as
    in training: real people do, so agreement must not make the model surer than that. Sentiment was only
    ever rated for words. Composed people can't show that a face or a voice narrows the interval, so it is
    never narrower than that of the words alone, or without words that of knowing nothing.
    """
    mixed = composed(sources, see, rated=0.0, seed=seed, misleading=MISLEADING)
    valued = composed(sources, see, rated=1.0, seed=seed + 1)
    by_valence = [sample for sample in valued if not math.isnan(sample.sentiment)]
    temperature: dict[str, float] = {}
    widths: dict[str, float] = {}
    for present in patterns():
        samples = named.get(present) or only(mixed, present)
        truth = torch.stack([s.emotion for s in samples]).argmax(-1)
        temperature[presence_key(present)] = fit_temperature(predict(samples).logits, truth)
        samples = rated.get(present) or only(by_valence, present)
        sentiment = torch.tensor([s.sentiment for s in samples])
        known = presence_key(present & {"text"})
        widths[presence_key(present)] = max(
            half_width(sentiment, predict(samples).sentiment), widths.get(known, 0.0)
        )
    return {"coverage": COVERAGE, "temperature": temperature, "interval_half_width": widths}


def calibrate_on(
    sets: Mapping[str, list[S]],
    predict: Callable[[list[S]], Predictions],
    sources: Sources[V],
    see: Callable[[Person[V], np.random.Generator], S],
    seed: int,
) -> dict[str, object]:
    """As :func:`calibrate`, with the real samples of a fusion stage's validation sets."""
    nothing, text, audio, vision = patterns()[:4]

    def all_of(name: str) -> list[S]:
        return [*sets[name], *sets.get(name + AT_ONCE, [])]

    return calibrate(
        predict,
        sources,
        see,
        named={
            nothing: only(sets["meld"], nothing),
            text: all_of("meld"),
            audio: [*sets["ravdess"], *sets["emodb"]],
            vision: sets["ferplus"],
        },
        rated={nothing: only(sets["mosi"], nothing), text: all_of("mosi")},
        seed=seed,
    )
