"""A microphone, through sounddevice (PortAudio)."""

from __future__ import annotations

from collections.abc import Generator
from queue import Empty, Full, Queue
from typing import Any

import numpy as np
import numpy.typing as npt

from affectrt.errors import AffectError, require
from affectrt.sources.source import Capture, Piece, Sound, lost

BLOCK_S = 0.03
"""Length of the pieces in which sound comes."""

SILENT_DEVICE_S = 1.0
"""A device that delivers nothing for so long, not even silence, is lost: PortAudio doesn't tell."""

_WAITING = 300


class Microphone(Capture):
    """Sound of the input device with a name, a part of its name, or a number; ``default`` is the system's."""

    def __init__(self, device: str = "default") -> None:
        super().__init__("microphone" if device == "default" else f"microphone {device}")
        self._device: str | int | None = device
        if device == "default":
            self._device = None
        elif device.isdecimal():
            self._device = int(device)

    def check(self) -> None:
        """Raise ``extra.missing`` without sounddevice, ``source.library`` without PortAudio."""
        _sounddevice()

    def pieces(self) -> Generator[Piece, None, None]:
        """As :meth:`Capture.pieces`."""
        sound = _sounddevice()
        if self.state == "lost":
            # PortAudio lists the devices when it starts, and never again.
            sound._terminate()
            sound._initialize()
        blocks: Queue[npt.NDArray[np.float32]] = Queue(_WAITING)

        def take(pcm: npt.NDArray[np.float32], frames: int, time: object, status: object) -> None:
            try:
                blocks.put_nowait(pcm.copy())
            except Full:  # PortAudio's thread must not wait; the stream sees the gap
                return

        try:
            info = sound.query_devices(self._device, "input")
            rate_hz = round(info["default_samplerate"])
            with sound.InputStream(
                samplerate=rate_hz,
                blocksize=round(BLOCK_S * rate_hz),
                device=self._device,
                channels=min(2, info["max_input_channels"]),
                dtype="float32",
                callback=take,
            ):
                while True:
                    try:
                        yield Sound(blocks.get(timeout=SILENT_DEVICE_S), rate_hz)
                    except Empty:
                        raise lost("it delivers no sound any more; check its cable") from None
        except (sound.PortAudioError, ValueError) as error:
            raise lost(f"it can't be opened ({error}); check that it is plugged in and not in use") from error


def _sounddevice() -> Any:
    try:
        return require("sounddevice", "live")
    except OSError as error:
        raise AffectError(
            "source.library",
            f"microphone: the library PortAudio can't be loaded ({error}); install it (Debian: "
            f"apt-get install libportaudio2), or leave the microphone off",
        ) from error
