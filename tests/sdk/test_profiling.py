"""The stage timer: its stages never add up to more than the time that passed."""

from __future__ import annotations

from time import perf_counter, sleep

import pytest

from affectrt.profiling import StageTimer


def test_inner_time_counts_once() -> None:
    timer = StageTimer()
    start = perf_counter()
    with timer.stage("outer"):
        sleep(0.02)
        for _ in range(2):
            with timer.stage("inner"):
                sleep(0.02)
    elapsed = perf_counter() - start
    assert list(timer.seconds) == ["outer", "inner"]
    assert timer.calls == {"outer": 1, "inner": 2}
    assert timer.seconds["inner"] >= 0.04
    assert timer.seconds["outer"] >= 0.02
    assert sum(timer.seconds.values()) == pytest.approx(elapsed, abs=0.01)


def test_a_stage_that_fails_is_counted_and_closed() -> None:
    timer = StageTimer()
    with pytest.raises(ValueError, match="no"), timer.stage("a"):
        raise ValueError("no")
    with timer.stage("b"):
        pass
    assert timer.calls == {"a": 1, "b": 1}


def test_off_measures_nothing() -> None:
    timer = StageTimer.off()
    with timer.stage("a"), timer.stage("b"):
        pass
    assert timer.seconds == {} and timer.calls == {}
    assert timer.stage("a") is timer.stage("b")
