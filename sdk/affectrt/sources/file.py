"""A file as if it were happening now: each picture and sound when its time has come."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from pathlib import Path
from time import perf_counter

from affectrt.features.text import Word
from affectrt.media import AudioChunk, Media
from affectrt.sources.source import Capture, Picture, Piece, Sound, lost


class FileSource(Capture):
    """Sound and pictures of a file at real-time pace, with the file's own times; words when they are said."""

    returns = False

    def __init__(
        self,
        path: Path,
        words: Sequence[Word] = (),
        *,
        audio: bool = True,
        video: bool = True,
        max_video_rate_hz: float | None = None,
    ) -> None:
        """``words`` in order of the time they end; the others as in :meth:`affectrt.media.Media.open`."""
        super().__init__(f"file {path.name}")
        self._words = words
        self._open = partial(Media.open, path, audio=audio, video=video, max_video_rate_hz=max_video_rate_hz)

    def check(self) -> None:
        """Raise as :meth:`affectrt.media.Media.open`."""
        self._open().close()

    def pieces(self) -> Generator[Piece, None, None]:
        """As :meth:`Capture.pieces`, in order of the time at which each is over: nobody hears it before."""
        started_at = perf_counter()
        numbers = count()
        waiting: list[tuple[float, int, Piece]] = [(word.end_s, next(numbers), word) for word in self._words]
        end_s = 0.0

        def due(until_s: float) -> Generator[Piece, None, None]:
            while waiting and waiting[0][0] <= until_s:
                due_s, _, piece = heappop(waiting)
                if self.wait(max(0.0, started_at + due_s - perf_counter())):
                    return
                yield piece

        with self._open() as media:
            for item in media:
                yield from due(item.time_s)
                if self.wait(0.0):
                    return
                if isinstance(item, AudioChunk):
                    piece: Piece = Sound(item.pcm, item.sample_rate_hz, item.time_s)
                    over_s = item.time_s + len(item.pcm) / item.sample_rate_hz
                else:
                    piece, over_s = Picture(item.bgr, item.time_s), item.time_s
                end_s = max(end_s, over_s)
                heappush(waiting, (over_s, next(numbers), piece))
        # A word that ends a little after the sound was still said in it.
        waiting = [entry for entry in waiting if not isinstance(entry[2], Word) or entry[2].start_s < end_s]
        heapify(waiting)
        yield from due(inf)
        if media.warnings:
            raise lost("; ".join(media.warnings))
