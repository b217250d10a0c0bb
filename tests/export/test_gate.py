"""The int8 gate: at most 1 %, measured as the device runs, and only for the encoder it was measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import affectrt
from affectrt.errors import AffectError
from affectrt_export import gate
from affectrt_export.gate import Int8Gate

GATE = Int8Gate(
    0.75,
    0.752,
    tuple(0.01 * k for k in range(len(gate.probe_sentences()))),
    0.8,
    0.795,
    ((0.0, 1.5), (-2.0, 3.0)),
)


def _refused(match: str, run: Callable[[], object]) -> None:
    with pytest.raises(AffectError, match=match) as caught:
        run()
    assert caught.value.code == "export.int8_gate"


def test_probe_sentences_are_forty_different_ones_of_many_lengths() -> None:
    sentences = gate.probe_sentences()
    assert len(sentences) == len(set(sentences)) == 40
    words = [len(sentence.split()) for sentence in sentences]
    assert min(words) == 1
    assert max(words) > 25


@pytest.mark.parametrize(
    ("int8", "passes"), [(0.70, True), (0.7574, True), (0.7576, False), (float("nan"), False)]
)
def test_int8_may_cost_one_percent(int8: float, passes: bool) -> None:
    tried = replace(GATE, mosi_valid_mae_int8=int8)
    if passes:
        gate.check_cost(tried)
    else:
        _refused(
            r"MAE on CMU-MOSI valid is .*, with fp32 0\.7500; at most 1% more", lambda: gate.check_cost(tried)
        )


@pytest.mark.parametrize(
    ("int8", "passes"), [(0.9, True), (0.7921, True), (0.7919, False), (float("nan"), False)]
)
def test_int8_faces_may_cost_one_percent(int8: float, passes: bool) -> None:
    tried = replace(GATE, ferplus_valid_accuracy_int8=int8)
    if passes:
        gate.check_cost(tried)
    else:
        _refused(r"accuracy on FER\+ valid is .*, with fp32 0\.8000", lambda: gate.check_cost(tried))


def test_a_record_survives_its_way_through_json() -> None:
    assert Int8Gate.recorded({gate.META_KEY: GATE.to_dict()}) == GATE


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {gate.META_KEY: None},
        {gate.META_KEY: {"mosi_valid_mae_fp32": 0.75}},
        {gate.META_KEY: {**GATE.to_dict(), "mosi_valid_mae_int8": "little"}},
        {gate.META_KEY: {**GATE.to_dict(), "probe_sentiment": 3}},
        {gate.META_KEY: {**GATE.to_dict(), "face_ranges": [1.0, 2.0]}},
    ],
)
def test_a_missing_or_broken_record_asks_for_data(meta: dict[str, Any]) -> None:
    _refused("pass --data", lambda: Int8Gate.recorded(meta))


def test_the_same_answers_pass_within_rounding() -> None:
    assert gate.check_probe(GATE, GATE.probe_sentiment) == 0.0
    shaken = [value + 0.01 for value in GATE.probe_sentiment]
    assert gate.check_probe(GATE, shaken) == pytest.approx(0.01)


@pytest.mark.parametrize("change", [0.03, float("nan")])
def test_another_encoder_is_refused_with_the_sentence_that_tells(change: float) -> None:
    answers = list(GATE.probe_sentiment)
    answers[4] += change
    _refused("I can't believe you would say that", lambda: gate.check_probe(GATE, answers))


def test_a_record_for_other_sentences_is_refused() -> None:
    short = replace(GATE, probe_sentiment=GATE.probe_sentiment[:-1])
    _refused("expected 40 recorded answers", lambda: gate.check_probe(short, GATE.probe_sentiment))


def test_measuring_is_the_mean_absolute_error_of_what_the_device_says(
    tiny_bundle: Path, make_mosi: Callable[[Callable[[str], float]], Path]
) -> None:
    model = affectrt.load(tiny_bundle)
    data = make_mosi(lambda _: 1.0)
    measured = gate.measure(model, model, data, ((0.0, 1.0),))
    said = [model.predict(text=sentence).sentiment for sentence in gate.probe_sentences()]
    expected = sum(abs(value - 1.0) for value in said) / len(said)
    assert measured.mosi_valid_mae_fp32 == measured.mosi_valid_mae_int8 == pytest.approx(expected, abs=1e-5)
    assert measured.probe_sentiment == pytest.approx(said, abs=1e-4)
    assert 0.0 <= measured.ferplus_valid_accuracy_fp32 == measured.ferplus_valid_accuracy_int8 <= 1.0
    assert measured.face_ranges == ((0.0, 1.0),)


def test_measuring_without_the_data_set_says_what_is_missing(tiny_bundle: Path, tmp_path: Path) -> None:
    model = affectrt.load(tiny_bundle)
    with pytest.raises(AffectError, match="mosi_train_valid") as caught:
        gate.measure(model, model, tmp_path, ())
    assert caught.value.code == "data.not_found"
