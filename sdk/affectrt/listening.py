"""Speech to words while it is spoken: a recogniser in a thread of its own, between sources and stream.

A recogniser yields words when an utterance is over, which voice activity decides; they have the times at
which they were said, so they come late but stand where they belong.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Full, Queue
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from affectrt.asr import PEAK, RATE_HZ, new_decoder, words_heard
from affectrt.errors import AffectError, require
from affectrt.features.log_mel import as_mono
from affectrt.features.text import Word
from affectrt.sources.source import Sound
from affectrt.stream import Stream

LONGEST_UTTERANCE_S = 5.0
"""Who speaks on without a pause is understood in pieces of this length."""

_WAITING = 2000
_LOUDEST_GAIN = 30.0
_FORGETS_PER_S = 0.1
_LAST_TOKEN_S = 0.2


class Recogniser(Protocol):
    """Understands one person's speech, in order."""

    def hear(self, pcm: npt.NDArray[np.float32]) -> list[Word]:
        """Take samples (N,) at 16 kHz in ±1; the words of utterances that are over by now.

        Times count from the first sample that was ever heard.
        """

    def finish(self) -> list[Word]:
        """The words of the utterance that is being spoken: nothing follows."""


class PocketSphinx:
    """English, small and fast rather than accurate; its wheel carries the model."""

    def __init__(self) -> None:
        """Raises ``extra.missing``."""
        sphinx = require("pocketsphinx", "asr")
        self._decoder = new_decoder(sphinx)
        self._endpointer = sphinx.Endpointer(sample_rate=RATE_HZ)
        self._rest = b""
        self._peak = PEAK / _LOUDEST_GAIN
        self._start_s: float | None = None
        self._spoken_s = 0.0

    def hear(self, pcm: npt.NDArray[np.float32]) -> list[Word]:
        """As :meth:`Recogniser.hear`."""
        size = self._endpointer.frame_bytes
        data = self._rest + self._levelled(pcm)
        words: list[Word] = []
        whole = len(data) - len(data) % size
        for place in range(0, whole, size):
            speech = self._endpointer.process(data[place : place + size])
            words += self._understand(speech, going_on=self._endpointer.in_speech)
        self._rest = data[whole:]
        return words

    def finish(self) -> list[Word]:
        """As :meth:`Recogniser.finish`."""
        if not self._endpointer.in_speech:
            return []
        return list(self._understand(self._endpointer.end_stream(self._rest), going_on=False))

    def _levelled(self, pcm: npt.NDArray[np.float32]) -> bytes:
        """16-bit samples at an ordinary level: the voice detector has absolute thresholds."""
        kept = self._peak * (1.0 - _FORGETS_PER_S * len(pcm) / RATE_HZ)
        self._peak = max(kept, float(np.abs(pcm).max(initial=0.0)), PEAK / _LOUDEST_GAIN)
        return (pcm * (PEAK / self._peak) * 32767.0).astype("<i2").tobytes()

    def _understand(self, speech: bytes | None, *, going_on: bool) -> Iterator[Word]:
        if speech is not None:
            if self._start_s is None:
                self._start_s, self._spoken_s = float(self._endpointer.speech_start), 0.0
                self._decoder.start_utt()
            self._decoder.process_raw(speech)
            self._spoken_s += len(speech) / 2 / RATE_HZ
        if self._start_s is None or (going_on and self._spoken_s < LONGEST_UTTERANCE_S):
            return
        self._decoder.end_utt()
        yield from words_heard(self._decoder, self._start_s)
        if going_on:
            self._start_s += self._spoken_s
            self._spoken_s = 0.0
            self._decoder.start_utt()
        else:
            self._start_s = None


class Sherpa:
    """A streaming model of sherpa-onnx in a folder: a transducer, or a zipformer with CTC."""

    def __init__(self, folder: Path) -> None:
        """Raises ``extra.missing``, and ``asr.model`` when the folder holds no such model."""
        sherpa = require("sherpa_onnx", "sherpa")
        parts = {name: _newest(folder, name) for name in ("encoder", "decoder", "joiner", "model")}
        tokens = folder / "tokens.txt"
        common: dict[str, Any] = {
            "tokens": str(tokens),
            "num_threads": 1,
            "sample_rate": RATE_HZ,
            "enable_endpoint_detection": True,
            "rule3_min_utterance_length": LONGEST_UTTERANCE_S,
        }
        transducer = {name: str(parts[name]) for name in ("encoder", "decoder", "joiner") if parts[name]}
        if tokens.is_file() and len(transducer) == 3:
            make, given = sherpa.OnlineRecognizer.from_transducer, transducer
        elif tokens.is_file() and parts["model"]:
            make, given = sherpa.OnlineRecognizer.from_zipformer2_ctc, {"model": str(parts["model"])}
        else:
            raise AffectError(
                "asr.model",
                f"asr: expected tokens.txt and encoder, decoder and joiner as .onnx in '{folder}'; "
                f"take a streaming model of k2-fsa.github.io/sherpa/onnx/pretrained_models",
            )
        try:
            self._recogniser: Any = make(**given, **common)
        except (RuntimeError, ValueError) as error:
            raise AffectError(
                "asr.model", f"asr: the model in '{folder}' can't be loaded ({error})"
            ) from error
        self._stream: Any = self._recogniser.create_stream()

    def hear(self, pcm: npt.NDArray[np.float32]) -> list[Word]:
        """As :meth:`Recogniser.hear`."""
        self._stream.accept_waveform(RATE_HZ, pcm)
        self._decode()
        if not self._recogniser.is_endpoint(self._stream):
            return []
        words = self._words()
        self._recogniser.reset(self._stream)
        return words

    def finish(self) -> list[Word]:
        """As :meth:`Recogniser.finish`."""
        self._stream.input_finished()
        self._decode()
        return self._words()

    def _decode(self) -> None:
        while self._recogniser.is_ready(self._stream):
            self._recogniser.decode_stream(self._stream)

    def _words(self) -> list[Word]:
        start_s = float(self._recogniser.start_time(self._stream))
        times_s = [start_s + float(t) for t in self._recogniser.timestamps(self._stream)]
        return words_of_tokens(self._recogniser.tokens(self._stream), times_s)


