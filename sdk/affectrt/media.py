"""Audio and video files, decoded by PyAV (FFmpeg) in time order; stills by OpenCV."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from affectrt.containers import audio_stream, check_file, missing_bytes, open_container, reason, video_stream
from affectrt.errors import AffectError, require
from affectrt.features.frames import SIDE_LIMITS_PX, FrameSampler, Image, size_fits

_LOST_S = 0.3
"""A file that ends this much before its header says was cut short."""

_HEADER_KNOWS_DURATION = ("mov", "matroska", "wav", "avi", "flac", "flv")
"""Formats whose header states the duration; in others it is derived from what is there."""


@dataclass(frozen=True)
class VideoFrame:
    """One decoded picture."""

    time_s: float
    """When it is shown, in seconds from the start of the file."""
    bgr: Image
    """(H, W, 3) uint8, upright: the file's rotation is applied."""


@dataclass(frozen=True)
class AudioChunk:
    """Some consecutive samples."""

    time_s: float
    """When the first sample is heard, in seconds from the start of the file."""
    pcm: npt.NDArray[np.float32]
    """(N,) mono samples in ±1: the mean of the file's channels."""
    sample_rate_hz: int
    """Samples per second, as in the file."""


class Media:
    """An audio or video file. Iterate over it, once, for its frames and samples in time order.

    What is wrong with the file but doesn't stop the reading is told in :attr:`warnings`, complete after
    iteration.
    """

    def __init__(
        self, path: Path, containers: dict[str, Any], duration_s: float | None, format_name: str
    ) -> None:
        """Use :meth:`open`."""
        self.path = path
        self.duration_s = duration_s
        """Length that the file states, in seconds; None when it doesn't."""
        self.warnings: list[str] = []
        """For people, one line each."""
        self._containers = containers
        self._format_name = format_name
        self._end_s = 0.0
        self._whole = True
        self._sampler: FrameSampler | None = None

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *,
        max_video_rate_hz: float | None = None,
        audio: bool = True,
        video: bool = True,
    ) -> Media:
        """Open a file; ``audio=False`` or ``video=False`` leaves that stream alone.

        With ``max_video_rate_hz`` surplus frames are decoded but neither converted nor yielded.

        Raises ``media.not_found``, ``media.not_a_file``, ``media.unreadable``, ``media.empty``,
        ``media.undecodable``, ``media.image`` for a still, ``media.no_streams`` when nothing asked for is in
        it, and ``media.frame_size``.
        """
        path = Path(path)
        check_file(path)
        container = open_container(path)
        duration_s = container.duration / 1e6 if container.duration else None
        media = cls(path, {}, duration_s, container.format.name.split(",")[0])
        found = {
            "video": video_stream(container) if video else None,
            "audio": audio_stream(container) if audio else None,
        }
        size_error = media._drop_unusable(found)
        for kind, stream in found.items():
            if stream is not None:
                # One demuxer each: however badly the file is interleaved, nothing piles up in memory.
                media._containers[kind] = open_container(path) if media._containers else container
        if not media._containers:
            container.close()
            if size_error is not None:
                raise size_error
            asked = " or ".join(name for name, asked in (("audio", audio), ("video", video)) if asked)
            raise AffectError("media.no_streams", f"{path}: expected {asked}, found none that can be decoded")
        media._whole = audio and video
        if max_video_rate_hz is not None:
            media._sampler = FrameSampler(max_video_rate_hz)
        return media

    @property
    def has_audio(self) -> bool:
        """Whether audio chunks will come."""
        return "audio" in self._containers

    @property
    def has_video(self) -> bool:
        """Whether video frames will come."""
        return "video" in self._containers

    @property
    def kind(self) -> Literal["video", "audio"]:
        """``"video"`` as soon as there are pictures."""
        return "video" if self.has_video else "audio"

    def __enter__(self) -> Media:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Iterating is over then."""
        for container in self._containers.values():
            container.close()

    def __iter__(self) -> Iterator[VideoFrame | AudioChunk]:
        """Frames and chunks by time.

        Raises ``audio.not_finite`` at the first sample that is NaN or infinite, and ``media.undecodable``
        when the file turns out to hold nothing that can be decoded.
        """
        streams: list[Iterator[VideoFrame | AudioChunk]] = []
        if self.has_audio:
            streams.append(self._chunks(self._containers["audio"]))
        if self.has_video:
            streams.append(self._frames(self._containers["video"]))
        nothing = True
        for item in heapq.merge(*streams, key=lambda item: item.time_s):
            nothing = False
            yield item
        if nothing:
            raise AffectError("media.undecodable", f"{self.path}: not one frame or sample could be decoded")
        # One stream alone may rightly end before the file does.
        stated = self.duration_s if self._whole and self._format_name in _HEADER_KNOWS_DURATION else None
        missing = missing_bytes(self.path)
        if missing:
            self._warn(f"{missing} bytes of what its header announces are missing: the file was cut short")
        elif stated is not None and self._end_s < stated - _LOST_S:
            self._warn(
                f"ends at {self._end_s:.1f} s of the {stated:.1f} s it announces: the file was cut short"
            )

    def _drop_unusable(self, found: dict[str, Any]) -> AffectError | None:
        """Take a video whose frames have no usable size out of ``found``; return the error it would be."""
        stream = found["video"]
        if stream is None or size_fits(stream.codec_context.width, stream.codec_context.height):
            return None
        found["video"] = None
        low, high = SIDE_LIMITS_PX
        problem = (
            f"expected frames with sides of {low} to {high} px, "
            f"got {stream.codec_context.width}×{stream.codec_context.height}"
        )
        self._warn(f"{problem}; the video is left out")
        return AffectError("media.frame_size", f"{self.path}: {problem}")

    def _decoded(self, container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
        """(time_s, frame) of a stream as far as it can be decoded; times never run backwards."""
        errors = require("av.error", "media")
        offset_s = (container.start_time or 0) / 1e6
        time_s, broken = 0.0, 0
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except errors.FFmpegError as error:
                self._warn(f"reading {stream.type} stopped at {time_s:.1f} s ({reason(error)})")
                break
            if packet is None:
                break
            try:
                frames = packet.decode()
            except errors.FFmpegError:
                broken += 1
                continue
            for frame in frames:
                if frame.is_corrupt:
                    broken += 1
                    continue
                if frame.time is not None:
                    time_s = max(time_s, frame.time - offset_s)
                yield time_s, frame
        if broken:
            self._warn(f"{broken} damaged {stream.type} packets were left out")

    def _frames(self, container: Any) -> Iterator[VideoFrame]:
        stream = video_stream(container)
        frame_s = 1.0 / float(stream.average_rate) if stream.average_rate else 0.0
        for time_s, frame in self._decoded(container, stream):
            self._end_s = max(self._end_s, time_s + frame_s)
            if self._sampler is not None and not self._sampler.takes(time_s):
                continue
            if size_fits(frame.width, frame.height):
                yield VideoFrame(time_s, _upright(frame.to_ndarray(format="bgr24"), frame.rotation))

    def _chunks(self, container: Any) -> Iterator[AudioChunk]:
        resampler: Any = None
        shape: tuple[object, ...] = ()
        for time_s, frame in self._decoded(container, audio_stream(container)):
            if (frame.format.name, frame.layout.name, frame.sample_rate) != shape:
                shape = (frame.format.name, frame.layout.name, frame.sample_rate)
                # Only the sample format is converted: FFmpeg's own downmix to float may exceed ±1.
                resampler = require("av", "media").AudioResampler("fltp", frame.layout, frame.sample_rate)
            frame.pts = None
            parts = [part.to_ndarray() for part in resampler.resample(frame)]
            pcm = np.concatenate(parts, axis=1).mean(axis=0, dtype=np.float32)
            if not np.isfinite(pcm).all():
                at_s = time_s + int(np.flatnonzero(~np.isfinite(pcm))[0]) / frame.sample_rate
                raise AffectError(
                    "audio.not_finite",
                    f"{self.path}: the sample at {at_s:.3f} s is NaN or infinite; repair the audio first",
                )
            self._end_s = max(self._end_s, time_s + len(pcm) / frame.sample_rate)
            yield AudioChunk(time_s, pcm, frame.sample_rate)

    def _warn(self, what: str) -> None:
        self.warnings.append(f"{self.path}: {what}")


def read_audio(path: str | PathLike[str]) -> tuple[npt.NDArray[np.float32], int]:
    """The samples (N,) float32 mono and their rate of any file with sound.

    Raises as :meth:`Media.open` and iterating do. A file whose rate changes is brought to its first rate.
    """
    with Media.open(path, video=False) as media:
        chunks = [item for item in media if isinstance(item, AudioChunk)]
    rate_hz = chunks[0].sample_rate_hz
    parts = [
        chunk.pcm
        if chunk.sample_rate_hz == rate_hz
        else require("soxr", "media").resample(chunk.pcm, chunk.sample_rate_hz, rate_hz)
        for chunk in chunks
    ]
    return np.concatenate(parts), rate_hz


def read_image(path: str | PathLike[str]) -> Image:
    """A still as (H, W, 3) BGR uint8, upright.

    Raises ``media.not_found``, ``media.not_a_file``, ``media.unreadable``, ``media.empty`` or
    ``media.undecodable``.
    """
    path = Path(path)
    check_file(path)
    cv2 = require("cv2", "media")
    try:
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise AffectError(
            "media.undecodable", f"{path}: OpenCV can't decode this image ({error.err})"
        ) from error
    if image is None:
        raise AffectError(
            "media.undecodable",
            f"{path}: expected an image such as JPEG or PNG, got something else",
        )
    return np.asarray(image, np.uint8)


def _upright(bgr: Image, rotation_deg: int) -> Image:
    """Turn counterclockwise by the multiple of 90° nearest to ``rotation_deg``."""
    turns = round(rotation_deg / 90) % 4
    return np.ascontiguousarray(np.rot90(bgr, turns)) if turns else bgr
