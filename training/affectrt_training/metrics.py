"""The metrics of multimodal sentiment and emotion work, exactly as the field reports them. numpy only.

A metric that the data leave undefined (a correlation with a constant, a recall of a class without examples,
a Non0 accuracy when every truth is 0) is None, never NaN and never 0: JSON has no NaN and 0 would be a lie.
Arguments come in the order (truth, prediction) everywhere, because swapping them changes the weighted F1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from affectrt.affect import EMOTIONS
from affectrt.errors import AffectError

FloatVector = npt.NDArray[np.float64]
IntVector = npt.NDArray[np.int64]

ECE_BINS = 15
"""Equal-width bins over (0, 1] of the top-1 probability, closed on the right (arXiv:1706.04599, eq. 3)."""


@dataclass(frozen=True)
class SentimentMetrics:
    """Metrics of sentiment in [-3, 3]. Papers print acc-2 as the pair Has0/Non0."""

    mae: float
    """Mean absolute error."""
    r: float | None
    """Pearson correlation; None with fewer than two rows or when either side is constant."""
    acc2_has0: float
    """Accuracy of y >= 0 against p >= 0, over every row."""
    acc2_non0: float | None
    """Accuracy of y > 0 against p > 0, over rows with y != 0; None when there are none."""
    f1_has0: float
    """Weighted F1 of the same two classes as ``acc2_has0``."""
    f1_non0: float | None
    """Weighted F1 of the same two classes as ``acc2_non0``."""
    acc5: float
    """Both sides clipped to [-2, 2] and rounded half to even, then compared."""
    acc7: float
    """Both sides clipped to [-3, 3] and rounded half to even, then compared."""
    interval_coverage: float | None
    """Share of truths inside their interval, bounds included; None when no intervals were given."""

    def to_dict(self) -> dict[str, object]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class EmotionMetrics:
    """Metrics of single-label emotion classification over ``EMOTIONS``."""

    accuracy: float
    """Share of rows whose most probable class is the truth."""
    weighted_f1: float
    """F1 per class, averaged with the number of true rows as weight."""
    uar: float
    """Unweighted average recall: the mean of ``recall`` over the classes that occur in the truth."""
    recall: dict[str, float | None]
    """Recall of each class; None for a class without true rows."""
    ece: float
    """Expected calibration error of the top-1 probability, ``ECE_BINS`` equal-width bins."""

    def to_dict(self) -> dict[str, object]:
        """The fields by name."""
        return asdict(self)


def sentiment_metrics(
    truth: npt.ArrayLike, prediction: npt.ArrayLike, intervals: npt.ArrayLike | None = None
) -> SentimentMetrics:
    """Score sentiment.

    ``truth`` and ``prediction`` are (N,) with N >= 1, ``intervals`` (N, 2) lower and upper bounds. Raises
    ``metrics.input`` on anything else and on non-finite values.
    """
    y, p = _vector("truth", truth), _vector("prediction", prediction)
    _same_length(y, p)
    non0 = y != 0
    some = bool(non0.any())
    return SentimentMetrics(
        mae=float(np.abs(y - p).mean()),
        r=pearson_r(y, p),
        acc2_has0=float(((y >= 0) == (p >= 0)).mean()),
        acc2_non0=float(((y > 0) == (p > 0))[non0].mean()) if some else None,
        f1_has0=weighted_f1((y >= 0).astype(np.int64), (p >= 0).astype(np.int64), classes=2),
        f1_non0=weighted_f1((y > 0)[non0].astype(np.int64), (p > 0)[non0].astype(np.int64), classes=2)
        if some
        else None,
        acc5=clipped_accuracy(y, p, limit=2),
        acc7=clipped_accuracy(y, p, limit=3),
        interval_coverage=None if intervals is None else interval_coverage(y, intervals),
    )


def emotion_metrics(truth: npt.ArrayLike, probabilities: npt.ArrayLike) -> EmotionMetrics:
    """Score emotions.

    ``truth`` is (N,) class indices into ``EMOTIONS``, ``probabilities`` (N, 7); the prediction is the
    arg-max, the first class on a tie. Raises ``metrics.input`` on other shapes, unknown classes and NaN.
    """
    probs = np.asarray(probabilities, dtype=np.float64)
    if probs.ndim != 2 or probs.shape[1] != len(EMOTIONS) or not np.isfinite(probs).all():
        raise AffectError(
            "metrics.input",
            f"emotion metrics: expected finite probabilities (N, {len(EMOTIONS)}), got shape {probs.shape}",
        )
    classes = _vector("truth", truth)
    y = classes.astype(np.int64)
    if (y != classes).any() or (y < 0).any() or (y >= len(EMOTIONS)).any():
        raise AffectError(
            "metrics.input",
            f"emotion metrics: truth must hold class indices 0 to {len(EMOTIONS) - 1}, got values from "
            f"{classes.min():g} to {classes.max():g}",
        )
    p = probs.argmax(axis=1).astype(np.int64)
    _same_length(y, p)
    recalls = recall_per_class(y, p, len(EMOTIONS))
    return EmotionMetrics(
        accuracy=float((y == p).mean()),
        weighted_f1=weighted_f1(y, p, len(EMOTIONS)),
        uar=float(np.mean([value for value in recalls if value is not None])),
        recall=dict(zip(EMOTIONS, recalls, strict=True)),
        ece=expected_calibration_error(y == p, probs.max(axis=1)),
    )


def pearson_r(truth: FloatVector, prediction: FloatVector) -> float | None:
    """Pearson's r of two (N,) vectors; None when it is undefined."""
    # ptp, not the variance: the mean of equal floats can differ from them in the last bit.
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(prediction) == 0:
        return None
    y, p = truth - truth.mean(), prediction - prediction.mean()
    # Scaled first, so that the squares of tiny deviations don't vanish.
    y, p = y / np.abs(y).max(), p / np.abs(p).max()
    return float(np.clip(y @ p / np.sqrt((y @ y) * (p @ p)), -1.0, 1.0))


