"""Confidence measured as the product gives it: conformal intervals and temperatures from validation data."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from affectrt.affect import SENTIMENT_LIMIT

COVERAGE = 0.9
"""Share of truths that an interval is made to hold."""


def half_width(truth: npt.ArrayLike, prediction: npt.ArrayLike, coverage: float = COVERAGE) -> float:
    """Split-conformal half width: the ceil((n + 1) coverage)-th smallest residual (arXiv:2107.07511 §1).

    Truth and prediction are (n,) sentiments of data that the model was not fitted to. With fewer than
    coverage / (1 - coverage) of them it is the largest residual, and the promise is not quite kept.
    """
    residuals = np.sort(np.abs(np.asarray(truth, np.float64) - np.asarray(prediction, np.float64)))
    rank = min(math.ceil((len(residuals) + 1) * coverage), len(residuals))
    return float(residuals[rank - 1])


def intervals(prediction: npt.ArrayLike, half: float) -> npt.NDArray[np.float64]:
    """Bounds (N, 2) around sentiments (N,), clipped to the scale as the SDK does."""
    middle = np.asarray(prediction, np.float64)
    return np.clip(np.stack([middle - half, middle + half], 1), -SENTIMENT_LIMIT, SENTIMENT_LIMIT)


def temperature(probabilities: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """The temperature in [0.25, 8] of least negative log-likelihood (arXiv:1706.04599 §4.2).

    Probabilities (n, K), truth (n,) class indices. Log-probabilities serve as logits: softmax forgets the
    constant between them.
    """
    logits = _log(probabilities)
    grid = np.exp(np.linspace(math.log(0.25), math.log(8.0), 400))
    scaled = logits[None] / grid[:, None, None]
    own = np.take_along_axis(scaled, np.asarray(truth, np.int64)[None, :, None], -1)[..., 0]
    losses = (np.logaddexp.reduce(scaled, -1) - own).mean(-1)
    return float(grid[losses.argmin()])


def soften(probabilities: npt.ArrayLike, by: float) -> npt.NDArray[np.float64]:
    """Probabilities (N, K) at a temperature."""
    scaled = np.exp(_log(probabilities) / by)
    return np.asarray(scaled / scaled.sum(-1, keepdims=True))


def _log(probabilities: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-12))
