"""Opening what PyAV (FFmpeg) can read, and refusing the rest with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from affectrt.errors import AffectError, require

_NOT_MEDIA = ("tty", "bin", "xbin", "idf", "adf")
"""Formats by which FFmpeg renders text files as pictures of a terminal."""


def check_file(path: Path) -> None:
    """Raise unless ``path`` is a readable file that isn't empty."""
    try:
        if not path.exists():
            raise AffectError("media.not_found", f"{path}: no such file")
        if not path.is_file():
            raise AffectError("media.not_a_file", f"{path}: expected a file, got a directory or a device")
        with path.open("rb") as file:
            if not file.read(1):
                raise AffectError("media.empty", f"{path}: the file is empty")
    except OSError as error:
        raise AffectError("media.unreadable", f"{path}: can't be read ({error.strerror})") from error


def open_container(path: Path) -> Any:
    """A PyAV container of an audio or video file.

    Raises ``media.undecodable``, and ``media.image`` for a still.
    """
    av = require("av", "media")
    try:
        # "file:" keeps FFmpeg from taking a name like "a:b.mp4" for a protocol.
        container = av.open(f"file:{path}", metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        with path.open("rb") as file:
            is_mp4 = file.read(8)[4:] == b"ftyp"
        hint = (
            "an MP4/MOV whose index is missing or damaged: it was probably cut off before it was finished"
            if is_mp4
            else "expected an audio or video file"
        )
        raise AffectError("media.undecodable", f"{path}: {hint} ({reason(error)})") from error
    formats = container.format.name.split(",")
    if any(name in _NOT_MEDIA for name in formats):
        container.close()
        raise AffectError("media.undecodable", f"{path}: this is text or data, not an audio or video file")
    if any(name == "image2" or name.endswith("_pipe") for name in formats):
        container.close()
        raise AffectError(
            "media.image",
            f"{path}: this is a still image; expected audio or video, so pass it as an image",
        )
    return container


def video_stream(container: Any) -> Any:
    """The first stream of moving pictures that can be decoded, or None. Cover art doesn't count."""
    attached = require("av.stream", "media").Disposition.attached_pic
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & attached:
            return stream
    return None


def audio_stream(container: Any) -> Any:
    """The first audio stream that can be decoded, or None."""
    for stream in container.streams.audio:
        if stream.codec_context is not None:
            return stream
    return None


def missing_bytes(path: Path) -> int:
    """How many bytes a RIFF file (WAV, AVI) lacks of the size in its header: FFmpeg doesn't tell. Else 0."""
    with path.open("rb") as file:
        head = file.read(8)
    announced = int.from_bytes(head[4:8], "little") + 8
    # Programs that write to a pipe can't know the size and leave 0 or all ones.
    if head[:4] != b"RIFF" or announced == 8 or announced >= 0xFFFFFF00:
        return 0
    return max(0, announced - path.stat().st_size)


def reason(error: Exception) -> str:
    """FFmpeg's own words."""
    return str(getattr(error, "strerror", None) or error)
