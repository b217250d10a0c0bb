"""Metrics of predictions by name: training selects by them, ``affectrt evaluate`` prints them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from affectrt.affect import EMOTIONS
from affectrt_training.metrics import confusion_matrix, emotion_metrics, sentiment_metrics

LOWER_IS_BETTER = frozenset({"mae", "ece"})
"""Of all metrics."""


@dataclass(frozen=True)
class Truth:
    """The labels of N examples; None: no such label."""

    sentiment: Sequence[float | None]
    """In [-3, 3]."""
    emotion: Sequence[int | None]
    """Indices into ``EMOTIONS``."""


def score(
    truth: Truth,
    sentiment: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    intervals: npt.ArrayLike | None = None,
) -> dict[str, object]:
    """Metrics of predictions: sentiment (N,), probabilities (N, 7), intervals (N, 2).

    Keys: ``n`` (rows with any label), then for each kind of label that occurs its number of rows and its
    metrics; a metric that the data leave undefined is None.
    """
    predicted, probs = np.asarray(sentiment, np.float64), np.asarray(probabilities, np.float64)
    rated = np.array([value is not None for value in truth.sentiment], bool)
    named = np.array([value is not None for value in truth.emotion], bool)
    result: dict[str, object] = {"n": int((rated | named).sum())}
    if rated.any():
        result["n_sentiment"] = int(rated.sum())
        result |= sentiment_metrics(
            [value for value in truth.sentiment if value is not None],
            predicted[rated],
            None if intervals is None else np.asarray(intervals, np.float64)[rated],
        ).to_dict()
    if named.any():
        classes = np.array([value for value in truth.emotion if value is not None], np.int64)
        result["n_emotion"] = int(named.sum())
        result |= emotion_metrics(classes, probs[named]).to_dict()
        matrix = confusion_matrix(classes, probs[named].argmax(axis=1).astype(np.int64), len(EMOTIONS))
        result["confusion"] = {
            name: dict(zip(EMOTIONS, map(int, counts), strict=True))
            for name, counts in zip(EMOTIONS, matrix, strict=True)
        }
    return result
