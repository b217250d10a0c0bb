"""Streams: threads, clocks and queues around the core, and the faults they survive."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import affectrt
from affectrt.affect import Affect
from affectrt.benchmark_live import rss_bytes
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Word, words_of
from affectrt.stream import Stream
from affectrt.streaming import clock, queues, statistics, watch, worker
from affectrt.streaming.core import StreamCore

RATE_HZ = 16_000
PATIENCE_S = 20.0
"""Nothing here takes so long, however busy the machine."""


def voice(length_s: float) -> np.typing.NDArray[np.float32]:
    """A buzz at 140 Hz that swells and fades like syllables, over a little noise."""
    t = np.arange(int(length_s * RATE_HZ)) / RATE_HZ
    buzz = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 12))
    noise = np.random.default_rng(0).normal(0, 1e-4, len(t))
    return (0.2 * buzz * np.clip(np.sin(2 * np.pi * 2.5 * t), 0, None) ** 2 + noise).astype(np.float32)


def comparable(affects: list[Affect]) -> list[Affect]:
    return [replace(affect, latency_ms=0.0) for affect in affects]


def times(affects: list[Affect]) -> list[float]:
    return [round(affect.time_s, 6) for affect in affects]


def codes(affects: list[Affect]) -> list[str]:
    return [event.code for affect in affects for event in affect.events]


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(AffectError) as caught:
        call()
    return caught.value.code


def eventually(condition: Callable[[], bool]) -> None:
    deadline = perf_counter() + PATIENCE_S
    while not condition():
        assert perf_counter() < deadline
        sleep(0.005)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While it is not set, a stream's thread is held up where it takes inputs in."""
    free = threading.Event()
    take = StreamCore.take
    take_in = StreamCore.take_in

    def held_take(self: StreamCore, items: Any) -> Iterator[Affect]:
        assert free.wait(PATIENCE_S)
        return take(self, items)

    def held_take_in(self: StreamCore, item: Any, arrived_s: float) -> None:
        assert free.wait(PATIENCE_S)
        take_in(self, item, arrived_s)

    monkeypatch.setattr(StreamCore, "take", held_take)
    monkeypatch.setattr(StreamCore, "take_in", held_take_in)
    yield free
    free.set()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine, no live result is left out for being overdue."""
    monkeypatch.setattr(worker, "BEHIND_S", PATIENCE_S)


# --- The same as the core -------------------------------------------------------------------------

Push = Callable[[Any], object]
"""Something to do to a stream or to a core."""

MOMENTS = st.integers(-20, 100).map(lambda tenths: tenths / 10)


@st.composite
def pushes(draw: st.DrawFn, dim: int) -> list[Push]:
    """Sound of any chunks and rates, words, pictures and rows: with gaps, duplicates and in disorder."""

    def sound(start_s: float, samples: int, rate_hz: int) -> Push:
        pcm = voice(2.0)[:samples]
        return lambda stream: stream.push_audio(pcm, rate_hz, start_s)

    def words(start_s: float, length_s: float) -> Push:
        return lambda stream: stream.push_text("so very happy", start_s, start_s + length_s)

    def picture(time_s: float) -> Push:
        return lambda stream: stream.push_frame(np.full((48, 48), 100, np.uint8), time_s)

    def rows(start_s: float, steps: int) -> Push:
        values = np.sin(np.arange(steps * dim, dtype=np.float32)).reshape(steps, dim)
        sequence = FeatureSequence("vision", values, start_s + np.arange(steps) / 10)
        return lambda stream: stream.push_features(sequence)

    one = st.one_of(
        st.builds(sound, MOMENTS, st.integers(1, 20_000), st.sampled_from([8_000, 16_000, 44_100])),
        st.builds(words, MOMENTS, st.sampled_from([0.0, 0.5, 3.0])),
        st.builds(picture, MOMENTS),
        st.builds(rows, MOMENTS, st.integers(1, 30)),
    )
    # A source as it should be, with the unruly ones in between.
    found: list[Push] = []
    length_s = 0.0
    for samples in draw(st.lists(st.integers(1, 16_000), max_size=8)):
        found.append(sound(length_s, samples, RATE_HZ))
        length_s += samples / RATE_HZ
    for push in draw(st.lists(one, max_size=8)):
        found.insert(draw(st.integers(0, len(found))), push)
    return found


@settings(max_examples=40)
@given(data=st.data(), hop_s=st.sampled_from([0.1, 0.5, 1.0]), naps=st.integers(0, 3))
def test_with_times_of_its_own_it_is_the_core(
    tiny_model: affectrt.Model, data: st.DataObject, hop_s: float, naps: int
) -> None:
    sequence = data.draw(pushes(tiny_model.encoders.dim("vision")))
    core = StreamCore(tiny_model, 2.0, hop_s)
    expected: list[Affect] = []
    for push in sequence:
        push(core)
        expected += core.poll()
    expected += core.flush()
    with tiny_model.stream(2.0, hop_s) as stream:
        results: list[Affect] = []
        for k, push in enumerate(sequence):
            push(stream)
            if naps and k % naps == 0:
                sleep(0.001)
                results += stream.poll()
        results += stream.flush()
        assert stream.statistics().results == len(expected)
    assert comparable(results) == comparable(expected)


def test_four_streams_at_once_are_four_in_turn(tiny_model: affectrt.Model) -> None:
    def run(number: int) -> list[Affect]:
        pcm = voice(4.0) * np.float32(1 + number)
        words = words_of("i am so happy it was a great film", 0.1 * number, 4.0)
        with tiny_model.stream(2.0, 0.1) as stream:
            for k in range(40):
                stream.push_audio(pcm[k * 1600 : (k + 1) * 1600], RATE_HZ, k / 10)
                for word in words:
                    if k / 10 < word.end_s <= (k + 1) / 10:
                        stream.push_word(word)
            return comparable(stream.flush())

    expected = [run(number) for number in range(4)]
    together: dict[int, list[Affect]] = {}
    threads = [threading.Thread(target=lambda n=n: together.__setitem__(n, run(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [together[number] for number in range(4)] == expected
    assert len(expected[0]) == 40 and expected[0] != expected[1]


def test_capture_threads_and_a_reading_thread(tiny_model: affectrt.Model) -> None:
    pcm = voice(6.0)
    words = words_of("i am so happy it was a great film i love it", 0.2, 5.8)
    core = StreamCore(tiny_model, None, 0.5)
    core.push_audio(pcm, RATE_HZ, 0.0)
    for word in words:
        core.push_word(word)
    expected = comparable(core.flush())

    def hear(stream: Stream) -> None:
        for k in range(60):
            stream.push_audio(pcm[k * 1600 : (k + 1) * 1600], RATE_HZ, k / 10)
            sleep(0.002)

    def read(stream: Stream) -> None:
        for word in words:
            stream.push_word(word)
            sleep(0.001)

    results: list[Affect] = []
    with tiny_model.stream(hop_s=0.5) as stream:
        threads = [threading.Thread(target=work, args=(stream,)) for work in (hear, read)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            results += stream.poll()
        results += stream.flush()
    # Which words a result has seen depends on who was faster; that each is told once and in order doesn't.
    assert times(results) == times(expected)
    assert replace(comparable(results)[-1], events=()) == expected[-1]


# --- Live -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_without_times_results_come_by_the_clock(tiny_model: affectrt.Model) -> None:
    """Also when nothing comes any more."""
    with tiny_model.stream(hop_s=0.1) as stream:
        sleep(0.25)
        assert stream.poll() == [], "before the first input nobody knows whose clock it is"
        stream.push_text("great")
        opened = perf_counter()
        results = list(islice(stream, 8))
        elapsed = perf_counter() - opened
    gaps = np.diff(times(results))
    assert gaps == pytest.approx(0.1)
    assert 0.2 < elapsed < PATIENCE_S
    assert results[0].present == {"text"}


def test_live_input_is_stamped_with_now(tiny_model: affectrt.Model) -> None:
    with tiny_model.stream(hop_s=60.0) as stream:
        opened = perf_counter()
        for _ in range(10):
            stream.push_audio(np.zeros(160, np.float32), RATE_HZ)
            stream.push_frame(np.zeros((120, 160, 3), np.uint8))
            sleep(0.02)
        stream.push_text("great")
        elapsed = perf_counter() - opened
        (newest,) = stream.flush()
    assert newest.present == {"text"}
    assert 0.2 <= newest.time_s <= elapsed + 0.1


def test_gapless_audio_without_times(tiny_model: affectrt.Model) -> None:
    """A recording pushed at once, faster than real time, keeps its own length."""
    with tiny_model.stream() as stream:
        pcm = voice(3.0)
        for k in range(30):
            stream.push_audio(pcm[k * 1600 : (k + 1) * 1600], RATE_HZ)
        results = stream.flush()
    assert results[-1].time_s == pytest.approx(3.0, abs=0.5)


def test_a_sound_card_that_is_too_fast_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second in a hundred too many, for ten minutes: stamps stay with the clock."""
    now = [1000.0]
    monkeypatch.setattr(clock, "perf_counter", lambda: now[0])
    stamps = clock.Clock()
    ahead = []
    for _ in range(6000):
        now[0] += 0.1
        start_s = stamps.stamp_audio_s(0.101)
        ahead.append(start_s + 0.101 - stamps.now_s())
    assert min(ahead) > -0.01 and max(ahead) < 0.3


