"""Finding and following a face, crops framed alike, and windows of encoder states."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from affectrt.errors import AffectError
from affectrt.features.face_detection import FaceBox, cut_out
from affectrt.features.frames import FrameSampler
from affectrt.features.vision import FaceCrop, FaceTracker, VisionConfig, VisionFeatures, crop_face
from affectrt.media import Media, VideoFrame

DIM = 4
DEMO = Path(__file__).parents[2] / "demo" / "clip.mp4"
DATA = os.environ.get("AFFECTRT_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="AFFECTRT_DATA doesn't name the development data")

Image = npt.NDArray[np.uint8]


@cache
def frames_of(path: Path) -> list[VideoFrame]:
    with Media.open(path, audio=False, max_video_rate_hz=10) as media:
        return [item for item in media if isinstance(item, VideoFrame)]


@pytest.fixture
def face() -> Image:
    """The first frame of the demo clip: one portrait."""
    return frames_of(DEMO)[0].bgr


def background(height: int = 400, width: int = 400) -> Image:
    """A picture without a face."""
    rng = np.random.default_rng(0)
    return np.asarray(cv2.resize(rng.integers(0, 256, (20, 20, 3), np.uint8), (width, height)), np.uint8)


def corner_states(**inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """A graph of the face encoder's signature."""
    faces = inputs["faces"]
    assert faces.dtype == np.float32
    assert faces.min() >= 0
    assert faces.max() <= 1
    return (np.ascontiguousarray(faces[:, 0, :DIM]),)


def follow(frames: list[Image]) -> list[FaceCrop | None]:
    tracker = FaceTracker()
    return [tracker.update(frame, index / 10) for index, frame in enumerate(frames)]


def moved(image: Image, dx: float, dy: float = 0.0, turn_deg: float = 0.0) -> Image:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn_deg, 1.0)
    matrix[:, 2] += dx, dy
    return np.asarray(
        cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def test_a_still_is_cropped_around_its_face(face: Image) -> None:
    crop = crop_face(face)
    assert crop is not None
    assert crop.grey.shape == (48, 48) and crop.grey.dtype == np.uint8
    height, width = face.shape[:2]
    assert 0 < crop.box.centre_x_px < width and 0 < crop.box.centre_y_px < height
    assert abs(crop.box.roll_deg) < 10
    grey = crop_face(np.asarray(cv2.cvtColor(face, cv2.COLOR_BGR2GRAY), np.uint8))
    assert grey is not None
    np.testing.assert_array_equal(grey.grey, crop.grey)


def test_the_crop_moves_scales_and_levels_with_the_face(face: Image) -> None:
    first = crop_face(face)
    assert first is not None
    doubled = crop_face(np.asarray(cv2.resize(face, None, fx=2, fy=2), np.uint8))
    assert doubled is not None
    assert doubled.box.side_px == pytest.approx(2 * first.box.side_px, rel=0.1)
    tilted = crop_face(moved(face, 12, 0, turn_deg=-10))
    assert tilted is not None
    # OpenCV turns counterclockwise for positive angles; our roll grows as the line falls to the right.
    assert tilted.box.roll_deg - first.box.roll_deg == pytest.approx(10, abs=5)


def test_a_small_image_is_itself_the_crop() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)
    crop = crop_face(picture)
    assert crop is not None
    np.testing.assert_array_equal(crop.grey, picture)


def test_a_still_without_a_face_has_no_crop() -> None:
    assert crop_face(background()) is None


def test_cut_out_is_where_the_box_is() -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    crop = cut_out(ramp, FaceBox(100.0, 80.0, 96.0, 0.0), 1.0, 48)
    # Column c of the crop averages columns 52 + 2c and 53 + 2c.
    np.testing.assert_allclose(crop[10], 52.5 + 2 * np.arange(48), atol=1)
    beyond = cut_out(ramp, FaceBox(0.0, 0.0, 100.0, 0.0), 1.0, 48)
    assert (beyond[:, :20] == 0).all()


