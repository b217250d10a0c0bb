"""Temperature and conformal intervals, per presence key."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affectrt.affect import MODALITIES, Modality
from affectrt.calibration import PRESENCE_KEYS, Calibration, presence_key
from affectrt.errors import AffectError

PLAIN = Calibration(0.9, dict.fromkeys(PRESENCE_KEYS, 1.0), dict.fromkeys(PRESENCE_KEYS, 1.0))

presences = st.sets(st.sampled_from(MODALITIES))
logits = st.lists(st.floats(-1e4, 1e4, width=32), min_size=7, max_size=7).map(
    lambda values: np.array(values, np.float32)
)


def test_presence_keys() -> None:
    assert PRESENCE_KEYS == (
        "text+audio+vision",
        "text+audio",
        "text+vision",
        "audio+vision",
        "text",
        "audio",
        "vision",
        "none",
    )
    assert presence_key({"vision", "text"}) == "text+vision"
    assert presence_key([]) == "none"


@given(logits, presences)
def test_probabilities_are_a_distribution(
    values: np.typing.NDArray[np.float32], present: set[Modality]
) -> None:
    p = PLAIN.probabilities(values, present)
    assert np.isfinite(p).all()
    assert (p >= 0).all()
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert p[values.argmax()] == p.max()


def test_probabilities_by_hand() -> None:
    calibration = replace(PLAIN, temperature={**PLAIN.temperature, "text": 2.0})
    values = np.log(np.array([4.0, 1, 1, 1, 1, 1, 1], np.float32))
    assert PLAIN.probabilities(values, {"audio"})[0] == pytest.approx(4 / 10)
    assert calibration.probabilities(values, {"text"})[0] == pytest.approx(2 / 8)


@given(logits, st.floats(1.01, 100.0))
def test_a_higher_temperature_is_less_sure(values: np.typing.NDArray[np.float32], temperature: float) -> None:
    soft = replace(PLAIN, temperature=dict.fromkeys(PRESENCE_KEYS, temperature))
    assert soft.probabilities(values, []).max() <= PLAIN.probabilities(values, []).max() + 1e-12


@given(st.floats(-3, 3), st.floats(0, 10), presences)
def test_interval(sentiment: float, half: float, present: set[Modality]) -> None:
    calibration = replace(
        PLAIN, interval_half_width={**PLAIN.interval_half_width, presence_key(present): half}
    )
    low, high = calibration.interval(sentiment, present)
    assert -3 <= low <= sentiment <= high <= 3
    assert low == max(-3.0, sentiment - half)
    assert high == min(3.0, sentiment + half)


@pytest.mark.parametrize(
    "broken",
    [
        {"coverage": 0.0},
        {"coverage": 1.0},
        {"coverage": float("nan")},
        {"temperature": dict.fromkeys(PRESENCE_KEYS, 0.0)},
        {"temperature": dict.fromkeys(PRESENCE_KEYS, float("nan"))},
        {"temperature": dict.fromkeys(PRESENCE_KEYS[:-1], 1.0)},
        {"interval_half_width": dict.fromkeys(PRESENCE_KEYS, -0.1)},
        {"interval_half_width": dict.fromkeys(PRESENCE_KEYS, float("inf"))},
        {"interval_half_width": dict.fromkeys([*PRESENCE_KEYS, "smell"], 1.0)},
    ],
)
def test_invalid(broken: dict[str, object]) -> None:
    with pytest.raises(AffectError) as caught:
        replace(PLAIN, **broken)  # type: ignore[arg-type]
    assert caught.value.code == "calibration.invalid"
