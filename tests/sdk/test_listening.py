"""Words while they are spoken: recognisers on live sound, and the thread between them and a stream."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import numpy.typing as npt
import pytest
import soxr

import affectrt
from affectrt import listening
from affectrt.errors import AffectError
from affectrt.features.text import Word
from affectrt.listening import Listener, PocketSphinx, Recogniser, Sherpa, recogniser_of, words_of_tokens
from affectrt.media import read_audio
from affectrt.sources.source import Sound
from affectrt.stream import Stream

DEMO = Path(__file__).parents[2] / "demo" / "clip.mp4"
RATE_HZ = 16_000
PATIENCE_S = 20.0
SHERPA = os.environ.get("AFFECTRT_SHERPA")


@pytest.fixture(scope="module")
def speech() -> npt.NDArray[np.float32]:
    """Of the demo clip: "The train home leaves at nine", between pauses; the first word begins at 0.6 s."""
    pcm, rate_hz = read_audio(DEMO)
    return np.asarray(soxr.resample(pcm[int(3.55 * rate_hz) : int(6.8 * rate_hz)], rate_hz, RATE_HZ))


@pytest.fixture
def stream(tiny_model: affectrt.Model) -> Iterator[Stream]:
    with tiny_model.stream(hop_s=0.5) as opened:
        yield opened


def eventually(condition: Callable[[], bool]) -> None:
    deadline = perf_counter() + PATIENCE_S
    while not condition():
        assert perf_counter() < deadline
        sleep(0.005)


def hear_in_pieces(recogniser: Recogniser, pcm: npt.NDArray[np.float32]) -> list[tuple[float, list[Word]]]:
    """(seconds heard by then, words) wherever words came."""
    found = []
    for place in range(0, len(pcm), 700):
        words = recogniser.hear(pcm[place : place + 700])
        if words:
            found.append(((place + 700) / RATE_HZ, words))
    return found


# --- Recognisers ----------------------------------------------------------------------------------


def test_pocketsphinx_tells_an_utterance_once_it_is_over(speech: npt.NDArray[np.float32]) -> None:
    pytest.importorskip("pocketsphinx", reason="needs the extra 'asr'")
    # Quiet, as from the far end of a room.
    recogniser = PocketSphinx()
    ((told_s, words),) = hear_in_pieces(recogniser, 0.05 * speech)
    assert recogniser.finish() == []
    # A synthetic voice is hard for it: what counts is that words come, at their time.
    assert len(words) >= 3 and all(word.text for word in words)
    assert words == sorted(words, key=lambda word: word.start_s)
    assert 0.4 <= words[0].start_s <= 0.8 and 2.0 <= words[-1].end_s <= 2.6
    assert words[-1].end_s < told_s <= words[-1].end_s + 1.0


def test_who_is_cut_off_or_does_not_pause_is_understood_too(
    speech: npt.NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pocketsphinx", reason="needs the extra 'asr'")
    monkeypatch.setattr(listening, "LONGEST_UTTERANCE_S", 1.0)
    recogniser = PocketSphinx()
    found = hear_in_pieces(recogniser, speech[: int(1.9 * RATE_HZ)])
    assert 1.2 <= found[0][0] <= 2.0, "the first second of speech, without a pause after it"
    rest = recogniser.finish()
    assert rest and rest[0].start_s >= found[0][1][-1].end_s - 0.1


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([], []),
        (["▁so", "▁hap", "py"], [("so", 0.0, 0.1), ("happy", 0.1, 0.4)]),
        ([" SO", " ", "HAP", "PY"], [("so", 0.0, 0.1), ("happy", 0.1, 0.5)]),
        (["hap", "py"], [("happy", 0.0, 0.3)]),
    ],
)
def test_words_of_tokens(tokens: list[str], words: list[tuple[str, float, float]]) -> None:
    found = words_of_tokens(tokens, [k / 10 for k in range(len(tokens))])
    assert [(word.text, word.start_s, round(word.end_s, 6)) for word in found] == words


def test_recognisers_by_name(tmp_path: Path) -> None:
    for named in ("", "sherpa", "sherpa:", "whisper"):
        with pytest.raises(AffectError, match="pocketsphinx or sherpa:DIR") as caught:
            recogniser_of(named)
        assert caught.value.code == "asr.unknown"
    pytest.importorskip("sherpa_onnx", reason="needs the extra 'sherpa'")
    with pytest.raises(AffectError, match=r"tokens\.txt") as caught:
        recogniser_of(f"sherpa:{tmp_path}")
    assert caught.value.code == "asr.model"


@pytest.mark.skipif(SHERPA is None, reason="AFFECTRT_SHERPA names no folder with a streaming model")
def test_sherpa_tells_words_at_their_time(speech: npt.NDArray[np.float32]) -> None:
    recogniser = Sherpa(Path(SHERPA or ""))
    pause = np.zeros(3 * RATE_HZ, np.float32)
    words = [word for _, told in hear_in_pieces(recogniser, np.concatenate([speech, pause])) for word in told]
    words += recogniser.finish()
    assert "train" in [word.text for word in words]
    assert 0.3 <= words[0].start_s <= 1.0 and words[-1].end_s <= 3.5


# --- The thread -----------------------------------------------------------------------------------


class Echo:
    """A recogniser of the application: says "happy" for each half second of sound."""

    def __init__(self) -> None:
        self.heard = 0
        self.free = threading.Event()
        self.free.set()

    def hear(self, pcm: npt.NDArray[np.float32]) -> list[Word]:
        assert self.free.wait(PATIENCE_S)
        before, self.heard = self.heard * 2 // RATE_HZ, self.heard + len(pcm)
        return [Word("happy", k / 2, k / 2 + 0.4) for k in range(before, self.heard * 2 // RATE_HZ)]

    def finish(self) -> list[Word]:
        return [Word("end", self.heard / RATE_HZ - 0.1, self.heard / RATE_HZ)]


def test_words_stand_where_they_were_said(stream: Stream) -> None:
    """Also after a pause in which nothing was heard, and at another rate."""
    told: list[str] = []
    listener = Listener(Echo(), stream, lambda code, message: told.append(code))
    for number, start_s in enumerate((0.0, 10.0, 11.0), 1):
        sound = Sound(np.zeros((48_000, 2), np.float32), 48_000, start_s)
        stream.push_audio(sound.pcm, sound.sample_rate_hz, start_s)
        listener.hear(sound)
        eventually(lambda: stream.statistics().pushed["words"] >= number)  # noqa: B023
    listener.stop()
    listener.stop()
    said = [affect.time_s for affect in stream.flush() if "text" in affect.present]
    # The window is four seconds long: the words of the first second leave it before five.
    assert said[0] <= 1.5 and not any(5.0 < time_s <= 10.0 for time_s in said) and said[-1] > 10.0
    assert stream.statistics().pushed["words"] >= 4 and told == []


def test_a_slow_recogniser_holds_nothing_up(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_WAITING", 3)
    told: list[str] = []
    echo = Echo()
    echo.free.clear()
    listener = Listener(echo, stream, lambda code, message: told.append(code))
    for _ in range(20):
        listener.hear(Sound(np.zeros(160, np.float32), RATE_HZ))
    assert told == ["asr.behind"]
    echo.free.set()
    listener.stop()


class Breaks(Echo):
    """A recogniser that fails."""

    def hear(self, pcm: npt.NDArray[np.float32]) -> list[Word]:
        raise RuntimeError("model is gone")


def test_a_recogniser_that_fails_is_told_and_the_stream_goes_on(stream: Stream) -> None:
    told: list[str] = []
    listener = Listener(Breaks(), stream, lambda code, message: told.append(f"{code} {message}"))
    for _ in range(5):
        listener.hear(Sound(np.zeros(160, np.float32), RATE_HZ))
    eventually(lambda: bool(told))
    listener.stop()
    assert len(told) == 1 and told[0].startswith("asr.failed") and "model is gone" in told[0]
    stream.push_text("still here", 0.0, 0.5)
    assert "text" in stream.flush()[-1].present


def test_a_stream_that_was_closed_is_no_fault(stream: Stream) -> None:
    told: list[str] = []
    listener = Listener(Echo(), stream, lambda code, message: told.append(code))
    stream.close()
    listener.hear(Sound(np.zeros(RATE_HZ, np.float32), RATE_HZ))
    listener.stop()
    assert told == []
