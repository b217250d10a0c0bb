"""The metrics against cases worked out by hand, against scikit-learn and against their own invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from affectrt.affect import EMOTIONS
from affectrt.errors import AffectError
from affectrt_training.metrics import (
    confusion_matrix,
    emotion_metrics,
    expected_calibration_error,
    pearson_r,
    sentiment_metrics,
    weighted_f1,
)

ANGER, JOY, NEUTRAL, SADNESS = (EMOTIONS.index(name) for name in ("anger", "joy", "neutral", "sadness"))
SENTIMENTS = st.floats(-3, 3, allow_nan=False)
PAIRS = st.lists(st.tuples(SENTIMENTS, SENTIMENTS), min_size=1, max_size=40)
LABELS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)


def _one_hot(classes: list[int], confidence: float = 1.0) -> np.ndarray:
    rest = (1 - confidence) / (len(EMOTIONS) - 1)
    return np.where(np.eye(len(EMOTIONS), dtype=bool)[classes], confidence, rest)


def test_sentiment_by_hand() -> None:
    #        y:  -2.6   0    1.5   0.4   2.5
    #        p:  -1.0  -0.2  2.5   0.6  -0.5
    m = sentiment_metrics([-2.6, 0.0, 1.5, 0.4, 2.5], [-1.0, -0.2, 2.5, 0.6, -0.5])
    assert m.mae == pytest.approx((1.6 + 0.2 + 1.0 + 0.2 + 3.0) / 5)
    # Has0: y>=0 is F T T T T, p>=0 is F F T T F.
    assert m.acc2_has0 == pytest.approx(3 / 5)
    # positive: tp 2, support 4, predicted 2 -> 4/6; negative: tp 1, support 1, predicted 3 -> 2/4
    assert m.f1_has0 == pytest.approx((4 * 4 / 6 + 1 * 2 / 4) / 5)
    # Non0 drops the second row: y>0 is F T T T, p>0 is F T T F.
    assert m.acc2_non0 == pytest.approx(3 / 4)
    # positive: tp 2, support 3, predicted 2 -> 4/5; negative: tp 1, support 1, predicted 2 -> 2/3
    assert m.f1_non0 == pytest.approx((3 * 4 / 5 + 1 * 2 / 3) / 4)
    # acc7 rounds to -3 0 2 0 2 and -1 0 2 1 0 (half to even: 1.5 -> 2, 2.5 -> 2, -0.5 -> 0).
    assert m.acc7 == pytest.approx(2 / 5)
    # acc5 rounds to -2 0 2 0 2 and -1 0 2 1 0.
    assert m.acc5 == pytest.approx(2 / 5)
    assert m.interval_coverage is None


def test_half_is_rounded_to_even_on_both_sides() -> None:
    m = sentiment_metrics([0.5, 1.5, 2.5, -2.5], [0.0, 2.0, 2.0, -2.0])
    assert m.acc7 == 1.0


def test_clipping_comes_before_rounding() -> None:
    assert sentiment_metrics([3.0], [9.0]).acc7 == 1.0
    m = sentiment_metrics([3.0, -3.0], [2.0, -2.0])
    assert (m.acc5, m.acc7) == (1.0, 0.0)


def test_zero_truth_counts_as_positive_only_in_has0() -> None:
    m = sentiment_metrics([0.0, 1.0], [0.0, 0.0])
    assert (m.acc2_has0, m.acc2_non0) == (1.0, 0.0)


def test_the_order_of_arguments_matters_for_weighted_f1() -> None:
    truth, prediction = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])
    assert weighted_f1(truth, prediction, 2) == pytest.approx((3 * 0.5 + 1 * 0.5) / 4)
    truth, prediction = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])
    assert weighted_f1(truth, prediction, 2) == pytest.approx(3 * (6 / 7) / 4)
    assert weighted_f1(prediction, truth, 2) == pytest.approx(6 / 7)


def test_undefined_sentiment_metrics_are_none() -> None:
    m = sentiment_metrics([0.0, 0.0], [0.1, 0.1])
    assert (m.r, m.acc2_non0, m.f1_non0) == (None, None, None)
    assert sentiment_metrics([1.0], [1.0]).r is None
    # 0.1 three times has a mean that is not exactly 0.1.
    assert pearson_r(np.full(3, 0.1), np.array([1.0, 2.0, 3.0])) is None


def test_interval_coverage_includes_the_bounds() -> None:
    intervals = [(-1.0, 1.0), (0.0, 1.0), (1.0, 2.0), (-3.0, -1.0)]
    m = sentiment_metrics([0.0, 0.0, 2.0, -0.9], [0.0, 0.0, 0.0, 0.0], intervals)
    assert m.interval_coverage == pytest.approx(3 / 4)


def test_emotions_by_hand() -> None:
    truth = [JOY, JOY, JOY, SADNESS, NEUTRAL]
    guess = [JOY, JOY, ANGER, NEUTRAL, NEUTRAL]
    m = emotion_metrics(truth, _one_hot(guess))
    assert m.accuracy == pytest.approx(3 / 5)
    assert m.recall == {
        "anger": None,
        "disgust": None,
        "fear": None,
        "joy": pytest.approx(2 / 3),
        "neutral": 1.0,
        "sadness": 0.0,
        "surprise": None,
    }
    assert m.uar == pytest.approx((2 / 3 + 0 + 1) / 3)
    # joy 4/5 x3, sadness 0 x1, neutral 2/3 x1
    assert m.weighted_f1 == pytest.approx((3 * 4 / 5 + 0 + 2 / 3) / 5)
    assert m.ece == pytest.approx(2 / 5)


def test_ece_by_hand() -> None:
    # 0.6 is the closed right end of bin 9 of 15; 0.61 opens the next.
    correct = np.array([True, False, True, True])
    assert expected_calibration_error(correct, [0.6, 0.6, 0.61, 0.99]) == pytest.approx(
        (2 * abs(0.5 - 0.6) + 0.39 + 0.01) / 4
    )
    assert expected_calibration_error(np.array([True, False]), [1.0, 0.0]) == 0.0


def test_confusion_rows_are_truth() -> None:
    assert confusion_matrix(np.array([0, 0, 1]), np.array([1, 1, 1]), 2).tolist() == [[0, 2], [0, 1]]


@given(PAIRS)
def test_sentiment_agrees_with_scikit_learn(pairs: list[tuple[float, float]]) -> None:
    y, p = np.array(pairs).T
    m = sentiment_metrics(y, p)
    assert m.mae == pytest.approx(sk.mean_absolute_error(y, p))
    assert m.acc2_has0 == pytest.approx(sk.accuracy_score(y >= 0, p >= 0))
    assert m.f1_has0 == pytest.approx(sk.f1_score(y >= 0, p >= 0, average="weighted", zero_division=0))
    for limit, value in ((2, m.acc5), (3, m.acc7)):
        rounded = [np.round(np.clip(v, -limit, limit)) for v in (y, p)]
        assert value == pytest.approx(sk.accuracy_score(*rounded))
    kept = y != 0
    if kept.any():
        assert m.acc2_non0 == pytest.approx(sk.accuracy_score(y[kept] > 0, p[kept] > 0))
        assert m.f1_non0 == pytest.approx(
            sk.f1_score(y[kept] > 0, p[kept] > 0, average="weighted", zero_division=0)
        )


@given(LABELS)
def test_emotions_agree_with_scikit_learn(labels: list[tuple[int, int]]) -> None:
    truth, guess = (list(side) for side in zip(*labels, strict=True))
    m = emotion_metrics(truth, _one_hot(guess, 0.8))
    assert m.accuracy == pytest.approx(sk.accuracy_score(truth, guess))
    assert m.weighted_f1 == pytest.approx(sk.f1_score(truth, guess, average="weighted", zero_division=0))
    seen = sorted(set(truth))
    assert m.uar == pytest.approx(
        sk.recall_score(truth, guess, labels=seen, average="macro", zero_division=0)
    )
    assert m.ece == pytest.approx(abs(m.accuracy - 0.8))


@given(PAIRS, st.floats(0.1, 10), st.floats(-5, 5))
def test_r_survives_a_positive_affine_map(
    pairs: list[tuple[float, float]], scale: float, shift: float
) -> None:
    y, p = np.round(np.array(pairs).T, 3)
    r = pearson_r(y, p)
    if r is None:
        return
    assert -1 <= r <= 1
    assert r == pytest.approx(np.corrcoef(y, p)[0, 1], abs=1e-9)
    assert pearson_r(y, p * scale + shift) == pytest.approx(r, abs=1e-6)
    assert pearson_r(y, -p) == pytest.approx(-r, abs=1e-12)


@given(PAIRS)
def test_perfect_predictions_score_perfectly(pairs: list[tuple[float, float]]) -> None:
    y = np.array(pairs)[:, 0]
    m = sentiment_metrics(y, y, np.stack([y, y], axis=1))
    assert (m.mae, m.acc2_has0, m.f1_has0, m.acc5, m.acc7, m.interval_coverage) == (0, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([], [], r"N >= 1"),
        ([1.0], [1.0, 2.0], "got 2 and 1"),
        ([float("nan")], [1.0], "all finite"),
        ([[1.0]], [1.0], r"got shape \(1, 1\)"),
    ],
)
def test_wrong_sentiment_input_is_refused(truth: list[float], prediction: list[float], message: str) -> None:
    with pytest.raises(AffectError, match=message) as caught:
        sentiment_metrics(truth, prediction)
    assert caught.value.code == "metrics.input"


@pytest.mark.parametrize(
    ("truth", "probabilities", "message"),
    [
        ([7], _one_hot([0]), "class indices 0 to 6"),
        ([0.5], _one_hot([0]), "class indices"),
        ([0], np.ones((1, 3)), r"expected finite probabilities \(N, 7\)"),
        ([0, 1], _one_hot([0]), "got 1 and 2"),
    ],
)
def test_wrong_emotion_input_is_refused(truth: list[float], probabilities: np.ndarray, message: str) -> None:
    with pytest.raises(AffectError, match=message):
        emotion_metrics(truth, probabilities)