def test_times_that_are_not_the_clocks_are_refused_when_live(tiny_model: affectrt.Model) -> None:
    with tiny_model.stream(hop_s=0.05) as stream:
        stream.push_text("great")
        stream.push_word(Word("happy", 1_790_000_000.0, 1_790_000_001.0))
        results = list(islice(stream, 3))
    assert codes(results) == ["stream.time"]
    assert all(affect.time_s < PATIENCE_S for affect in results)


def test_a_camera_that_is_unplugged_and_plugged_in_again(
    tiny_model: affectrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOST_S", 0.3)
    grey = np.zeros((48, 48), np.uint8)
    told: list[str] = []
    with tiny_model.stream(hop_s=0.05) as stream:
        results = iter(stream)
        stream.push_frame(grey)
        while "modality_lost" not in told:
            told += codes([next(results)])
        stream.push_frame(grey)
        while "modality_back" not in told:
            told += codes([next(results)])
    assert told == ["modality_lost", "modality_back"]


def test_overdue_live_results_are_left_out_and_counted(
    tiny_model: affectrt.Model, busy: threading.Event
) -> None:
    with tiny_model.stream(hop_s=0.05) as stream:
        busy.set()
        stream.push_text("great")
        next(iter(stream))
        busy.clear()
        stream.push_text("great")
        sleep(worker.BEHIND_S + 0.3)
        stream.poll()
        busy.set()
        results = list(islice(stream, 3))
        assert stream.statistics().dropped_results >= 1
    assert "dropped_results" in codes(results)


# --- Reading --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_iteration_ends_with_the_stream(tiny_model: affectrt.Model) -> None:
    stream = tiny_model.stream(hop_s=0.05)
    stream.push_text("great")
    seen: list[Affect] = []
    reader = threading.Thread(target=lambda: seen.extend(stream))
    reader.start()
    eventually(lambda: len(seen) >= 3)
    stream.close()
    reader.join(PATIENCE_S)
    assert not reader.is_alive()
    assert np.diff(times(seen)) == pytest.approx(0.05)


@pytest.mark.usefixtures("patient")
def test_async_for(tiny_model: affectrt.Model) -> None:
    async def read(stream: Stream) -> tuple[list[Affect], int]:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.001)

        task = asyncio.create_task(others())
        seen = []
        async for affect in stream:
            seen.append(affect)
            if len(seen) == 4:
                stream.close()
        task.cancel()
        return seen, turns

    with tiny_model.stream(hop_s=0.05) as stream:
        stream.push_text("great")
        seen, turns = asyncio.run(asyncio.wait_for(read(stream), PATIENCE_S))
    assert np.diff(times(seen)) == pytest.approx(0.05)
    assert turns > 10, "the loop had time for others"


