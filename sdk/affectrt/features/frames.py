"""What counts as a video frame, and which frames are looked at."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from affectrt.errors import AffectError

Image: TypeAlias = npt.NDArray[np.uint8]

SIDE_LIMITS_PX = (16, 8192)
"""A frame's sides lie between these: below there is no face to see, above it is no camera's picture."""


def size_fits(width: int, height: int) -> bool:
    """Whether a frame of this size can be taken."""
    low, high = SIDE_LIMITS_PX
    return low <= width <= high and low <= height <= high


def check_frame(frame: npt.NDArray[np.generic]) -> Image:
    """The frame itself if it is grey (H, W) or BGR (H, W, 3), uint8, of a usable size.

    Raises ``vision.frame_shape``.
    """
    shape_fits = frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 3)
    if not (shape_fits and frame.dtype == np.uint8 and size_fits(frame.shape[1], frame.shape[0])):
        low, high = SIDE_LIMITS_PX
        raise AffectError(
            "vision.frame_shape",
            f"vision: expected a frame (H, W) or BGR (H, W, 3) uint8 with sides of {low} to {high} px, "
            f"got {frame.shape} {frame.dtype}",
        )
    return np.ascontiguousarray(frame, dtype=np.uint8)


class FrameSampler:
    """Chooses at most ``rate_hz`` frames a second: the first one in every slot of ``1 / rate_hz`` seconds."""

    def __init__(self, rate_hz: float) -> None:
        self._rate_hz = rate_hz
        self._slot: int | None = None

    def takes(self, time_s: float) -> bool:
        """Whether the frame captured at ``time_s`` is to be looked at; times don't run backwards."""
        # A frame may be stamped a hair before the slot it belongs to.
        slot = int(np.floor(time_s * self._rate_hz + 1e-3))
        if self._slot is not None and slot <= self._slot:
            return False
        self._slot = slot
        return True
