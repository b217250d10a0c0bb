"""From predictions to the scores of a report: each row of the table, over its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from affectrt.affect import EMOTIONS
from affectrt_training.data.dataset import Example
from affectrt_training.evaluation.fits import Fitted
from affectrt_training.evaluation.measures import EMOTION, SENTIMENT, Measure
from affectrt_training.evaluation.plan import Kind, Part
from affectrt_training.evaluation.reliability import half_width, intervals, soften, temperature
from affectrt_training.metrics import (
    confusion_matrix,
    emotion_metrics,
    expected_calibration_error,
    sentiment_metrics,
)

Array = npt.NDArray[Any]

BASELINE = "training median"
"""The row that stands for no skill: the training rows' median sentiment and shares of emotions."""

CONFIDENCE = ("interval_coverage", "interval_width", "ece", "ece_calibrated")
"""Coverage and width of 90 % intervals; calibration error as trained, and with a temperature."""


@dataclass(frozen=True)
class Truth:
    """Labels of the N held-out examples of all parts, in the parts' order."""

    sentiment: Array
    """(N,), NaN where there is no such label."""
    emotion: Array
    """(N,), -1 where there is none."""

    def known(self, kind: Literal["sentiment", "emotion"]) -> Array:
        """(N,) booleans."""
        return np.asarray(~np.isnan(self.sentiment) if kind == "sentiment" else self.emotion >= 0)

    def of(self, kind: Literal["sentiment", "emotion"]) -> Array:
        """The known labels of a kind."""
        return np.asarray((self.sentiment if kind == "sentiment" else self.emotion)[self.known(kind)])


def truth_of(examples: Iterable[Example]) -> Truth:
    """Labels as arrays."""
    found = list(examples)
    return Truth(
        np.array([np.nan if e.sentiment is None else e.sentiment for e in found]),
        np.array([-1 if e.emotion is None else e.emotion for e in found]),
    )


@dataclass(frozen=True)
class Answers:
    """What S trainings of a row say of the N held-out examples, each asked of a model that hasn't seen it."""

    sentiment: Array
    """(S, N)."""
    probabilities: Array
    """(S, N, 7), as trained."""
    calibrated: Array
    """(S, N, 7) at the temperature of the part's validation examples."""
    half_widths: Array
    """(S, N) of 90 % intervals, from the part's validation examples; NaN where none is rated."""
    worse: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    """Condition → sentiments (S, N) and emotion indices (S, N)."""

    def of(self, measure: Measure, truth: Truth, condition: str = "") -> Array:
        """What ``measure`` takes as prediction, (S, N known)."""
        sentiment, emotion = (
            self.worse[condition] if condition else (self.sentiment, self.probabilities.argmax(-1))
        )
        return np.asarray(
            (sentiment if measure.kind == "sentiment" else emotion)[:, truth.known(measure.kind)]
        )


def pool(parts: Sequence[Part], by_seed: Sequence[Sequence[Fitted]]) -> Answers:
    """Answers of one row from its fits, ``by_seed[seed][part]``."""
    calibrated, widths = [], []
    for fits in by_seed:
        for part, fit in zip(parts, fits, strict=True):
            truth, held = truth_of(part.valid), fit.arrays["held/probabilities"]
            named, rated = truth.known("emotion"), truth.known("sentiment")
            valid = fit.arrays["valid/probabilities"][named]
            calibrated.append(soften(held, temperature(valid, truth.of("emotion"))) if named.any() else held)
            half = np.nan
            if rated.any():
                half = half_width(truth.of("sentiment"), fit.arrays["valid/sentiment"][rated])
            widths.append(np.full(len(held), half))
    seeds = len(by_seed)

    def joined(key: str, axis: int = 0) -> Array:
        rows = [np.concatenate([fit.arrays[key] for fit in fits], axis) for fits in by_seed]
        return np.stack(rows).astype(np.float64)

    worse = {}
    names = by_seed[0][0].conditions
    if names:
        sentiment, emotion = joined("worse/sentiment", 1), joined("worse/emotion", 1).astype(np.int64)
        worse = {name: (sentiment[:, c], emotion[:, c]) for c, name in enumerate(names)}
    return Answers(
        joined("held/sentiment"),
        joined("held/probabilities"),
        np.concatenate(calibrated).reshape(seeds, -1, len(EMOTIONS)),
        np.concatenate(widths).reshape(seeds, -1),
        worse,
    )