def words_of_tokens(tokens: Sequence[str], times_s: Sequence[float]) -> list[Word]:
    """Pieces of words, of which the first of each begins with a space or "▁", and when each was heard."""
    found: list[tuple[str, float]] = []
    for token, time_s in zip(tokens, times_s, strict=True):
        text = token.replace("▁", " ")
        if text.startswith(" ") or not found:
            found.append((text.strip(), time_s))
        else:
            found[-1] = (found[-1][0] + text, found[-1][1])
    if not found:
        return []
    ends_s = [*(time_s for _, time_s in found[1:]), times_s[-1] + _LAST_TOKEN_S]
    return [
        Word(text.lower(), begin_s, end_s)
        for (text, begin_s), end_s in zip(found, ends_s, strict=True)
        if text
    ]


def _newest(folder: Path, name: str) -> Path | None:
    """A part of a model: int8 before fp32, because it is faster."""
    return next((p for kind in ("*.int8.onnx", "*.onnx") for p in sorted(folder.glob(name + kind))), None)


def recogniser_of(named: str) -> Recogniser:
    """What ``--asr`` names: ``pocketsphinx`` or ``sherpa:DIR``. Raises ``asr.unknown``, and as they do."""
    kind, _, folder = named.partition(":")
    if named == "pocketsphinx":
        return PocketSphinx()
    if kind == "sherpa" and folder:
        return Sherpa(Path(folder))
    raise AffectError("asr.unknown", f"asr: expected pocketsphinx or sherpa:DIR, got '{named}'")


class Listener:
    """Gives sound to a recogniser, in a thread, and pushes the words it hears."""

    def __init__(
        self,
        recogniser: Recogniser,
        stream: Stream,
        report: Callable[[str, str], None],
    ) -> None:
        """Start."""
        self._recogniser = recogniser
        self._stream = stream
        self._report = report
        self._sounds: Queue[tuple[Sound, float] | None] = Queue(_WAITING)
        self._behind = False
        self._rate_hz = RATE_HZ
        self._resampler: Any = None
        self._heard_s = 0.0
        self._end_s = 0.0
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, name="affectrt listener", daemon=True
        )
        self._thread.start()

    def hear(self, sound: Sound) -> None:
        """Take sound; never waits."""
        if sound.start_s is None:
            end_s = self._stream.now_s()
        else:
            end_s = sound.start_s + len(sound.pcm) / sound.sample_rate_hz
        try:
            self._sounds.put_nowait((sound, end_s))
            self._behind = False
        except Full:
            if not self._behind:
                self._report(
                    "asr.behind", "asr: the machine is too slow to understand all; words are missing"
                )
            self._behind = True

    def stop(self) -> None:
        """Understand what is left and end. Stopping again does nothing."""
        if self._thread is not None:
            self._sounds.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (item := self._sounds.get()) is not None:
            try:
                sound, self._end_s = item
                self._push(self._recogniser.hear(self._samples(sound)))
            except Exception as error:  # of a recogniser: the stream goes on without its words
                self._report("asr.failed", f"asr: {error!r}; nothing more is understood")
                self._drain()
                return
        try:
            self._push(self._recogniser.finish())
        except Exception as error:
            self._report("asr.failed", f"asr: {error!r}; the last words are missing")

    def _drain(self) -> None:
        while self._sounds.get() is not None:
            continue

    def _samples(self, sound: Sound) -> npt.NDArray[np.float32]:
        mono = as_mono(sound.pcm)
        if sound.sample_rate_hz != RATE_HZ:
            if self._resampler is None or sound.sample_rate_hz != self._rate_hz:
                self._rate_hz = sound.sample_rate_hz
                self._resampler = require("soxr", "media").ResampleStream(self._rate_hz, RATE_HZ, 1)
            mono = np.asarray(self._resampler.resample_chunk(mono), np.float32)
        self._heard_s += len(mono) / RATE_HZ
        return mono

    def _push(self, words: Sequence[Word]) -> None:
        # Counted back from the newest sample: pauses of a lost microphone were never heard.
        offset_s = self._end_s - self._heard_s
        for word in words:
            try:
                self._stream.push_word(Word(word.text, word.start_s + offset_s, word.end_s + offset_s))
            except AffectError as error:
                if error.code == "stream.closed":
                    return
                raise
