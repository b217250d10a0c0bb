"""Makes the demo clip: ``clip.mp4`` and its transcript ``clip.srt``, beside this file.

The portrait is scikit-image's ``astronaut`` (Eileen Collins, NASA, public domain), the voice is espeak-ng. A
virtual camera sways over the picture and once tilts away, so that the face leaves and comes back. Both files
are committed; remaking them needs two things the project does not depend on::

    apt-get install espeak-ng && pip install scikit-image
    python demo/make_clip.py
"""

from __future__ import annotations

import argparse
import io
import math
import subprocess
import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

FRAME_PX = 320
FRAME_RATE_HZ = 25
H264_OPTIONS = {"crf": "27", "preset": "veryslow"}
SAMPLE_RATE_HZ = 22_050  # what espeak-ng's English voices speak at

FACE_CENTRE_PX = (222.0, 118.0)  # in the 512 x 512 portrait
AWAY_CENTRE_PX = (300.0, 400.0)  # the suit: nothing there looks like a face
VIEW_PX = 215.0  # side of the portrait's part that fills the frame

AWAY_S = (9.6, 12.6)
"""Start and end of the part without a face."""
PAN_S = 0.4
"""How long the camera takes to leave, and to come back."""


@dataclass(frozen=True)
class Line:
    """One spoken sentence."""

    text: str
    pause_s: float
    """Silence before it."""
    pitch: int
    """0 to 99, espeak-ng's ``-p``."""
    words_per_minute: int
    loudness: int
    """0 to 200, espeak-ng's ``-a``."""


LINES = (
    Line("I loved every minute of it, it was wonderful!", 0.6, 75, 165, 130),
    Line("The train home leaves at nine.", 0.9, 50, 160, 90),
    Line("And then they cancelled it. I am so disappointed.", 1.2, 30, 135, 70),
    Line("Nobody told us, that is outrageous!", 1.0, 60, 185, 150),
    Line("Oh well, at least we are together, and I am happy about that.", 1.2, 65, 160, 110),
)
TAIL_S = 0.8


@dataclass(frozen=True)
class Cue:
    """When a sentence is heard."""

    text: str
    start_s: float
    end_s: float


def speak(line: Line) -> npt.NDArray[np.int16]:
    """The sentence as (n,) samples, silence at both ends cut off."""
    command = ["espeak-ng", "--stdout", "-v", "en-us+f3", "-p", str(line.pitch)]
    command += ["-s", str(line.words_per_minute), "-a", str(line.loudness), line.text]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(spoken)) as file:
        if file.getframerate() != SAMPLE_RATE_HZ or file.getnchannels() != 1:
            raise SystemExit(f"espeak-ng: expected mono at {SAMPLE_RATE_HZ} Hz, got {file.getparams()}")
        # A streamed WAV does not know its length, so read by bytes, not by the header's count.
        samples = np.frombuffer(file.readframes(len(spoken)), np.int16)
    heard = np.flatnonzero(np.abs(samples.astype(np.int32)) > 200)
    return samples[heard[0] : heard[-1] + 1]


def soundtrack(lines: tuple[Line, ...]) -> tuple[npt.NDArray[np.int16], list[Cue]]:
    """All sentences with their pauses, (n,), and when each is heard."""
    parts: list[npt.NDArray[np.int16]] = []
    cues: list[Cue] = []
    position = 0
    for line in lines:
        silence = np.zeros(round(line.pause_s * SAMPLE_RATE_HZ), np.int16)
        samples = speak(line)
        start = position + len(silence)
        position = start + len(samples)
        parts += [silence, samples]
        cues.append(Cue(line.text, start / SAMPLE_RATE_HZ, position / SAMPLE_RATE_HZ))
    parts.append(np.zeros(round(TAIL_S * SAMPLE_RATE_HZ), np.int16))
    return np.concatenate(parts), cues


def _ease(x: float) -> float:
    x = min(max(x, 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


def camera(time_s: float) -> npt.NDArray[np.float64]:
    """The (2, 3) affine map from portrait to frame at one moment: sway, roll, zoom, and the look away."""
    away = _ease((time_s - AWAY_S[0]) / PAN_S + 1.0) - _ease((time_s - AWAY_S[1]) / PAN_S)
    sway_x = 12.0 * math.sin(2 * math.pi * time_s / 5.3)
    sway_y = 7.0 * math.sin(2 * math.pi * time_s / 3.7 + 1.0)
    x = FACE_CENTRE_PX[0] + sway_x + away * (AWAY_CENTRE_PX[0] - FACE_CENTRE_PX[0])
    y = FACE_CENTRE_PX[1] + sway_y + away * (AWAY_CENTRE_PX[1] - FACE_CENTRE_PX[1])
    roll_deg = 4.0 * math.sin(2 * math.pi * time_s / 6.1)
    scale = FRAME_PX / VIEW_PX * (1.0 + 0.08 * math.sin(2 * math.pi * time_s / 7.9))
    matrix = np.asarray(cv2.getRotationMatrix2D((x, y), roll_deg, scale), np.float64)
    matrix[:, 2] += FRAME_PX / 2 - np.array([x, y])
    return matrix


def write_clip(path: Path, portrait: npt.NDArray[np.uint8], samples: npt.NDArray[np.int16]) -> None:
    """H.264 and AAC in an mp4. ``portrait`` is (H, W, 3) RGB, ``samples`` is (n,) mono."""
    with av.open(path, "w") as container:
        video = container.add_stream(
            "libx264", rate=FRAME_RATE_HZ, options={"crf": "27", "preset": "veryslow"}
        )
        video.width = video.height = FRAME_PX
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        audio.bit_rate = 48_000
        for index in range(len(samples) * FRAME_RATE_HZ // SAMPLE_RATE_HZ):
            picture = cv2.warpAffine(
                portrait,
                camera(index / FRAME_RATE_HZ),
                (FRAME_PX, FRAME_PX),
                flags=cv2.INTER_AREA,
                borderMode=cv2.BORDER_REPLICATE,
            )
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE_HZ)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(samples[None, :], format="s16", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE_HZ, 0, Fraction(1, SAMPLE_RATE_HZ)
        container.mux(audio.encode(sound))
        container.mux(audio.encode())


def _timestamp(time_s: float) -> str:
    whole_ms = round(time_s * 1000)
    minutes, rest_ms = divmod(whole_ms, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest_ms // 1000:02},{rest_ms % 1000:03}"


def write_transcript(path: Path, cues: list[Cue]) -> None:
    """The cues as SubRip."""
    blocks = [
        f"{number}\n{_timestamp(cue.start_s)} --> {_timestamp(cue.end_s)}\n{cue.text}\n"
        for number, cue in enumerate(cues, start=1)
    ]
    path.write_text("\n".join(blocks), encoding="utf-8")


def main() -> None:
    """Make both files."""
    # Here, so that a check of this module does not need scikit-image.
    from skimage.data import astronaut

    parser = argparse.ArgumentParser(description="Makes clip.mp4 and clip.srt.")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    folder: Path = parser.parse_args().out
    samples, cues = soundtrack(LINES)
    write_clip(folder / "clip.mp4", astronaut(), samples)
    write_transcript(folder / "clip.srt", cues)


if __name__ == "__main__":
    main()
