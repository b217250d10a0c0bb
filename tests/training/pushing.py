"""Pushes of recordings in orders that captures could have, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from pathlib import Path

import numpy as np
import pytest

import affectrt
from affectrt.affect import Affect
from affectrt.features.log_mel import as_mono
from affectrt.media import AudioChunk, Media
from affectrt.stream import Stream
from affectrt.streaming.core import StreamCore
from affectrt.transcript import read_transcript
from tests.training.offline_causal import Recording, Sound, answers, uncalibrated

RATE_HZ = 16_000
TOLERANCE = 1e-5


def recording_of(clip: Path) -> Recording:
    """A clip, as a camera and a microphone would give it, with the words of the subtitles beside it."""
    chunks, frames, rate = [], [], 0
    with Media.open(clip, max_video_rate_hz=10.0) as media:
        for item in media:
            if isinstance(item, AudioChunk):
                chunks.append(as_mono(item.pcm))
                rate = item.sample_rate_hz
            else:
                frames.append((item.bgr, item.time_s))
    pcm = np.concatenate(chunks)
    subtitles = clip.with_suffix(".srt")
    words = read_transcript(subtitles) if subtitles.is_file() else []
    return Recording([Sound(pcm, rate, 0.0)], frames, words, max(len(pcm) / rate, frames[-1][1]))


def core(model: affectrt.Model, hop_s: float = 0.1) -> StreamCore:
    return StreamCore(model, None, hop_s, mode="incremental")


def check(model: affectrt.Model, results: list[Affect], recording: Recording, first_s: float = 0.0) -> None:
    """Every result is what the model says that knows the whole recording."""
    ticks, sentiment, probabilities = answers(model, recording, first_s)
    assert len(results) > 3
    for affect in results:
        k = int(np.flatnonzero(ticks <= affect.time_s + 1e-6)[-1])
        assert affect.sentiment == pytest.approx(float(np.clip(sentiment[k], -3, 3)), abs=TOLERANCE)
        np.testing.assert_allclose(uncalibrated(model, affect), probabilities[k], rtol=0, atol=TOLERANCE)


Push = Callable[[StreamCore | Stream], object]


def pieces(recording: Recording, cuts: list[int]) -> list[tuple[str, float, Push]]:
    """What a capture would push, with the time at which it could."""
    found: list[tuple[str, float, Push]] = []
    turn = -1
    for sound in recording.sounds:
        at = 0
        while at < len(sound.pcm):
            turn += 1
            length = min(cuts[turn % len(cuts)] * sound.rate_hz // RATE_HZ + 1, len(sound.pcm) - at)
            if (
                len(sound.pcm) - at - length < 0.06 * sound.rate_hz
            ):  # a repeat of less is taken for more sound
                length = len(sound.pcm) - at
            start_s, part = sound.start_s + at / sound.rate_hz, sound.pcm[at : at + length]

            push = methodcaller("push_audio", pcm=part, sample_rate=sound.rate_hz, start_s=start_s)
            found.append(("sound", start_s + length / sound.rate_hz, push))
            at += length
    for frame, time_s in recording.frames:
        found.append(("frame", time_s, methodcaller("push_frame", frame=frame, time_s=time_s)))
    for word in recording.words:  # right before the sound that it ends with
        found.append(("word", word.end_s - 1e-3, methodcaller("push_word", word=word)))
    return found


def at_once(model: affectrt.Model, recording: Recording, hop_s: float = 0.1) -> list[Affect]:
    stream = core(model, hop_s)
    for _, _, push in pieces(recording, [10**9]):
        push(stream)
    return stream.flush()


def pushed(
    model: affectrt.Model,
    recording: Recording,
    cuts: list[int],
    late_s: dict[str, float],
    polls: list[bool],
    twice: list[bool],
) -> list[Affect]:
    """The results when each modality comes in its own order, sound and pictures late, words when they are
    said; polled after some pushes, some pushes repeated."""
    # A stream waits for what it knows of: of each modality something comes in time.
    turns = pieces(recording, [1000, *cuts])
    first = {sort: at_s for sort, at_s, _ in reversed(turns)}
    turns.sort(key=lambda turn: turn[1] + (late_s.get(turn[0], 0.0) if turn[1] > first[turn[0]] else 0.0))
    stream, results = core(model), []
    for number, (sort, _, push) in enumerate(turns):
        for _ in range(2 if sort != "word" and twice[number % len(twice)] else 1):
            push(stream)
        results += stream.poll() if polls[number % len(polls)] else []
    return results + stream.flush()