def test_a_callback_that_raises_becomes_an_event(tiny_model: affectrt.Model) -> None:
    seen: list[Affect] = []

    def on_result(affect: Affect) -> None:
        seen.append(affect)
        if len(seen) == 1:
            raise SystemExit("not this thread's business")
        if len(seen) == 2:
            raise ValueError("mine")

    with tiny_model.stream(on_result=on_result) as stream:
        for k in range(5):
            stream.push_text("so", float(k), k + 1.0)
        assert stream.flush() == stream.poll() == []
    assert times(seen) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert codes(seen) == ["stream.callback", "stream.callback"]
    assert "mine" in seen[2].events[0].message


def test_a_callback_may_push_reset_and_close(tiny_model: affectrt.Model) -> None:
    refused: list[str] = []
    seen: list[Affect] = []

    def on_result(affect: Affect) -> None:
        seen.append(affect)
        if affect.time_s == 1.0:
            refused.append(error_of(stream.flush))
            stream.reset()
            stream.push_text("so", 6.0, 7.0)
        else:
            stream.close()

    stream = tiny_model.stream(on_result=on_result)
    stream.push_text("so", 0.0, 1.0)
    eventually(lambda: len(seen) == 2)
    assert refused == ["stream.callback"]
    assert times(seen) == [1.0, 7.0]
    assert error_of(stream.poll) == "stream.closed"


