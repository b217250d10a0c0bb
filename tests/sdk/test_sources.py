"""Sources: real files and sockets; of cameras and microphones only the device's library is stood in for."""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from types import ModuleType
from typing import Any

import av
import cv2
import numpy as np
import pytest

import affectrt
from affectrt.errors import AffectError
from affectrt.features.text import Word
from affectrt.media import AudioChunk, Media
from affectrt.sources import source
from affectrt.sources.camera import Camera
from affectrt.sources.file import FileSource
from affectrt.sources.microphone import Microphone
from affectrt.sources.network import NetworkSource
from affectrt.sources.source import Capture, Piece, Sound
from affectrt.stream import Stream
from affectrt.streaming.core import StreamCore

DEMO = Path(__file__).parents[2] / "demo" / "clip.mp4"
RATE_HZ = 16_000
PATIENCE_S = 20.0
"""Nothing here takes so long, however busy the machine."""


class Told:
    """What sources report."""

    def __init__(self) -> None:
        self.codes: list[str] = []
        self.messages: list[str] = []

    def __call__(self, code: str, message: str) -> None:
        self.codes.append(code)
        self.messages.append(message)


@pytest.fixture
def stream(tiny_model: affectrt.Model) -> Iterator[Stream]:
    with tiny_model.stream(hop_s=0.25) as opened:
        yield opened


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost devices are tried again at once."""
    monkeypatch.setattr(source, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(source, "LONGEST_PAUSE_S", 0.05)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first second and a half of the demo clip, as Matroska: that can be cut anywhere."""
    path = tmp_path_factory.mktemp("clip") / "clip.mkv"
    with av.open(str(DEMO)) as original, av.open(str(path), "w") as target:
        streams = {s.index: target.add_stream_from_template(s) for s in original.streams}
        for packet in original.demux():
            if packet.dts is not None and packet.pts * packet.time_base < 1.5:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return path


def eventually(condition: Callable[[], bool]) -> None:
    deadline = perf_counter() + PATIENCE_S
    while not condition():
        assert perf_counter() < deadline
        sleep(0.005)


def pushed(stream: Stream, kind: Any) -> int:
    return stream.statistics().pushed[kind]


# --- Files ----------------------------------------------------------------------------------------


def test_a_file_at_its_own_pace_gives_what_it_gives_at_once(
    tiny_model: affectrt.Model, stream: Stream, clip: Path
) -> None:
    words = [
        Word("happy", 0.2, 0.6),
        Word("now", 0.7, 1.1),
        Word("later", 1.45, 1.7),
        Word("never", 9.0, 9.5),
    ]
    played = FileSource(clip, words)
    told = Told()
    started_at = perf_counter()
    played.start(stream, told)
    eventually(lambda: played.state == "over")
    assert perf_counter() - started_at >= 1.3
    live = stream.flush()
    core = StreamCore(tiny_model, None, 0.25)
    pushes: list[tuple[float, Callable[[], None]]] = [
        (word.end_s, partial(core.push_word, word)) for word in words[:3]
    ]
    with Media.open(clip) as media:
        for item in media:
            if isinstance(item, AudioChunk):
                end_s = item.time_s + len(item.pcm) / item.sample_rate_hz
                pushes.append((end_s, partial(core.push_audio, item.pcm, item.sample_rate_hz, item.time_s)))
            else:
                pushes.append((item.time_s, partial(core.push_frame, item.bgr, item.time_s)))
    at_once = []
    for _, push in sorted(pushes, key=lambda timed: timed[0]):
        push()
        at_once += core.poll()
    at_once += core.flush()
    assert [affect.time_s for affect in live] == [affect.time_s for affect in at_once]
    for one, other in zip(live, at_once, strict=True):
        assert replace(one, latency_ms=0.0) == replace(other, latency_ms=0.0)
    assert live[-1].present == {"text", "audio", "vision"} and told.codes == []
    played.stop()
    assert played.state == "off"


def test_a_file_that_is_not_there_is_an_error_at_once(stream: Stream, tmp_path: Path) -> None:
    with pytest.raises(AffectError) as caught:
        FileSource(tmp_path / "none.mp4").start(stream, Told())
    assert caught.value.code == "media.not_found"


def test_a_file_that_was_cut_short_is_told(stream: Stream, tmp_path: Path) -> None:
    whole = tmp_path / "whole.wav"
    with av.open(str(whole), "w") as target:
        track = target.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE_HZ // 2), np.int16), "s16", "mono")
        frame.sample_rate = RATE_HZ
        target.mux(track.encode(frame))
        target.mux(track.encode(None))
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole.read_bytes()[:8_000])
    told = Told()
    played = FileSource(cut)
    played.start(stream, told)
    eventually(lambda: played.state == "over")
    assert told.codes == ["source.lost"] and "cut short" in told.messages[0]


def test_stopping_a_file_does_not_wait_for_its_end(stream: Stream) -> None:
    played = FileSource(DEMO)
    played.start(stream, Told())
    eventually(lambda: played.state == "on")
    before = perf_counter()
    played.stop()
    assert perf_counter() - before < 5.0
    played.stop()


# --- Devices --------------------------------------------------------------------------------------


class PluggedCamera:
    """OpenCV's VideoCapture of a camera that is unplugged after some pictures and plugged in again later."""

    opened = 0
    released = 0

    def __init__(self, number: int) -> None:
        assert number == 3
        type(self).opened += 1
        self._left = {1: 4, 4: 10**9}.get(self.opened, 0)

    def isOpened(self) -> bool:
        return self._left > 0

    def read(self) -> tuple[bool, Any]:
        self._left -= 1
        sleep(0.01)
        return (True, np.full((48, 64, 3), 90, np.uint8)) if self._left >= 0 else (False, None)

    def release(self) -> None:
        type(self).released += 1