def baseline(parts: Sequence[Part]) -> Answers:
    """The answers of :data:`BASELINE`: constants of each part's training rows."""
    sentiment, probabilities, widths = [], [], []
    for part in parts:
        train, valid = truth_of(part.train), truth_of(part.valid)
        middle = float(np.median(train.of("sentiment"))) if train.known("sentiment").any() else 0.0
        counts = np.bincount(train.of("emotion"), minlength=len(EMOTIONS)) + 1e-6
        half = np.nan
        if valid.known("sentiment").any():
            rated = valid.of("sentiment")
            half = half_width(rated, np.full(len(rated), middle))
        for _ in part.held:
            sentiment.append(middle)
            probabilities.append(counts / counts.sum())
            widths.append(half)
    known = np.array([probabilities])
    return Answers(np.array([sentiment]), known, known, np.array([widths]))


@dataclass(frozen=True)
class Score:
    """One measure over seeds. None: undefined on these data."""

    mean: float | None
    std: float | None
    """Sample standard deviation (n - 1) over seeds; None for one seed."""
    seeds: Sequence[float | None]


def score_of(values: Iterable[float | None]) -> Score:
    """Mean and spread; undefined when any seed's value is."""
    seeds = [None if v is None or np.isnan(v) else float(v) for v in values]
    known = [v for v in seeds if v is not None]
    if len(known) < len(seeds):
        return Score(None, None, seeds)
    return Score(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None, seeds)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    label: str
    kind: Kind
    base: str
    source: str
    """The paper."""
    modalities: Sequence[str]
    scores: Mapping[str, Score]
    """By measure, and :data:`CONFIDENCE`."""
    confusion: Mapping[str, Sequence[Sequence[int]]]
    """``sentiment`` in seven rounded bins and ``emotion``: counts over all seeds, rows are truth."""
    parameters: int | None = None
    mflops: float | None = None
    """Of one forward pass on a median example."""
    train_s: float | None = None
    """Mean seconds of one core that a training takes."""
    best_epoch: float | None = None
    """Mean over trainings."""
    settings: Mapping[str, Any] = field(default_factory=dict)


def scores_of(answers: Answers, truth: Truth) -> dict[str, Score]:
    """All scores that the labels allow."""
    found: dict[str, Score] = {}
    if truth.known("sentiment").any():
        known, y = truth.known("sentiment"), truth.of("sentiment")
        seeds = [
            sentiment_metrics(y, sentiment[known], intervals(sentiment, half)[known])
            if np.isfinite(half[known]).all()
            else sentiment_metrics(y, sentiment[known])
            for sentiment, half in zip(answers.sentiment, answers.half_widths, strict=True)
        ]
        for name in (*(m.name for m in SENTIMENT), "interval_coverage"):
            found[name] = score_of(getattr(seed, name) for seed in seeds)
        found["interval_width"] = score_of(2 * half[known].mean() for half in answers.half_widths)
    if truth.known("emotion").any():
        known, classes = truth.known("emotion"), truth.of("emotion")
        emotions = [emotion_metrics(classes, probabilities[known]) for probabilities in answers.probabilities]
        for name in (*(m.name for m in EMOTION), "ece"):
            found[name] = score_of(getattr(seed, name) for seed in emotions)
        found["ece_calibrated"] = score_of(
            expected_calibration_error(probs[known].argmax(1) == classes, probs[known].max(1))
            for probs in answers.calibrated
        )
    return found


def confusions_of(answers: Answers, truth: Truth) -> dict[str, list[list[int]]]:
    """Confusion matrices, counts over all seeds."""
    found = {}
    if truth.known("sentiment").any():
        y = np.tile(_bins(truth.of("sentiment")), len(answers.sentiment))
        p = _bins(answers.sentiment[:, truth.known("sentiment")]).ravel()
        found["sentiment"] = confusion_matrix(y, p, 7).tolist()
    if truth.known("emotion").any():
        classes = np.tile(truth.of("emotion"), len(answers.sentiment)).astype(np.int64)
        guess = answers.probabilities[:, truth.known("emotion")].argmax(-1).ravel().astype(np.int64)
        found["emotion"] = confusion_matrix(classes, guess, len(EMOTIONS)).tolist()
    return found


def _bins(sentiment: Array) -> npt.NDArray[np.int64]:
    """Sentiments as acc-7 sees them: 0 is -3, 6 is 3."""
    return (np.round(np.clip(sentiment, -3, 3)) + 3).astype(np.int64)
