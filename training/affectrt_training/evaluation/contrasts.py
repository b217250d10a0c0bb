"""Rows against each other, and each against itself with less to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from affectrt.affect import MODALITIES
from affectrt_training.evaluation.measures import Measure
from affectrt_training.evaluation.plan import Part, without
from affectrt_training.evaluation.robustness import NOISE, RATES, SUBSETS, area
from affectrt_training.evaluation.significance import (
    Difference,
    corrected_t,
    holm,
    paired_bootstrap,
    paired_t,
)
from affectrt_training.evaluation.summary import Answers, Score, Truth, score_of

LEVEL = 0.05
"""Below it, a p after Holm's correction counts as a difference."""


@dataclass(frozen=True)
class Contrast:
    """One row minus another in one measure."""

    label: str
    reference: str
    measure: str
    examples: Difference | None
    """Paired bootstrap over examples, each row the mean of its seeds."""
    examples_holm: float | None
    """Its p after Holm's correction over all rows of the same table."""
    trainings: Difference | None
    """t-test over trainings: corrected resampled over folds × seeds, or paired over seeds without folds."""
    trainings_holm: float | None


def contrasts(
    labels: Sequence[str],
    reference: str,
    measure: Measure,
    answers: Mapping[str, Answers],
    truth: Truth,
    parts: Sequence[Part],
) -> list[Contrast]:
    """Each of ``labels`` against ``reference``, other than itself."""
    y = truth.of(measure.kind)
    others = [label for label in labels if label != reference]
    second = answers[reference].of(measure, truth)
    examples = [paired_bootstrap(measure, y, answers[label].of(measure, truth), second) for label in others]
    trainings = [
        _over_trainings(measure, answers[label], answers[reference], truth, parts) for label in others
    ]
    adjusted = zip(_holm(examples), _holm(trainings), strict=True)
    return [
        Contrast(label, reference, measure.name, by_examples, p_examples, by_trainings, p_trainings)
        for label, by_examples, by_trainings, (p_examples, p_trainings) in zip(
            others, examples, trainings, adjusted, strict=True
        )
    ]


def _holm(found: Sequence[Difference | None]) -> list[float | None]:
    adjusted = iter(holm([d.p for d in found if d is not None]))
    return [None if d is None else next(adjusted) for d in found]


def _over_trainings(
    measure: Measure, first: Answers, second: Answers, truth: Truth, parts: Sequence[Part]
) -> Difference | None:
    """The row without seeds of its own, the baseline, is paired with every seed of the other."""
    known = truth.known(measure.kind)
    y = truth.sentiment if measure.kind == "sentiment" else truth.emotion
    ends = np.cumsum([len(part.held) for part in parts])
    differences = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        rows = known.copy()
        rows[:start] = rows[end:] = False
        if not rows.any():
            return None
        inside = rows[known]
        a, b = (measure.score(y[rows], x.of(measure, truth)[:, inside]) for x in (first, second))
        differences.append(np.atleast_1d(a - b))
    if len(parts) == 1:
        return paired_t(differences[0])
    share = float(np.mean([len(part.held) / len(part.train) for part in parts]))
    return corrected_t(np.concatenate(differences), test_share=share)


@dataclass(frozen=True)
class Curve:
    """A measure over missing rates or over noise in one modality."""

    label: str
    kind: str
    """``missing`` or ``noise``."""
    modality: str
    measure: str
    at: Sequence[float]
    """Rates, or noise in standard deviations."""
    scores: Sequence[Score]
    area: Score
    """Mean height of the curve, of each seed."""


@dataclass(frozen=True)
class Subset:
    """A measure with some modalities alone, taken from a model that was trained with all."""

    label: str
    present: str
    """A presence key."""
    measure: str
    score: Score


@dataclass(frozen=True)
class Retrained:
    """A modality missing everywhere, against a model trained without it."""

    label: str
    modality: str
    measure: str
    missing: Score
    """Trained with it, judged at rate 1.0."""
    without: Score
    """Trained and judged without it."""
    difference: Difference | None
    """The first minus the second, over examples."""
    p_holm: float | None
    """Its p, adjusted over all such comparisons."""


def _seeds(measure: Measure, answers: Answers, truth: Truth, condition: str = "") -> list[float]:
    return [float(v) for v in measure.score(truth.of(measure.kind), answers.of(measure, truth, condition))]


def curves(label: str, measure: Measure, answers: Answers, truth: Truth) -> list[Curve]:
    """Missing-rate and noise curves of a stressed row, for each modality that it was stressed in."""
    found = []
    for kind, at in (("missing", RATES), ("noise", NOISE)):
        for modality in MODALITIES:
            names = ["", *(f"{kind}/{modality}/{x}" for x in at[1:])]
            if names[-1] not in answers.worse:
                continue
            values = np.array([_seeds(measure, answers, truth, name) for name in names])
            found.append(
                Curve(
                    label,
                    kind,
                    modality,
                    measure.name,
                    at,
                    [score_of(point) for point in values],
                    score_of(area(at, seed) for seed in values.T),
                )
            )
    return found


def subsets(label: str, measure: Measure, answers: Answers, truth: Truth) -> list[Subset]:
    """All ways to have modalities, the fullest (all that the data have) first."""
    there = [m for m in MODALITIES if f"missing/{m}/1.0" in answers.worse]
    named = [(key, f"only/{key}") for key in SUBSETS if f"only/{key}" in answers.worse]
    return [
        Subset(label, key, measure.name, score_of(_seeds(measure, answers, truth, name)))
        for key, name in (("+".join(there), ""), *named)
    ]


def retrained(
    labels: Sequence[str], measure: Measure, answers: Mapping[str, Answers], truth: Truth
) -> list[Retrained]:
    """Stressed rows against those trained without a modality, as far as they are there."""
    found = []
    for label, modality in product(labels, MODALITIES):
        condition, other = f"missing/{modality}/1.0", without(label, modality)
        if condition not in answers[label].worse or other not in answers:
            continue
        pair = answers[label].of(measure, truth, condition), answers[other].of(measure, truth)
        found.append(
            Retrained(
                label,
                modality,
                measure.name,
                score_of(_seeds(measure, answers[label], truth, condition)),
                score_of(_seeds(measure, answers[other], truth)),
                paired_bootstrap(measure, truth.of(measure.kind), *pair),
                None,
            )
        )
    adjusted = _holm([one.difference for one in found])
    return [replace(one, p_holm=p) for one, p in zip(found, adjusted, strict=True)]