def test_the_tracker_follows_a_face_that_moves(face: Image) -> None:
    width = face.shape[1]
    wide = np.pad(face, ((0, 0), (width // 2, width // 2), (0, 0)), mode="edge")
    shifts = [4.0 * step for step in range(12)]
    crops = follow([moved(wide, shift) for shift in shifts])
    assert crops[0] is None, "one look is not enough"
    boxes = [crop.box for crop in crops[1:] if crop is not None]
    assert len(boxes) == len(shifts) - 1
    travelled = boxes[-1].centre_x_px - boxes[0].centre_x_px
    assert travelled == pytest.approx(shifts[-1] - shifts[1], abs=8)


def test_the_tracker_drops_a_face_that_is_gone_and_finds_it_again(face: Image) -> None:
    empty = background(*face.shape[:2])
    crops = follow([face] * 5 + [empty] * 5 + [face] * 5)
    present = [crop is not None for crop in crops]
    assert all(present[1:5])
    assert not any(present[5:10])
    assert all(present[12:])


def test_a_face_that_the_detector_misses_is_held_by_its_looks(face: Image) -> None:
    found = crop_face(face)
    assert found is not None
    covered = face.copy()
    # A bar over the eyes blinds the detector; the rest of the face stays.
    left = round(found.box.centre_x_px - found.box.side_px / 2)
    top = round(found.box.centre_y_px - 0.2 * found.box.side_px)
    covered[top : top + round(0.12 * found.box.side_px), left : left + round(found.box.side_px)] = 0
    assert follow([covered] * 3)[-1] is None, "the bar is meant to blind the detector"
    crops = follow([face] * 5 + [covered] * 30)
    assert all(crop is not None for crop in crops[5:12])
    assert crops[-1] is None, "held for a second, not for ever"


def test_the_demo_clip_loses_and_regains_its_face() -> None:
    crops = follow([frame.bgr for frame in frames_of(DEMO)])
    share = np.mean([crop is not None for crop in crops])
    assert 0.6 < share < 0.95


def clip(name: str) -> list[VideoFrame]:
    return frames_of(Path(str(DATA)) / "clips" / name)


@needs_data
@pytest.mark.parametrize("name", [f"talk_0{number}.mp4" for number in range(1, 7)])
def test_real_talking_faces_are_found(name: str) -> None:
    crops = follow([frame.bgr for frame in clip(name)])
    assert np.mean([crop is not None for crop in crops]) >= 0.95


@needs_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no_face.mp4", lambda time_s: False),
        ("face_then_none.mov", lambda time_s: time_s < 2.4),
        ("none_then_face.mov", lambda time_s: time_s > 4.0),
    ],
)
def test_real_faces_come_and_go(name: str, expected: Callable[[float], bool]) -> None:
    frames = clip(name)
    crops = follow([frame.bgr for frame in frames])
    wrong = [
        frame.time_s
        for frame, crop in zip(frames, crops, strict=True)
        if (crop is not None) != expected(frame.time_s)
    ]
    assert len(wrong) < 5, wrong


def test_the_sampler_takes_the_first_frame_of_every_slot() -> None:
    sampler = FrameSampler(10)
    times = [index / 25 for index in range(50)]
    taken = [time_s for time_s in times if sampler.takes(time_s)]
    assert len(taken) == 20
    slow = FrameSampler(10)
    assert all(slow.takes(index / 5) for index in range(10))
    exact = FrameSampler(10)
    assert all(exact.takes(index * 0.1) for index in range(1000))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((10, 10_000, 3), np.uint8),
        np.zeros((10_000, 10, 3), np.uint8),
        np.zeros((480, 640, 4), np.uint8),
        np.zeros((480, 640, 3), np.float32),
        np.zeros(100, np.uint8),
        np.zeros((0, 0, 3), np.uint8),
    ],
)
def test_what_is_no_frame_is_refused(frame: npt.NDArray[Any], face: Image) -> None:
    features = VisionFeatures(VisionConfig(), corner_states, DIM)
    with pytest.raises(AffectError, match="expected a frame") as caught:
        features.push_frame(frame, 0.0)
    assert caught.value.code == "vision.frame_shape"
    with pytest.raises(AffectError, match="expected a frame"):
        crop_face(frame)
    # The stream goes on.
    features.push_frame(face, 0.0)
    features.push_frame(face, 0.1)
    assert len(features.window(0, 1)) == 1


def test_windows_hold_the_sampled_faces(face: Image) -> None:
    calls: list[int] = []

    def counted(**inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        calls.append(len(inputs["faces"]))
        return corner_states(**inputs)

    features = VisionFeatures(VisionConfig(), counted, DIM)
    assert len(features.window(0, 1)) == 0
    for index in range(50):
        features.push_frame(face, index / 25)
    window = features.window(0.5, 1.5)
    assert window.modality == "vision"
    assert window.values.shape == (10, DIM)
    assert window.times_s[0] > 0.5 and window.times_s[-1] <= 1.5
    again = features.window(1.0, 2.0)
    np.testing.assert_array_equal(again.between(1.0, 1.5).values, window.between(1.0, 1.5).values)
    # A face is encoded once, however many windows look at it.
    assert calls == [10, len(again) - len(again.between(1.0, 1.5))]
    assert features.window(5, 6).values.shape == (0, DIM)


def test_time_must_not_run_backwards(face: Image) -> None:
    features = VisionFeatures(VisionConfig(), corner_states, DIM)
    features.push_frame(face, 10.0)
    features.push_frame(face, 9.9)
    for time_s in (5.0, float("nan")):
        with pytest.raises(AffectError, match="time order") as caught:
            features.push_frame(face, time_s)
        assert caught.value.code == "vision.backwards_time"


def test_old_faces_are_forgotten(face: Image) -> None:
    features = VisionFeatures(VisionConfig(), corner_states, DIM, keep_s=1.0)
    crop = crop_face(face)
    assert crop is not None
    for second in range(5):
        features.push_face(FaceCrop(crop.grey, crop.box, float(second)))
    np.testing.assert_array_equal(features.window(-1, 10).times_s, [3, 4])
