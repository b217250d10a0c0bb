"""Pictures of strangers: how large one is, is read before anything is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from affectrt.errors import AffectError, require

if TYPE_CHECKING:
    from affectrt.features.frames import Image

MAX_PIXELS = 1920 * 1920
"""A picture's pixels: full HD, either way up, with some to spare."""

_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the frame header (ITU-T T.81, B.2.2). Raises ``vision.jpeg``."""
    if data[:2] == b"\xff\xd8":
        at = 2
        while at + 9 <= len(data) and data[at] == 0xFF:
            marker = data[at + 1]
            if marker in _FRAME_HEADERS:
                return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(
                    data[at + 5 : at + 7], "big"
                )
            if marker == 0xFF:  # fill bytes may stand before a marker
                at += 1
            elif marker in _ALONE:
                at += 2
            else:
                at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise _corrupt(data)


def decode_jpeg(data: bytes) -> Image:
    """BGR (H, W, 3) uint8. Raises ``vision.jpeg`` when it is none or cut off, ``vision.jpeg_size``."""
    width, height = jpeg_size(data)
    if not 0 < width * height <= MAX_PIXELS:
        raise AffectError(
            "vision.jpeg_size",
            f"vision: expected a JPEG of at most {MAX_PIXELS} pixels, got {width} x {height}; shrink it",
        )
    # The decoder would fill up what is missing with grey, as it does behind what is corrupt within. Of that
    # libjpeg tells stderr in a line, which OpenCV gives no way to catch.
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise _corrupt(data)
    cv2 = require("cv2", "media")
    frame: Image | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if frame is None:
        raise _corrupt(data)
    return frame


def _corrupt(data: bytes) -> AffectError:
    return AffectError(
        "vision.jpeg", f"vision: expected a whole JPEG, got {len(data)} bytes that are none or cut off"
    )
