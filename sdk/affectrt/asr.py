"""Speech to words with times, on the device: PocketSphinx with the English model its wheel carries.

It is small and fast rather than accurate. A transcript, where there is one, always serves better.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from affectrt.errors import require
from affectrt.features.log_mel import as_mono, check_rate
from affectrt.features.text import Word

RATE_HZ = 16_000
"""What it listens at."""
_FRAMES_PER_SECOND = 100
PEAK = 0.5
"""Level that sound is brought to."""
_NOT_A_WORD = re.compile(r"<.*>|\[.*\]|\+\+.*\+\+")
"""Silence, sentence marks and noises in the recogniser's own notation."""
_VARIANT = re.compile(r"\(\d+\)$")
"""Which pronunciation it heard: ``the(2)``."""


def transcribe(pcm: npt.ArrayLike, sample_rate_hz: int) -> list[Word]:
    """English words in ``pcm`` (N,) or (N, channels), in order; no speech → no words.

    Times count from the first sample. Raises as :func:`~affectrt.features.log_mel.as_mono`, and
    ``extra.missing``.
    """
    sphinx = require("pocketsphinx", "asr")
    mono = as_mono(pcm)
    check_rate(sample_rate_hz)
    if sample_rate_hz != RATE_HZ:
        mono = np.asarray(require("soxr", "media").resample(mono, sample_rate_hz, RATE_HZ), np.float32)
    peak = float(np.abs(mono).max()) if len(mono) else 0.0
    if peak == 0.0:
        return []
    # The voice detector has absolute thresholds: bring quiet recordings up to an ordinary level.
    samples = (mono * (PEAK / peak) * 32767.0).astype("<i2")
    decoder = new_decoder(sphinx)
    return [
        word
        for start_s, speech in _segments(sphinx, samples.tobytes())
        for word in _recognise(decoder, speech, start_s)
    ]


def _segments(sphinx: Any, data: bytes) -> Iterator[tuple[float, bytes]]:
    """Stretches of speech in 16-bit samples: (start in seconds, samples)."""
    endpointer = sphinx.Endpointer(sample_rate=RATE_HZ)
    size = endpointer.frame_bytes
    parts: list[bytes] = []
    for place in range(0, len(data), size):
        frame = data[place : place + size]
        last = place + size >= len(data)
        if last and not endpointer.in_speech:
            break
        speech = endpointer.end_stream(frame) if last else endpointer.process(frame)
        if speech is not None:
            parts.append(speech)
        if parts and (last or not endpointer.in_speech):
            yield float(endpointer.speech_start), b"".join(parts)
            parts = []


def _recognise(decoder: Any, speech: bytes, start_s: float) -> Iterator[Word]:
    decoder.start_utt()
    decoder.process_raw(speech, full_utt=True)
    decoder.end_utt()
    yield from words_heard(decoder, start_s)


def new_decoder(sphinx: Any) -> Any:
    """The recogniser, for 16-bit samples at :data:`RATE_HZ`."""
    # Dither: digital silence has no logarithm. Seeded: the same recording always gives the same words.
    return sphinx.Decoder(samprate=RATE_HZ, frate=_FRAMES_PER_SECOND, dither=True, seed=1, loglevel="FATAL")


def words_heard(decoder: Any, start_s: float) -> Iterator[Word]:
    """The words of the utterance that has just ended, which began at ``start_s``."""
    if decoder.hyp() is None:
        return
    for segment in decoder.seg():
        if not _NOT_A_WORD.fullmatch(segment.word):
            yield Word(
                _VARIANT.sub("", segment.word),
                start_s + segment.start_frame / _FRAMES_PER_SECOND,
                start_s + (segment.end_frame + 1) / _FRAMES_PER_SECOND,
            )
