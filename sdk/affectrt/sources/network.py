"""A camera on the network: RTSP, HTTP and whatever else FFmpeg reads, through PyAV."""

from __future__ import annotations

from collections.abc import Generator
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from affectrt.containers import audio_stream, reason, video_stream
from affectrt.errors import require
from affectrt.sources.source import Capture, Picture, Piece, Sound, lost

TIMEOUT_S = 5.0
"""A network stream that delivers nothing for so long is lost."""

_JUMP_S = 1.0


class NetworkSource(Capture):
    """Pictures, and sound unless it comes from elsewhere, of a URL such as ``rtsp://…``.

    They are taken as captured when they come. What comes faster than time passes is slowed down.
    """

    def __init__(self, url: str, *, audio: bool = True, video: bool = True) -> None:
        parts = urlsplit(url)
        # A URL may hold a password: it is told to nobody.
        super().__init__(f"{parts.scheme} stream {parts.hostname or ''}".rstrip())
        self._url = url
        self._audio, self._video = audio, video

    def check(self) -> None:
        """Raise ``extra.missing`` without PyAV."""
        require("av", "media")

    def pieces(self) -> Generator[Piece, None, None]:
        """As :meth:`Capture.pieces`."""
        av = require("av", "media")
        # Over TCP: lost packets of UDP are seen as smeared faces.
        options = {"rtsp_transport": "tcp"} if self._url.startswith("rtsp") else {}
        try:
            with av.open(self._url, options=options, timeout=TIMEOUT_S) as container:
                streams = [
                    stream
                    for stream in (
                        video_stream(container) if self._video else None,
                        audio_stream(container) if self._audio else None,
                    )
                    if stream is not None
                ]
                if not streams:
                    raise lost("there is neither sound nor video in it that can be decoded")
                yield from self._decoded(av, container, streams)
        except (av.error.FFmpegError, OSError) as error:
            raise lost(f"it can't be read ({reason(error)}); check the address and the network") from error
        raise lost("it ended")

    def _decoded(self, av: Any, container: Any, streams: list[Any]) -> Generator[Piece, None, None]:
        resamplers: dict[tuple[str, str, int], Any] = {}
        zero_at: float | None = None
        for packet in container.demux(streams):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                continue  # one damaged packet; a stream that is gone fails in demux
            for frame in frames:
                if frame.time is not None:
                    now = perf_counter()
                    if zero_at is None or abs(zero_at + frame.time - now) > _JUMP_S + TIMEOUT_S:
                        zero_at = now - frame.time
                    ahead_s = zero_at + frame.time - now
                    if ahead_s > 0.0 and self.wait(ahead_s):
                        return
                if isinstance(frame, av.VideoFrame):
                    yield Picture(frame.to_ndarray(format="bgr24"))
                    continue
                shape = (frame.format.name, frame.layout.name, frame.sample_rate)
                if shape not in resamplers:
                    resamplers[shape] = av.AudioResampler("fltp", frame.layout, frame.sample_rate)
                frame.pts = None
                for part in resamplers[shape].resample(frame):
                    yield Sound(part.to_ndarray().mean(axis=0, dtype=np.float32), frame.sample_rate)
