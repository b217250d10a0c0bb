"""Significance, robustness and confidence: against SciPy, by hand, and against their own promises."""

from __future__ import annotations

from itertools import chain, combinations, pairwise

import numpy as np
import pytest
from scipy import stats

from affectrt.affect import EMOTIONS
from affectrt.errors import AffectError
from affectrt_training.data.dataset import Example
from affectrt_training.evaluation.measures import EMOTION, MEASURES, SENTIMENT
from affectrt_training.evaluation.reliability import half_width, intervals, soften, temperature
from affectrt_training.evaluation.robustness import (
    RATES,
    SUBSETS,
    add_noise,
    area,
    conditions,
    keep,
    lose,
    spread,
)
from affectrt_training.evaluation.significance import corrected_t, holm, paired_bootstrap, paired_t
from affectrt_training.metrics import emotion_metrics, sentiment_metrics

RNG = np.random.default_rng


def _examples(count: int = 40) -> list[Example]:
    """Text is absent from every fifth; vision from all."""
    rng = RNG(3)
    return [
        Example(
            id=str(k),
            rows={
                **({"text": rng.normal(size=(3, 4)).astype(np.float32)} if k % 5 else {}),
                "audio": (rng.normal(size=(5, 2)) * (1, 100)).astype(np.float32),
            },
            words=("fine",),
            sentiment=0.0,
        )
        for k in range(count)
    ]


# --- Measures ------------------------------------------------------------------------------------


def test_batched_measures_are_the_metrics_row_by_row() -> None:
    rng = RNG(0)
    truth = np.round(rng.uniform(-3, 3, (6, 30)), 0)
    guess = rng.uniform(-3, 3, (6, 30))
    truth[0] = 0  # no Non0 rows
    guess[1] = 0.5  # no correlation
    for measure in SENTIMENT:
        found = measure.score(truth, guess)
        for y, p, value in zip(truth, guess, found, strict=True):
            expected = getattr(sentiment_metrics(y, p), measure.name)
            assert value == pytest.approx(np.nan if expected is None else expected, nan_ok=True)
    classes, guessed = rng.integers(0, 5, (6, 30)), rng.integers(0, 7, (6, 30))
    for measure in EMOTION:
        found = measure.score(classes, guessed)
        for y, p, value in zip(classes, guessed, found, strict=True):
            assert value == pytest.approx(getattr(emotion_metrics(y, np.eye(len(EMOTIONS))[p]), measure.name))


def test_measures_broadcast_one_truth_over_trainings() -> None:
    rng = RNG(1)
    truth, guess = rng.uniform(-3, 3, 20), rng.uniform(-3, 3, (3, 20))
    for measure in SENTIMENT:
        assert measure.score(truth, guess) == pytest.approx([float(measure.score(truth, g)) for g in guess])


# --- Significance --------------------------------------------------------------------------------


def test_bootstrap_interval_is_scipys() -> None:
    rng = RNG(2)
    y = rng.normal(size=80)
    a, b = y + rng.normal(0, 0.5, 80), y + rng.normal(0, 0.7, 80)
    ours = paired_bootstrap(MEASURES["mae"], y, a, b, resamples=6000)
    theirs = stats.bootstrap(
        (np.abs(y - a) - np.abs(y - b),),
        np.mean,
        n_resamples=6000,
        method="percentile",
        rng=RNG(5),
    ).confidence_interval
    assert ours is not None
    assert ours.value == pytest.approx(np.mean(np.abs(y - a) - np.abs(y - b)))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)
    # A mean over 80 rows is near enough normal for the t-test to agree on p.
    assert ours.p == pytest.approx(stats.ttest_rel(np.abs(y - a), np.abs(y - b)).pvalue, abs=0.015)


