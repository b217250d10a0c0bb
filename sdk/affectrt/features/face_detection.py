"""Finding a face in a grey picture with OpenCV's Haar cascades, and cutting it out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import atan2, degrees
from pathlib import Path
from typing import Any

import numpy as np

from affectrt.errors import AffectError, require
from affectrt.features.frames import Image

_SEARCH_SIDE_PX = 320
"""The longer side of the picture that is searched whole."""
_NEAR_SIDE_PX = 64
"""Side of the known face when only its surroundings are searched."""
_SMALLEST_SHARE = 0.08
"""Faces smaller than this share of the picture's longer side are left alone."""
_EYES_SIDE_PX = 112
_LOOKS_SIDE_PX = 32
_MAX_ROLL_DEG = 25.0


@dataclass(frozen=True)
class FaceBox:
    """A square around a face, in pixels of the frame it was found in."""

    centre_x_px: float
    """From the left edge of the frame."""
    centre_y_px: float
    """From the top edge of the frame."""
    side_px: float
    """Width and height."""
    roll_deg: float
    """How far the line through the eyes falls to the right; 0 is level."""

    def with_roll(self, roll_deg: float) -> FaceBox:
        """The same square, turned."""
        return replace(self, roll_deg=roll_deg)


def to_grey(frame: Image) -> Image:
    """Grey (H, W) of a BGR (H, W, 3) frame; a grey one as it is."""
    if frame.ndim == 2:
        return frame
    cv2 = require("cv2", "media")
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), np.uint8)


