"""Speech to words with times."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from affectrt.asr import transcribe
from affectrt.errors import AffectError
from affectrt.media import read_audio

pytest.importorskip("pocketsphinx", reason="needs the extra 'asr'")

Speech = tuple[np.typing.NDArray[np.float32], int]

SAID = "nobody told us, that is outrageous"


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    binary = shutil.which("espeak-ng")
    if binary is None:
        pytest.skip("espeak-ng is not installed: no speech to recognise")
    path = tmp_path_factory.mktemp("asr") / "speech.wav"
    subprocess.run([binary, "-v", "en-us+f3", "-s", "150", "-w", str(path), SAID], check=True, timeout=60)
    return read_audio(path)


def test_words_with_times(speech: Speech) -> None:
    pcm, rate = speech
    assert rate != 16_000, "this also tests resampling"
    length_s = len(pcm) / rate
    pause = np.zeros(2 * rate, np.float32)
    # Quiet as from the far end of a room: the level must not matter.
    words = transcribe(0.02 * np.concatenate([pause, pcm, pause]), rate)
    # A synthetic voice is hard for it: what counts is that most is heard, in order and at its time.
    heard = [word.text for word in words]
    assert len(set(heard) & set(SAID.replace(",", "").split())) >= 3, heard
    assert words == sorted(words, key=lambda word: word.end_s)
    assert 1.7 <= words[0].start_s <= 2.5
    assert 2.0 + 0.5 * length_s <= words[-1].end_s <= 2.3 + length_s
    assert all(word.start_s < word.end_s for word in words)
    assert all(character.isalpha() or character in "'-" for text in heard for character in text)


@pytest.mark.parametrize("samples", [0, 100, 16_000])
def test_silence_has_no_words(samples: int) -> None:
    assert transcribe(np.zeros(samples, np.float32), 16_000) == []


def test_noise_is_no_error() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 8_001).astype(np.float32)
    assert all(word.text for word in transcribe(noise, 16_000))


def test_not_finite() -> None:
    with pytest.raises(AffectError) as caught:
        transcribe(np.full(16_000, np.nan, np.float32), 16_000)
    assert caught.value.code == "audio.not_finite"
