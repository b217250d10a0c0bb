"""Vision features: the face of the person in view, framed like the faces the encoder learned from."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from affectrt.backends import Graph
from affectrt.errors import AffectError
from affectrt.features.face_detection import FaceBox, FaceDetector, cut_out, to_grey
from affectrt.features.frames import FrameSampler, Image, check_frame
from affectrt.features.sequence import FeatureSequence, FloatArray

_STILL_IS_CROP_PX = 112
"""A still whose longer side is at most this is a face crop already, as face data sets hold them."""

_SEARCH_EVERY = 2
"""While no face is known, only every second sampled frame is searched whole: that search is the dear part."""
_LOOK_AROUND_S = 1.0
"""How often the whole frame is searched although a face is known: it may be the wrong one."""
_BIGGER = 1.4
"""Another face takes over when its side is this many times the known one's: the nearest person counts."""
_HOLD_S = 1.0
"""How long a face that the detector misses (turned, covered) is followed by its looks."""
_LOOKS_ALIKE = 0.65
"""Normalised correlation from which a patch is still the same face."""
_SNAP = 0.3
"""A jump of more than this share of the box is taken as it is; smaller ones are smoothed."""
_SMOOTH_POSITION, _SMOOTH_SIDE, _SMOOTH_ROLL = 0.6, 0.3, 0.3
_EYES_EVERY = 3
_MAX_BACKWARDS_S = 1.0


@dataclass(frozen=True)
class VisionConfig:
    """Face crop parameters, as in a bundle's manifest."""

    crop_px: int = 48
    """Side of the square crop."""
    rate_hz: float = 10.0
    """At most so many frames a second are looked at."""
    face_scale: float = 1.03
    """Side of the crop over the side of the detector's box: 1.03 is how the faces of FER+ are framed."""


DEFAULT_CONFIG = VisionConfig()


@dataclass(frozen=True)
class FaceCrop:
    """One face, cut out and levelled."""

    grey: Image
    """(crop_px, crop_px) uint8."""
    box: FaceBox
    """Where it was in the frame."""
    time_s: float
    """When the frame was captured, in seconds."""


def crop_face(image: Image, config: VisionConfig = DEFAULT_CONFIG) -> FaceCrop | None:
    """The largest face of a still, grey (H, W) or BGR (H, W, 3) uint8, at time 0; None when there is none.

    An image whose longer side is at most 112 px is itself the crop. Raises ``vision.frame_shape``.
    """
    grey = to_grey(check_frame(image))
    height, width = grey.shape
    if max(height, width) <= _STILL_IS_CROP_PX:
        box = FaceBox(width / 2, height / 2, float(min(height, width)), 0.0)
        return FaceCrop(cut_out(grey, box, 1.0, config.crop_px), box, 0.0)
    detector = FaceDetector()
    found = detector.find_in_still(grey)
    if found is None:
        return None
    roll = detector.roll_deg(grey, found)
    box = found if roll is None else found.with_roll(roll)
    return FaceCrop(cut_out(grey, box, config.face_scale, config.crop_px), box, 0.0)


class FaceTracker:
    """Follows one face through a video: the detector near where it was, its looks when the detector misses.

    A face is believed from the second look on, so that a pattern that resembles one for a single frame never
    counts.
    """

    def __init__(self, config: VisionConfig = DEFAULT_CONFIG) -> None:
        self.config = config
        self._detector = FaceDetector()
        self._box: FaceBox | None = None
        self._looks: Image | None = None
        self._confirmed = False
        self._seen_s = self._looked_around_s = 0.0
        self._updates = 0

    def update(self, frame: Image, time_s: float) -> FaceCrop | None:
        """The face in ``frame``, grey (H, W) or BGR (H, W, 3) uint8, or None. Times must not run backwards.

        Raises ``vision.frame_shape``.
        """
        grey = to_grey(check_frame(frame))
        self._updates += 1
        if self._box is not None and not self._follow(grey, time_s):
            self._box = None
        if self._box is None:
            if self._updates % _SEARCH_EVERY == 0 or self._updates == 1:
                self._adopt(self._detector.find(grey), grey, time_s)
            return None
        if not self._confirmed:
            return None
        if self._updates % _EYES_EVERY == 0:
            roll = self._detector.roll_deg(grey, self._box)
            if roll is not None:
                was = self._box.roll_deg
                self._box = self._box.with_roll(was + _SMOOTH_ROLL * (roll - was))
        crop = cut_out(grey, self._box, self.config.face_scale, self.config.crop_px)
        return FaceCrop(crop, self._box, time_s)

    def _adopt(self, found: FaceBox | None, grey: Image, time_s: float) -> None:
        self._box, self._confirmed = found, False
        self._seen_s = self._looked_around_s = time_s
        if found is not None:
            self._looks = self._detector.looks(grey, found)

    def _follow(self, grey: Image, time_s: float) -> bool:
        """Move the box to where the face is now; False when it is lost."""
        assert self._box is not None and self._looks is not None
        if self._confirmed and time_s - self._looked_around_s >= _LOOK_AROUND_S:
            self._looked_around_s = time_s
            # The detector's sides of one face differ by a tenth: what is sure to be smaller isn't searched.
            biggest = self._detector.find(grey, least_side_px=0.9 * _BIGGER * self._box.side_px)
            if biggest is not None and biggest.side_px > _BIGGER * self._box.side_px:
                self._adopt(biggest, grey, time_s)
                return True
        found = self._detector.find_near(grey, self._box)
        if found is not None:
            self._box = _smoothed(self._box, found)
            self._looks = self._detector.looks(grey, found)
            self._seen_s, self._confirmed = time_s, True
            return True
        if not self._confirmed or time_s - self._seen_s > _HOLD_S:
            return False
        moved, alike = self._detector.find_alike(grey, self._box, self._looks)
        self._box = _smoothed(self._box, moved)
        return alike >= _LOOKS_ALIKE


