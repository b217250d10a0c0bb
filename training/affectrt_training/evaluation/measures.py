"""The metrics that systems are compared by, for many resamples at once.

:mod:`affectrt_training.metrics` scores one set of predictions for people; a bootstrap scores thousands. The
definitions are the same, and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from affectrt.affect import EMOTIONS

Array = npt.NDArray[Any]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """One column of a comparison."""

    name: str
    """As in ``SentimentMetrics`` and ``EmotionMetrics``."""
    title: str
    """For tables and axes."""
    kind: Literal["sentiment", "emotion"]
    """The label that it judges."""
    better: Literal["lower", "higher"]
    """Which way is good."""
    score: Callable[[Array, Array], Scores]
    """Truth (…, N) and prediction (…, N), sentiments or class indices → (…,); NaN where undefined."""
    percent: bool = False
    """Printed as a percentage."""

    @property
    def sign(self) -> int:
        """1 when higher is better, -1 when lower is."""
        return 1 if self.better == "higher" else -1

    def text(self, value: float | None) -> str:
        """As tables print it; a dash for None."""
        if value is None:
            return "–"
        return (f"{100 * value:.1f}" if self.percent else f"{value:.3f}").replace("-", "−")


def _mae(truth: Array, prediction: Array) -> Scores:
    return np.asarray(np.abs(truth - prediction).mean(-1), np.float64)


def _r(truth: Array, prediction: Array) -> Scores:
    constant = (np.ptp(truth, axis=-1) == 0) | (np.ptp(prediction, axis=-1) == 0)
    y = truth - truth.mean(-1, keepdims=True)
    p = prediction - prediction.mean(-1, keepdims=True)
    below = np.sqrt((y * y).sum(-1) * (p * p).sum(-1))
    return np.where(constant, np.nan, (y * p).sum(-1) / np.where(constant, 1.0, below))


def _share(hits: Array, kept: Array) -> Scores:
    """Share of ``hits`` among ``kept``, both (…, N) booleans."""
    count = kept.sum(-1)
    return np.where(count == 0, np.nan, (hits & kept).sum(-1) / np.maximum(count, 1))


def _f1(truth: Array, prediction: Array, kept: Array, classes: int) -> Scores:
    """F1 of each class of (…, N) indices, weighted by its true rows among ``kept``."""
    total = np.zeros(np.broadcast_shapes(truth.shape, prediction.shape)[:-1])
    for k in range(classes):
        true, guessed = (truth == k) & kept, (prediction == k) & kept
        support = true.sum(-1)
        f1 = 2 * (true & guessed).sum(-1) / np.maximum(support + guessed.sum(-1), 1)
        total = total + f1 * support
    count = np.broadcast_to(kept, total.shape + kept.shape[-1:]).sum(-1)
    return np.where(count == 0, np.nan, total / np.maximum(count, 1))


def _acc2_has0(truth: Array, prediction: Array) -> Scores:
    hits = (truth >= 0) == (prediction >= 0)
    return _share(hits, np.ones_like(hits))


def _acc2_non0(truth: Array, prediction: Array) -> Scores:
    return _share((truth > 0) == (prediction > 0), truth != 0)


def _f1_has0(truth: Array, prediction: Array) -> Scores:
    return _f1(truth >= 0, prediction >= 0, np.ones_like(truth, bool), 2)


def _f1_non0(truth: Array, prediction: Array) -> Scores:
    return _f1(truth > 0, prediction > 0, truth != 0, 2)


def _rounded(truth: Array, prediction: Array, limit: int) -> Scores:
    hits = np.round(np.clip(truth, -limit, limit)) == np.round(np.clip(prediction, -limit, limit))
    return _share(hits, np.ones_like(hits))


def _acc5(truth: Array, prediction: Array) -> Scores:
    return _rounded(truth, prediction, 2)


def _acc7(truth: Array, prediction: Array) -> Scores:
    return _rounded(truth, prediction, 3)


def _accuracy(truth: Array, prediction: Array) -> Scores:
    hits = truth == prediction
    return _share(hits, np.ones_like(hits))


def _weighted_f1(truth: Array, prediction: Array) -> Scores:
    return _f1(truth, prediction, np.ones_like(truth, bool), len(EMOTIONS))


def _uar(truth: Array, prediction: Array) -> Scores:
    recalls = np.stack([_share(truth == prediction, truth == k) for k in range(len(EMOTIONS))])
    seen = ~np.isnan(recalls)
    return np.asarray(np.where(seen, recalls, 0.0).sum(0) / seen.sum(0), np.float64)


SENTIMENT = (
    Measure("mae", "MAE", "sentiment", "lower", _mae),
    Measure("r", "r", "sentiment", "higher", _r),
    Measure("acc2_has0", "acc-2 Has0", "sentiment", "higher", _acc2_has0, percent=True),
    Measure("acc2_non0", "acc-2 Non0", "sentiment", "higher", _acc2_non0, percent=True),
    Measure("f1_has0", "F1 Has0", "sentiment", "higher", _f1_has0, percent=True),
    Measure("f1_non0", "F1 Non0", "sentiment", "higher", _f1_non0, percent=True),
    Measure("acc5", "acc-5", "sentiment", "higher", _acc5, percent=True),
    Measure("acc7", "acc-7", "sentiment", "higher", _acc7, percent=True),
)
EMOTION = (
    Measure("accuracy", "accuracy", "emotion", "higher", _accuracy, percent=True),
    Measure("weighted_f1", "weighted F1", "emotion", "higher", _weighted_f1, percent=True),
    Measure("uar", "unweighted recall", "emotion", "higher", _uar, percent=True),
)
MEASURES = {measure.name: measure for measure in (*SENTIMENT, *EMOTION)}
"""Name → measure, in the order of tables."""