def cut_out(grey: Image, box: FaceBox, scale: float, crop_px: int) -> Image:
    """The square of ``scale`` times the box's side, levelled: (crop_px, crop_px) uint8.

    What lies beyond the frame repeats its edge.
    """
    cv2 = require("cv2", "media")
    side = box.side_px * scale
    # Turned at about its own resolution and then averaged down: one step straight to 48 px would alias.
    fine_px = crop_px * int(np.clip(round(side / crop_px), 1, 8))
    turn = cv2.getRotationMatrix2D(
        (box.centre_x_px - 0.5, box.centre_y_px - 0.5), box.roll_deg, fine_px / side
    )
    turn[:, 2] += (fine_px - 1) / 2 - np.array([box.centre_x_px - 0.5, box.centre_y_px - 0.5])
    fine = cv2.warpAffine(
        grey, turn, (fine_px, fine_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(cv2.resize(fine, (crop_px, crop_px), interpolation=cv2.INTER_AREA), np.uint8)


class FaceDetector:
    """Haar cascades for frontal faces and eyes. Holds buffers of its own: one per thread."""

    @cached_property
    def _faces(self) -> Any:
        return _cascade("haarcascade_frontalface_alt2.xml")

    @cached_property
    def _eyes(self) -> Any:
        return _cascade("haarcascade_eye.xml")

    def find(
        self, grey: Image, search_side_px: int = _SEARCH_SIDE_PX, *, least_side_px: float = 0.0
    ) -> FaceBox | None:
        """The largest face of the whole picture (H, W); smaller ones than ``least_side_px`` cost no time."""
        small, scale = _shrunk(grey, search_side_px)
        smallest = max(20, round(_SMALLEST_SHARE * max(small.shape)), round(least_side_px * scale))
        boxes = self._faces.detectMultiScale(small, 1.1, 4, minSize=(smallest, smallest))
        return _largest(boxes, scale, 0, 0)

    def find_in_still(self, grey: Image) -> FaceBox | None:
        """As :meth:`find`, trying harder: finer, and with a margin around a face that fills the picture."""
        found = self.find(grey) or self.find(grey, 2 * _SEARCH_SIDE_PX)
        if found is not None:
            return found
        margin = max(grey.shape) // 3
        framed = self.find(np.pad(grey, margin, mode="edge"))
        if framed is None:
            return None
        return replace(
            framed, centre_x_px=framed.centre_x_px - margin, centre_y_px=framed.centre_y_px - margin
        )

    def find_near(self, grey: Image, box: FaceBox) -> FaceBox | None:
        """A face of about the same size around ``box``."""
        around, left, top = _around(grey, box, 1.8)
        small, scale = _shrunk(around, round(_NEAR_SIDE_PX * max(around.shape) / box.side_px))
        side = box.side_px * scale
        low, high = round(0.75 * side), round(1.35 * side)
        boxes = self._faces.detectMultiScale(small, 1.08, 3, minSize=(low, low), maxSize=(high, high))
        return _largest(boxes, scale, left, top)

    def looks(self, grey: Image, box: FaceBox) -> Image:
        """A small picture of the face, for :meth:`find_alike`."""
        return cut_out(grey, box.with_roll(0.0), 0.9, _LOOKS_SIDE_PX)

    def find_alike(self, grey: Image, box: FaceBox, looks: Image) -> tuple[FaceBox, float]:
        """Where around ``box`` it looks most like ``looks``, and the normalised correlation there."""
        cv2 = require("cv2", "media")
        reach = 1.8
        size = round(_LOOKS_SIDE_PX * reach / 0.9)
        around = cut_out(grey, box.with_roll(0.0), reach, size)
        match = cv2.matchTemplate(around, looks, cv2.TM_CCOEFF_NORMED)
        _, alike, _, (column, row) = cv2.minMaxLoc(match)
        px = box.side_px * reach / size
        centre = (size - _LOOKS_SIDE_PX) / 2
        moved = replace(
            box,
            centre_x_px=box.centre_x_px + (column - centre) * px,
            centre_y_px=box.centre_y_px + (row - centre) * px,
        )
        return moved, float(alike)

    def roll_deg(self, grey: Image, box: FaceBox) -> float | None:
        """The roll of the line through both eyes, None unless both are found where eyes can be."""
        face = cut_out(grey, box.with_roll(0.0), 1.0, _EYES_SIDE_PX)
        unit = _EYES_SIDE_PX
        upper = face[round(0.1 * unit) : round(0.65 * unit)]
        low, high = round(0.15 * unit), round(0.4 * unit)
        boxes = self._eyes.detectMultiScale(upper, 1.1, 3, minSize=(low, low), maxSize=(high, high))
        centres = [((x + w / 2) / unit, (y + h / 2) / unit + 0.1) for x, y, w, h in boxes]
        pairs = [
            (abs(left[0] - 0.31) + abs(right[0] - 0.69) + abs(left[1] + right[1] - 0.78), left, right)
            for left in centres
            for right in centres
            if left[0] < 0.47 and right[0] > 0.53 and 0.27 < right[0] - left[0] < 0.55
        ]
        if not pairs:
            return None
        _, left, right = min(pairs)
        roll = degrees(atan2(right[1] - left[1], right[0] - left[0]))
        return roll if abs(roll) <= _MAX_ROLL_DEG else None


def _cascade(name: str) -> Any:
    cv2 = require("cv2", "media")
    cascade = cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / name))
    if cascade.empty():
        raise AffectError(
            "vision.cascade", f"vision: OpenCV can't load its cascade '{name}'; reinstall OpenCV"
        )
    return cascade


def _shrunk(grey: Image, side_px: int) -> tuple[Image, float]:
    """The picture with its longer side at most ``side_px``, and its scale."""
    scale = side_px / max(grey.shape)
    if scale >= 1:
        return grey, 1.0
    cv2 = require("cv2", "media")
    size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8), scale


def _around(grey: Image, box: FaceBox, reach: float) -> tuple[Image, int, int]:
    """The part of the picture within ``reach`` box sides, with its left and top edge."""
    half = box.side_px * reach / 2
    height, width = grey.shape
    # A face that is followed out of the picture still leaves a strip to look at.
    left = int(np.clip(round(box.centre_x_px - half), 0, width - 1))
    top = int(np.clip(round(box.centre_y_px - half), 0, height - 1))
    right, bottom = round(box.centre_x_px + half), round(box.centre_y_px + half)
    return grey[top : max(bottom, top + 1), left : max(right, left + 1)], left, top


def _largest(boxes: Any, scale: float, left: int, top: int) -> FaceBox | None:
    """The largest of the detector's (x, y, w, h), in pixels of the whole frame."""
    if len(boxes) == 0:
        return None
    x, y, w, h = max(boxes, key=lambda found: int(found[2]))
    return FaceBox(left + (x + w / 2) / scale, top + (y + h / 2) / scale, float(w) / scale, 0.0)