def _smoothed(old: FaceBox, new: FaceBox) -> FaceBox:
    """Between two boxes, nearer to the new one; all the way after a jump. The roll is the old one's."""
    jump = max(abs(new.centre_x_px - old.centre_x_px), abs(new.centre_y_px - old.centre_y_px))
    if jump > _SNAP * old.side_px or abs(new.side_px - old.side_px) > _SNAP * old.side_px:
        return new.with_roll(old.roll_deg)
    return FaceBox(
        old.centre_x_px + _SMOOTH_POSITION * (new.centre_x_px - old.centre_x_px),
        old.centre_y_px + _SMOOTH_POSITION * (new.centre_y_px - old.centre_y_px),
        old.side_px + _SMOOTH_SIDE * (new.side_px - old.side_px),
        old.roll_deg,
    )


@dataclass
class _Seen:
    crop: FaceCrop
    state: FloatArray | None = None
    """(dim,), once some window asked for it."""
    given: bool = False
    """Whether :meth:`VisionFeatures.until` gave it."""


class VisionFeatures:
    """The vision modality of one person: takes frames as they come, gives states for any recent window.

    No face is an absent modality, not an error. One object per stream; not to be shared between threads.
    """

    def __init__(self, config: VisionConfig, graph: Graph, dim: int, *, keep_s: float = 60.0) -> None:
        """``graph``: ``faces`` (N, crop_px, crop_px) float32 in [0, 1] → ``states`` (N, ``dim``).

        Faces older than ``keep_s`` before the newest one are forgotten.
        """
        self.config = config
        self._graph = graph
        self._dim = dim
        self._keep_s = keep_s
        self._tracker = FaceTracker(config)
        self._sampler = FrameSampler(config.rate_hz)
        self._newest_s = -np.inf
        self._seen: deque[_Seen] = deque()

    def push_frame(self, bgr: npt.NDArray[Any], time_s: float) -> None:
        """Take a frame, BGR (H, W, 3) or grey (H, W) uint8; surplus ones above ``rate_hz`` are left out.

        Raises ``vision.frame_shape``, and ``vision.backwards_time`` for one more than a second older than the
        newest; a refused frame changes nothing.
        """
        frame = check_frame(bgr)
        if not np.isfinite(time_s) or time_s < self._newest_s - _MAX_BACKWARDS_S:
            raise AffectError(
                "vision.backwards_time",
                f"vision: a frame of {time_s:.3f} s came after one of {self._newest_s:.3f} s; "
                f"push frames in time order",
            )
        self._newest_s = max(self._newest_s, time_s)
        if not self._sampler.takes(time_s):
            return
        crop = self._tracker.update(frame, time_s)
        if crop is not None:
            self.push_face(crop)

    def push_face(self, crop: FaceCrop) -> None:
        """Take a face that the caller cut out, :func:`crop_face` of a still for one."""
        self._seen.append(_Seen(crop))
        while self._seen[0].crop.time_s < crop.time_s - self._keep_s:
            self._seen.popleft()

    def window(self, start_s: float, end_s: float) -> FeatureSequence:
        """States (N, dim) of the faces seen in ``start_s < time <= end_s``, with their frames' times."""
        return self._states([seen for seen in self._seen if start_s < seen.crop.time_s <= end_s])

    def until(self, time_s: float) -> FeatureSequence:
        """States (N, dim) of the faces seen by then that it has not given yet, for causal models."""
        fresh = [seen for seen in self._seen if not seen.given and seen.crop.time_s <= time_s]
        for seen in fresh:
            seen.given = True
        return self._states(fresh)

    def _states(self, inside: list[_Seen]) -> FeatureSequence:
        if not inside:
            return FeatureSequence.empty("vision", self._dim, "face encoder")
        new = [seen for seen in inside if seen.state is None]
        if new:
            faces = np.stack([seen.crop.grey for seen in new]).astype(np.float32) / np.float32(255)
            (states,) = self._graph(faces=faces)
            for seen, state in zip(new, states, strict=True):
                seen.state = state
        values = np.stack([seen.state for seen in inside if seen.state is not None])
        return FeatureSequence(
            "vision", values, np.array([seen.crop.time_s for seen in inside]), "face encoder"
        )