def test_a_camera_that_is_unplugged_comes_back(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", PluggedCamera)
    told = Told()
    camera = Camera(3)
    camera.start(stream, told)
    eventually(lambda: "source.back" in told.codes)
    taken = pushed(stream, "frames")
    eventually(lambda: pushed(stream, "frames") > taken)
    assert camera.state == "on"
    camera.stop()
    assert told.codes == ["source.lost", "source.back"], "told once, however often it is tried"
    assert "camera 3" in told.messages[0] and "cable" in told.messages[0]
    assert PluggedCamera.opened == PluggedCamera.released == 4


class PortAudio(ModuleType):
    """The library sounddevice with a microphone that can be unplugged. As in the real one, the list of
    devices is that of the last initialisation, and a device that is gone just falls silent."""

    class PortAudioError(Exception):
        """What it raises."""

    def __init__(self) -> None:
        super().__init__("sounddevice")
        self.plugged = self.listed = True
        library = self

        class InputStream:
            def __init__(self, *, callback: Any, blocksize: int, channels: int, **given: Any) -> None:
                assert given == {"samplerate": 48_000, "device": "USB", "dtype": "float32"}
                self._block = np.full((blocksize, channels), 0.1, np.float32)
                self._callback = callback
                self._over = threading.Event()
                self._thread = threading.Thread(target=self._play)

            def _play(self) -> None:
                while not self._over.wait(0.01):
                    if library.plugged:
                        self._callback(self._block, len(self._block), None, None)

            def __enter__(self) -> None:
                self._thread.start()

            def __exit__(self, *_: object) -> None:
                self._over.set()
                self._thread.join()

        self.InputStream = InputStream

    def query_devices(self, device: object, kind: str) -> dict[str, Any]:
        assert kind == "input"
        if not self.listed:
            raise self.PortAudioError(f"no input device {device}")
        return {"default_samplerate": 48_000.0, "max_input_channels": 1}

    def _terminate(self) -> None:
        self.listed = False

    def _initialize(self) -> None:
        self.listed = self.plugged


def test_a_microphone_that_is_unplugged_comes_back(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    library = PortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    monkeypatch.setattr("affectrt.sources.microphone.SILENT_DEVICE_S", 0.2)
    told, heard = Told(), list[Sound]()
    microphone = Microphone("USB")
    microphone.start(stream, told, heard.append)
    eventually(lambda: pushed(stream, "audio") > 3)
    library.plugged = False
    eventually(lambda: told.codes == ["source.lost"] and not library.listed)
    library.plugged = True
    eventually(lambda: told.codes == ["source.lost", "source.back"])
    # Results went on all the while: the clock of a live stream needs no input.
    eventually(lambda: stream.statistics().results > 2)
    microphone.stop()
    assert heard[0].sample_rate_hz == 48_000 and heard[0].pcm.shape == (1440, 1)


def test_without_portaudio_it_is_told_what_to_install(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AffectError, match="libportaudio2") as caught:
        Microphone().start(stream, Told())
    assert caught.value.code == "source.library"


# --- Networks -------------------------------------------------------------------------------------


@pytest.fixture
def server(clip: Path) -> Iterator[str]:
    """A camera on the network; its first connection breaks off early."""
    whole = clip.read_bytes()
    served: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.append(len(whole) // 2 if not served else len(whole))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(whole[: served[-1]])

        def log_message(self, format: str, *args: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://ada:secret@127.0.0.1:{running.server_port}/clip.mkv"
        running.shutdown()
        thread.join()


def test_a_network_stream_that_breaks_off_comes_back(stream: Stream, server: str) -> None:
    told = Told()
    camera = NetworkSource(server)
    camera.start(stream, told)
    eventually(lambda: "source.back" in told.codes)
    camera.stop()
    assert told.codes[:2] == ["source.lost", "source.back"]
    assert "secret" not in "".join(told.messages), "a URL may hold a password"
    assert pushed(stream, "frames") and pushed(stream, "audio")


def test_a_network_stream_that_is_not_there(stream: Stream) -> None:
    told = Told()
    camera = NetworkSource("http://127.0.0.1:9/none")
    camera.start(stream, told)
    eventually(lambda: bool(told.codes))
    camera.stop()
    assert told.codes == ["source.lost"] and "check the address" in told.messages[0]


# --- Any source -----------------------------------------------------------------------------------


class Broken(Capture):
    """An application's own, with a fault: every other block is NaN, and then it raises."""

    returns = False

    def pieces(self) -> Generator[Piece, None, None]:
        """As :meth:`Capture.pieces`."""
        good = np.zeros(160, np.float32)
        for pcm in (good, good * np.nan, good * np.nan, good, good * np.nan):
            yield Sound(pcm, RATE_HZ)
        raise ZeroDivisionError("of the application")


def test_what_a_stream_refuses_is_told_once_in_a_row(stream: Stream) -> None:
    told = Told()
    broken = Broken("own")
    broken.start(stream, told)
    eventually(lambda: broken.state == "over")
    assert told.codes == ["audio.not_finite", "audio.not_finite", "source.lost"]
    assert "ZeroDivisionError" in told.messages[-1]
    stream.close()
    late = Broken("late")
    late.start(stream, told)
    late.stop()
    assert len(told.codes) == 3, "a stream that was closed is no fault"