def test_who_never_reads_loses_the_oldest(
    tiny_model: affectrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "MAX_RESULTS", 10)
    with tiny_model.stream(hop_s=0.1) as stream:
        for k in range(100):
            stream.push_word(Word("so", k / 10, (k + 1) / 10))
        results = stream.flush()
        assert stream.statistics().dropped_results == 90
        assert stream.statistics().results == 100
        stream.push_word(Word("so", 10.0, 10.1))
        results += stream.flush()
    assert times(results) == pytest.approx([9.1 + k / 10 for k in range(11)])
    assert "dropped_results" in codes(results)


def test_statistics_are_of_recent_results(
    tiny_model: affectrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "RECENT", 5)
    with tiny_model.stream(hop_s=0.1) as stream:
        empty = stream.statistics()
        assert (empty.results, empty.latency, empty.stages) == (0, None, {})
        stream.push_audio(voice(1.0), RATE_HZ, 0.0)
        stream.push_text("so happy", 1.0, 2.0)
        results = stream.flush()
        told = stream.statistics()
    assert told.results == len(results) == 20
    assert told.pushed == {"audio": 1, "frames": 0, "words": 2, "features": 0}
    assert told.events == len(codes(results))
    recent = [affect.latency_ms for affect in results[-5:]]
    assert told.latency is not None and told.latency.count == 5
    assert told.latency.p50_ms == pytest.approx(np.median(recent))
    assert told.latency.p50_ms <= told.latency.p95_ms <= told.latency.p99_ms <= max(recent)
    assert {"audio features", "audio encoder", "text encoder", "fusion"} == set(told.stages)
    assert told.stages["text encoder"].count == 2, "of the results in which it ran"
    assert told.stages["fusion"].p99_ms > 0.0


# --- Bounds ---------------------------------------------------------------------------------------


