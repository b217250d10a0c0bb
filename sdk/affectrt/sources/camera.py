"""A camera that is plugged in, through OpenCV."""

from __future__ import annotations

from collections.abc import Generator

from affectrt.errors import require
from affectrt.sources.source import Capture, Picture, Piece, lost


class Camera(Capture):
    """Pictures of the camera with a number, as the system counts them."""

    def __init__(self, number: int = 0) -> None:
        super().__init__(f"camera {number}")
        self._number = number

    def check(self) -> None:
        """Raise ``extra.missing`` without OpenCV."""
        cv2 = require("cv2", "media")
        # A camera that isn't there is told by an event; OpenCV's own lines would tear a dashboard.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

    def pieces(self) -> Generator[Piece, None, None]:
        """As :meth:`Capture.pieces`."""
        device = require("cv2", "media").VideoCapture(self._number)
        try:
            if not device.isOpened():
                raise lost("it can't be opened; check that it is plugged in and that no other program has it")
            while True:
                there, frame = device.read()
                if not there:
                    raise lost("it delivers no pictures any more; check its cable")
                yield Picture(frame)
        finally:
            device.release()