def test_bootstrap_is_seeded_blockwise_and_antisymmetric(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = RNG(4)
    y, a, b = rng.normal(size=30), rng.normal(size=(3, 30)), rng.normal(size=(3, 30))
    r = MEASURES["r"]
    one = paired_bootstrap(r, y, a, b, resamples=500)
    assert one == paired_bootstrap(r, y, a, b, resamples=500)
    assert one != paired_bootstrap(r, y, a, b, resamples=500, seed=1)
    back = paired_bootstrap(r, y, b, a, resamples=500)
    assert one is not None and back is not None
    assert (back.low, back.high, back.p) == pytest.approx((-one.high, -one.low, one.p))
    monkeypatch.setattr("affectrt_training.evaluation.significance._AT_ONCE", 3 * 30 * 7)
    blocks = paired_bootstrap(r, y, a, b, resamples=500)
    assert blocks is not None and blocks.value == one.value and blocks.low == pytest.approx(one.low, abs=0.1)


def test_bootstrap_at_its_ends() -> None:
    y = RNG(6).normal(size=50)
    same = paired_bootstrap(MEASURES["mae"], y, y, y, resamples=99)
    assert same is not None and (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    worse = paired_bootstrap(MEASURES["mae"], y, y + 1, y, resamples=99)
    assert worse is not None and worse.value == pytest.approx(1) and worse.p == pytest.approx(2 / 100)
    assert paired_bootstrap(MEASURES["r"], y, np.zeros(50), y) is None
    with pytest.raises(AffectError, match=r"got \(50,\), \(1, 49\) and \(1, 50\)"):
        paired_bootstrap(MEASURES["mae"], y, y[1:], y)


def test_paired_t_is_scipys() -> None:
    rng = RNG(7)
    a, b = rng.normal(0.3, 1, 9), rng.normal(0, 1, 9)
    ours, theirs = paired_t(a - b), stats.ttest_rel(a, b)
    assert ours is not None
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert paired_t([1.0]) is None
    certain = paired_t([0.5, 0.5, 0.5])
    assert certain is not None and certain.p == 0


def test_corrected_t_widens_by_the_share_of_test_rows() -> None:
    d = RNG(8).normal(0.2, 1, 25)
    plain, corrected = paired_t(d), corrected_t(d, test_share=0.25)
    assert plain is not None and corrected is not None
    # t = mean / sqrt(s² (1/25 + 1/4)), with 24 degrees of freedom.
    t = d.mean() / np.sqrt(d.var(ddof=1) * (1 / 25 + 1 / 4))
    assert corrected.p == pytest.approx(2 * stats.t.sf(abs(t), 24))
    widths = [x.high - x.low for x in (corrected, plain)]
    assert widths[0] / widths[1] == pytest.approx(np.sqrt((1 / 25 + 1 / 4) * 25))


def test_holm_is_the_closed_bonferroni_test() -> None:
    """Each hypothesis' adjusted p is the largest Bonferroni p of all sets of hypotheses that hold it."""
    p = [0.01, 0.04, 0.03, 0.005, 0.6]
    sets = list(chain.from_iterable(combinations(range(5), size) for size in range(1, 6)))
    expected = [max(min(1.0, len(s) * min(p[i] for i in s)) for s in sets if k in s) for k in range(5)]
    assert holm(p) == pytest.approx(expected)
    assert holm([]) == []


# --- Robustness ----------------------------------------------------------------------------------


def test_losing_is_nested_and_as_often_as_asked() -> None:
    examples = _examples(400)

    def losers(rate: float, seed: int = 0) -> set[str]:
        return {e.id for e in lose(examples, "audio", rate, seed) if "audio" not in e.rows}

    lost = [losers(rate) for rate in RATES]
    assert [len(some) / 400 for some in lost] == pytest.approx(RATES, abs=0.06)
    assert all(few <= more for few, more in pairwise(lost))
    assert lost[0] == set() and len(lost[-1]) == 400
    assert losers(0.5) == lost[5] != losers(0.5, seed=1)


def test_losing_everything_is_the_set_without_the_modality() -> None:
    examples = _examples()
    without = keep(examples, ["audio", "vision"])
    assert [e.rows.keys() for e in without] == [{"audio"}] * 40
    assert all(not e.words for e in without) and examples[1].words == ("fine",)
    for one, other in zip(lose(examples, "text", 1.0), without, strict=True):
        assert (one.words, one.rows.keys()) == (other.words, other.rows.keys())
        assert one.rows["audio"] is other.rows["audio"]


def test_noise_is_in_units_of_each_feature() -> None:
    examples = _examples(300)
    spreads = spread(examples)
    assert spreads.keys() == {"text", "audio"} and spreads["audio"] == pytest.approx([1, 100], rel=0.1)
    once, twice = (add_noise(examples, "audio", scale, spreads) for scale in (1.0, 2.0))
    added = [np.concatenate([n.rows["audio"] - e.rows["audio"] for n, e in zip(noisy, examples, strict=True)])
             for noisy in (once, twice)]  # fmt: skip
    assert added[0].std(0) == pytest.approx(spreads["audio"], rel=0.1)
    assert added[1] == pytest.approx(2 * added[0], rel=1e-3, abs=1e-3)
    assert once[1].rows["text"] is examples[1].rows["text"]
    assert once[1].rows["audio"].dtype == np.float32


def test_conditions_name_what_occurs() -> None:
    examples = _examples(10)
    found = conditions(examples, spread(examples))
    assert [n for n in found if n.startswith("only/")] == ["only/text", "only/audio"]
    assert sum(n.startswith("missing/") for n in found) == 20
    assert [n for n in found if n.startswith("noise/")] == [
        f"noise/{m}/{scale}" for m in ("text", "audio") for scale in (0.5, 1.0, 2.0)
    ]
    assert len(SUBSETS) == 7
    for name, text_only in (("missing/audio/1.0", True), ("missing/text/1.0", False)):
        assert all("audio" not in e.rows if text_only else "text" not in e.rows for e in found[name])


def test_area_is_the_mean_height() -> None:
    assert area([0.0, 0.5, 1.0], [1.0, 1.0, 3.0]) == pytest.approx((1 + 2) / 2)
    assert area(RATES, [0.4] * 11) == pytest.approx(0.4)


# --- Confidence ----------------------------------------------------------------------------------


def test_half_width_by_hand_and_its_promise() -> None:
    # ceil(10 · 0.9) = 9th of 9 residuals; ceil(11 · 0.5) = 6th of 10.
    assert half_width(np.arange(1.0, 10.0), np.zeros(9)) == 9
    assert half_width(np.arange(1.0, 11.0), np.zeros(10), coverage=0.5) == 6
    rng = RNG(9)
    held = [
        abs(rng.normal()) <= half_width(rng.normal(size=19), np.zeros(19)) for _ in range(2000)
    ]  # (n + 1) · 0.9 = 18 exactly, so the coverage is exactly 18/20
    assert np.mean(held) == pytest.approx(0.9, abs=0.02)
    assert intervals([2.5, 0.0], 1.0).tolist() == [[1.5, 3.0], [-1.0, 1.0]]


def test_temperature_undoes_overconfidence() -> None:
    rng = RNG(10)
    logits = rng.normal(size=(1500, 7))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(1)  # drawn with those probabilities
    sharp = np.exp(3 * logits) / np.exp(3 * logits).sum(1, keepdims=True)
    found = temperature(sharp, truth)
    assert found == pytest.approx(3, rel=0.15)
    assert soften(sharp, 3.0) == pytest.approx(honest, abs=1e-9)