def clipped_accuracy(truth: FloatVector, prediction: FloatVector, limit: int) -> float:
    """Share of rows equal after clipping both to ±limit and rounding half to even (acc-5: 2, acc-7: 3)."""
    y, p = (np.round(np.clip(values, -limit, limit)) for values in (truth, prediction))
    return float((y == p).mean())


def confusion_matrix(truth: IntVector, prediction: IntVector, classes: int) -> npt.NDArray[np.int64]:
    """(classes, classes) counts: row is the truth, column the prediction."""
    counts = np.bincount(truth * classes + prediction, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def weighted_f1(truth: IntVector, prediction: IntVector, classes: int) -> float:
    """F1 per class weighted by its number of true rows; 0 for a class never predicted. (N,) with N >= 1."""
    matrix = confusion_matrix(truth, prediction, classes)
    support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    # 2·tp / (support + predicted) is the harmonic mean of precision and recall without their 0/0.
    f1 = 2 * np.diag(matrix) / np.maximum(support + predicted, 1)
    return float((f1 * support).sum() / support.sum())


def recall_per_class(truth: IntVector, prediction: IntVector, classes: int) -> list[float | None]:
    """Recall of each class, None for a class without true rows."""
    matrix = confusion_matrix(truth, prediction, classes)
    return [float(row[k] / row.sum()) if row.sum() else None for k, row in enumerate(matrix)]


def expected_calibration_error(
    correct: npt.NDArray[np.bool_], confidence: npt.ArrayLike, bins: int = ECE_BINS
) -> float:
    """Mean over rows of |accuracy - mean confidence| of the row's bin: ``bins`` equal widths over (0, 1].

    ``correct`` (N,) says whether the top-1 class was right, ``confidence`` (N,) its probability.
    """
    sure = _vector("confidence", confidence)
    index = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    # |Σ correct − Σ confidence| per bin is already the gap times the number of rows in the bin.
    gap = np.bincount(index, weights=correct.astype(np.float64) - sure, minlength=bins)
    return float(np.abs(gap).sum() / len(sure))


def interval_coverage(truth: FloatVector, intervals: npt.ArrayLike) -> float:
    """Share of truths (N,) inside their interval (N, 2), bounds included."""
    bounds = np.asarray(intervals, dtype=np.float64)
    if bounds.shape != (len(truth), 2) or not np.isfinite(bounds).all():
        raise AffectError(
            "metrics.input",
            f"interval coverage: expected finite intervals ({len(truth)}, 2), got shape {bounds.shape}",
        )
    return float(((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean())


def _vector(name: str, values: npt.ArrayLike) -> FloatVector:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0 or not np.isfinite(vector).all():
        raise AffectError(
            "metrics.input",
            f"metrics: expected {name} (N,) with N >= 1, all finite; got shape {vector.shape}",
        )
    return vector


def _same_length(truth: npt.NDArray[np.generic], prediction: npt.NDArray[np.generic]) -> None:
    if len(truth) != len(prediction):
        raise AffectError(
            "metrics.input",
            f"metrics: expected as many predictions as truths, got {len(prediction)} and {len(truth)}",
        )
