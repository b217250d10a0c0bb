"""Is a difference between two systems more than luck?

Two kinds of luck: which examples were held out (:func:`paired_bootstrap`), and which seeds and folds a system
was trained with (:func:`paired_t`, :func:`corrected_t`). Where many systems are compared with one,
:func:`holm` keeps the chance of any false claim at the level of one test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from affectrt.errors import AffectError
from affectrt_training.evaluation.measures import Measure

RESAMPLES = 2000
"""Bootstrap resamples: a p of 0.05 is then known to ± 0.005."""

_AT_ONCE = 4_000_000
"""Numbers of one array held at a time: 32 MB."""


@dataclass(frozen=True)
class Difference:
    """The first system's score minus the second's."""

    value: float
    """On the data as they are, or the mean over trainings."""
    low: float
    """Lower end of the 95 % confidence interval."""
    high: float
    """Upper end."""
    p: float
    """Two-sided, of no difference."""

    def to_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


def paired_bootstrap(
    measure: Measure,
    truth: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Difference | None:
    """Resample examples, the same for both systems (Efron & Tibshirani 1993, chapters 13 and 16).

    ``truth`` is (N,); ``first`` and ``second`` are the systems' predictions (S, N) of S trainings each, or
    (N,) for one: a system's score is its mean over trainings. The interval is the percentile one; p is twice
    the smaller share of resamples on either side of zero, counted with one more, so that it is never 0.
    Resamples that leave the measure undefined are left out; None when the data themselves do. Raises
    ``significance.input`` on unequal lengths.
    """
    y, a, b = np.asarray(truth), np.atleast_2d(np.asarray(first)), np.atleast_2d(np.asarray(second))
    if y.ndim != 1 or not len(y) or a.shape[1:] != y.shape or b.shape[1:] != y.shape:
        raise AffectError(
            "significance.input",
            f"paired bootstrap: expected truth (N,) and predictions (S, N) of the same N ≥ 1 examples, got "
            f"{y.shape}, {a.shape} and {b.shape}",
        )
    value = float(measure.score(y, a).mean() - measure.score(y, b).mean())
    if math.isnan(value):
        return None
    generator = np.random.default_rng(seed)
    per_block = max(1, _AT_ONCE // (max(len(a), len(b)) * len(y)))
    blocks = []
    for start in range(0, resamples, per_block):
        rows = generator.integers(len(y), size=(min(per_block, resamples - start), len(y)))
        truths = y[rows]
        blocks.append(measure.score(truths, a[:, rows]).mean(0) - measure.score(truths, b[:, rows]).mean(0))
    found = np.concatenate(blocks)
    found = found[~np.isnan(found)]
    if not len(found):
        return None
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    tail = min(int((found <= 0).sum()), int((found >= 0).sum()))
    return Difference(value, float(low), float(high), min(1.0, 2 * (tail + 1) / (len(found) + 1)))


def paired_t(differences: npt.ArrayLike, *, level: float = 0.95) -> Difference | None:
    """Student's paired t-test over trainings: (n,) differences, one a seed. None for fewer than two.

    Only of training's luck: seeds share their test examples, so this says nothing of other examples.
    """
    return _t_test(differences, None, level)


def corrected_t(differences: npt.ArrayLike, *, test_share: float, level: float = 0.95) -> Difference | None:
    """The corrected resampled t-test of Nadeau & Bengio (Machine Learning 52, 2003), for k folds × seeds.

    ``differences`` (n,) has one entry a fold and seed. Trainings of different folds share most of their
    training rows, so their variance understates; it is multiplied by 1/n + n_test/n_train instead of
    1/n (for repeated folds: Bouckaert & Frank, PAKDD 2004). ``test_share`` is n_test/n_train. None for fewer
    than two differences.
    """
    return _t_test(differences, test_share, level)


def _t_test(differences: npt.ArrayLike, test_share: float | None, level: float) -> Difference | None:
    d = np.asarray(differences, np.float64)
    if len(d) < 2 or np.isnan(d).any():
        return None
    mean = float(d.mean())
    if np.ptp(d) == 0:
        # No spread at all: certain, one way or the other.
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    error = math.sqrt(float(d.var(ddof=1)) * (1 / len(d) + (test_share or 0.0)))
    half = float(student.ppf((1 + level) / 2, len(d) - 1)) * error
    p = 2 * float(student.sf(abs(mean) / error, len(d) - 1))
    return Difference(mean, mean - half, mean + half, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979), in the order given.

    Claim whatever comes out below 0.05: the chance that any of the claims is false stays below 0.05.
    """
    adjusted = [0.0] * len(p_values)
    reached = 0.0
    for rank, k in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = reached
    return adjusted