def test_waiting_sound_is_bounded_and_told(
    tiny_model: affectrt.Model, busy: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(queues.MAX_BYTES, "audio", 10 * 4 * RATE_HZ)
    with tiny_model.stream() as stream:
        stream.push_text("so", -1.0, 0.0)  # the worker takes it and is held up
        eventually(lambda: not stream._worker.inbox._waiting["words"])
        for k in range(30):
            stream.push_audio(np.zeros(RATE_HZ, np.float32), RATE_HZ, float(k))
        busy.set()
        results = stream.flush()
        statistics = stream.statistics()
    assert statistics.pushed == {"audio": 30, "frames": 0, "words": 1, "features": 0}
    assert statistics.dropped == {"audio": 20, "frames": 0, "words": 0, "features": 0}
    (event,) = (event for affect in results for event in affect.events if event.code == "dropped_audio")
    assert "20 pieces of sound of 0.00 to 20.00 s" in event.message
    assert results[-1].time_s == 30.0


def test_the_newest_pictures_win(tiny_model: affectrt.Model, busy: threading.Event) -> None:
    grey = np.zeros((48, 48), np.uint8)
    with tiny_model.stream(hop_s=0.2) as stream:
        for _ in range(15):
            stream.push_frame(grey)
            sleep(0.1)
        dropped = stream.statistics().dropped["frames"]
        assert dropped >= 8
        busy.set()
        results = list(islice(stream, 3))
        assert stream.statistics().dropped["frames"] == dropped
    assert "dropped_frames" in codes(results)


# --- Faults ---------------------------------------------------------------------------------------


def test_bad_input_is_refused_and_changes_nothing(tiny_model: affectrt.Model) -> None:
    grey = np.zeros((48, 48), np.uint8)
    good = voice(1.0)
    with tiny_model.stream() as stream:
        for call, code in (
            (lambda: stream.push_audio(np.full(10, np.nan), RATE_HZ), "audio.not_finite"),
            (lambda: stream.push_audio(np.zeros((2, 3, 4)), RATE_HZ), "audio.shape"),
            (lambda: stream.push_audio(np.zeros(10, np.uint8), RATE_HZ), "audio.dtype"),
            (lambda: stream.push_audio(good, 10), "audio.sample_rate"),
            (lambda: stream.push_audio(good, RATE_HZ, float("nan")), "stream.time"),
            (lambda: stream.push_frame(np.zeros((10_000, 10_000, 3), np.uint8)), "vision.frame_shape"),
            (lambda: stream.push_frame(grey, float("inf")), "stream.time"),
            (lambda: stream.push_text("so", 2.0, 1.0), "text.times"),
            (lambda: stream.push_text("so", float("nan")), "stream.time"),
        ):
            assert error_of(call) == code
        assert stream.flush() == []
        stream.push_audio(good, RATE_HZ, 0.0)
        (affect,) = stream.flush()
    assert (affect.time_s, affect.events) == (1.0, ())


def test_pictures_go_on_after_the_clock_was_set_back(tiny_model: affectrt.Model) -> None:
    grey = np.zeros((48, 48), np.uint8)
    with tiny_model.stream() as stream:
        for k in range(20):
            stream.push_frame(grey, 5000.0 + k / 10)
        for k in range(50):
            stream.push_frame(grey, 100.0 + k / 10)
        results = stream.flush()
        assert stream.statistics().pushed["frames"] == 70
    assert times(results) == [5001.0, 103.0, 104.0, 104.9]
    assert codes(results) == ["vision.backwards_time", "vision.backwards_time", "stream.time_jump"]


def test_what_a_library_raises_does_not_end_it(
    tiny_model: affectrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = StreamCore.take
    failures = iter([RuntimeError("out of handles")])

    def failing(self: StreamCore, items: Any) -> Iterator[Affect]:
        if (error := next(failures, None)) is not None:
            raise error
        return take(self, items)

    monkeypatch.setattr(StreamCore, "take", failing)
    with tiny_model.stream() as stream:
        stream.push_text("so", 0.0, 1.0)
        stream.push_text("so", 1.0, 2.0)
        results = stream.flush()
    assert times(results) == [2.0]
    assert codes(results) == ["stream.failed"] and "out of handles" in results[0].events[0].message


def test_reset_forgets_the_person_and_keeps_the_thread(tiny_model: affectrt.Model) -> None:
    before = threading.active_count()
    with tiny_model.stream() as stream:
        stream.push_audio(voice(2.0), RATE_HZ, 1000.0)
        stream.reset()
        assert stream.poll() == []
        stream.push_text("so", 0.0, 1.0)
        (affect,) = stream.flush()
        assert (affect.time_s, affect.events) == (1.0, ())
        assert affect.present == {"text"}
        assert threading.active_count() == before + 1


def test_closed(tiny_model: affectrt.Model) -> None:
    with tiny_model.stream() as stream:
        pass
    stream.close()
    for call in (
        lambda: stream.push_text("so", 0.0, 1.0),
        lambda: stream.push_word(Word("so", 0.0, 1.0)),
        lambda: stream.push_audio(voice(0.1), RATE_HZ),
        lambda: stream.push_frame(np.zeros((48, 48), np.uint8)),
        stream.poll,
        stream.flush,
        stream.reset,
    ):
        assert error_of(call) == "stream.closed"
    assert list(stream) == []


def test_close_during_pushes_and_a_flush(tiny_model: affectrt.Model) -> None:
    for _ in range(20):
        stream = tiny_model.stream(hop_s=0.1)
        ended: list[str] = []

        def push(stream: Stream = stream, ended: list[str] = ended) -> None:
            k = 0
            try:
                while True:
                    stream.push_word(Word("so", k / 10, k / 10))
                    k += 1
                    if k % 10 == 0:
                        stream.flush()
            except AffectError as error:
                ended.append(error.code)

        threads = [threading.Thread(target=push) for _ in range(3)]
        for thread in threads:
            thread.start()
        sleep(0.005)
        stream.close()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert ended == ["stream.closed"] * 3


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_config(tiny_model: affectrt.Model, value: float) -> None:
    before = threading.active_count()
    assert error_of(lambda: tiny_model.stream(hop_s=value)) == "stream.config"
    assert error_of(lambda: tiny_model.stream(window_s=value)) == "stream.config"
    assert threading.active_count() == before


# --- For hours ------------------------------------------------------------------------------------


def test_a_stream_that_nobody_holds_ends(tiny_model: affectrt.Model) -> None:
    before = threading.active_count()
    stream = tiny_model.stream()
    stream.push_text("so", 0.0, 1.0)
    stream.flush()
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None
    assert threading.active_count() == before


def test_opening_and_closing_leaks_nothing(tiny_model: affectrt.Model) -> None:
    def cycle() -> None:
        with tiny_model.stream(on_result=lambda affect: None) as stream:
            stream.push_audio(np.zeros(1600, np.float32), RATE_HZ, 0.0)
            stream.push_frame(np.zeros((48, 48), np.uint8), 0.0)
            stream.push_text("so", 0.0, 1.0)
            stream.flush()

    def files() -> int:
        folder = Path("/proc/self/fd")
        return len(list(folder.iterdir())) if folder.is_dir() else 0

    def held() -> int:
        """Objects of ours that anything still refers to."""
        gc.collect()
        kinds = (str(type(thing).__module__).partition(".")[0] for thing in gc.get_objects())
        return sum(kind == "affectrt" for kind in kinds)

    cycle()
    before = (threading.active_count(), files(), held())
    for _ in range(50):
        cycle()
    assert (threading.active_count(), files(), held()) == before
    if "AFFECTRT_TEST_WHOLE" in os.environ:  # a minute
        for _ in range(200):
            cycle()
        rss = rss_bytes()
        for _ in range(1000):
            cycle()
        assert (threading.active_count(), files(), held()) == before
        assert rss_bytes() <= 1.02 * rss


def test_minutes_of_media_keep_memory_and_cost_flat(tiny_model: affectrt.Model) -> None:
    """Read as fast as it is computed; the second half of it costs what the first did."""
    minute = voice(60.0)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (10, 48, 48), dtype=np.uint8)

    def rss() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()

    held: list[int] = []
    with tiny_model.stream(hop_s=0.5) as stream:
        results = iter(stream)
        for k in range(360):
            at = k % 60 * RATE_HZ
            for n in range(10):
                stream.push_frame(pictures[n], k + n / 10)
            stream.push_text("so very happy", float(k), k + 0.9)
            stream.push_audio(minute[at : at + RATE_HZ], RATE_HZ, float(k))
            for _ in range(2):
                next(results)
            if k % 60 == 59:
                held.append(rss())
        assert sum(stream.statistics().dropped.values()) == 0
        assert stream.statistics().results == 720
    assert held[-1] <= 1.02 * held[0]


def test_waiting_for_a_far_moment_ends_with_what_comes() -> None:
    inbox, got = queues.Inbox(), list[object]()
    reader = threading.Thread(target=lambda: got.append(inbox.take(until=perf_counter() + 1e12)))
    reader.start()
    sleep(0.05)
    command = queues.Command("reset")
    inbox.command(command)
    reader.join(PATIENCE_S)
    assert got == [command]
