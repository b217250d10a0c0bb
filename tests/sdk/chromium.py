"""A headless Chromium with a camera and a microphone that play the demo clip, over the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import av
import numpy as np
from websockets.sync.client import ClientConnection, connect

PATIENCE_S = 60.0
SIDE_PX, FRAMES_PER_S, CLIP_S = 256, 10, 6


def find_chromium() -> str | None:
    """Its program, if it is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def record(clip: Path, folder: Path) -> tuple[Path, Path]:
    """The first seconds of a clip as the y4m and wav that Chromium takes for devices."""
    video, sound = folder / "camera.y4m", folder / "microphone.wav"
    with av.open(str(clip)) as container, video.open("wb") as file:
        rate = container.streams.video[0].average_rate
        file.write(f"YUV4MPEG2 W{SIDE_PX} H{SIDE_PX} F{FRAMES_PER_S}:1 Ip A1:1 C420\n".encode())
        step = round(float(rate) / FRAMES_PER_S)
        for frame in islice(container.decode(video=0), 0, round(CLIP_S * rate), step):
            planes = frame.reformat(SIDE_PX, SIDE_PX, "yuv420p").to_ndarray()
            file.write(b"FRAME\n" + planes.tobytes())
    with av.open(str(clip)) as container, wave.open(str(sound), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(48_000)
        resampler = av.AudioResampler("s16", "mono", 48_000)
        parts = [f.to_ndarray() for frame in container.decode(audio=0) for f in resampler.resample(frame)]
        out.writeframes(np.concatenate(parts, axis=1)[0, : CLIP_S * 48_000].tobytes())
    return video, sound


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = count(1)
        self.console: list[str] = []
        """Errors of scripts and of the content security policy."""
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A method of the DevTools protocol."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if message.get("method") == "Runtime.exceptionThrown":
                self.console.append(str(message["params"]["exceptionDetails"]))
            elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.console.append(message["params"]["entry"]["text"])
            elif message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def value(self, script: str) -> Any:
        """Of an expression; promises are waited for."""
        told = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def text(self, name: str) -> str:
        """Of the element with this id."""
        return str(self.value(f"document.getElementById('{name}').textContent"))

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        deadline = perf_counter() + PATIENCE_S
        while not self.value(f"Boolean({script})"):
            assert perf_counter() < deadline, (script, self.text("notice"), self.text("events"), self.console)
            sleep(0.1)

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key of the keyboard."""
        told = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **told)
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def screenshot(self) -> bytes:
        """PNG of what is seen."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browser(program: str, folder: Path, video: Path, sound: Path) -> Iterator[Any]:
    """Yields a function that opens a page: ``open_page(url, allow=[...])``, without the devices left out."""
    process = subprocess.Popen(
        [
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--window-size=760,1000",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-video-capture={video}",
            f"--use-file-for-fake-audio-capture={sound}",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
    )
    try:
        told = folder / "DevToolsActivePort"
        deadline = perf_counter() + PATIENCE_S
        while not (told.exists() and told.read_text().count("\n") >= 1):
            assert process.poll() is None and perf_counter() < deadline, "Chromium didn't start"
            sleep(0.05)
        port, path = told.read_text().split()
        with connect(f"ws://127.0.0.1:{port}{path}", compression=None, max_size=None) as root:
            control = Page.__new__(Page)
            control._socket, control._numbers, control.console = root, count(1), []

            @contextmanager
            def open_page(url: str, allow: tuple[str, ...]) -> Iterator[Page]:
                for device in ("camera", "microphone"):
                    setting = "granted" if device in allow else "denied"
                    control.call("Browser.setPermission", permission={"name": device}, setting=setting)
                target = control.call("Target.createTarget", url="about:blank")["targetId"]
                where = f"ws://127.0.0.1:{port}/devtools/page/{target}"
                with connect(where, compression=None, max_size=None) as tab:
                    page = Page(tab)
                    page.call("Page.navigate", url=url)
                    page.until("document.readyState == 'complete'")
                    yield page
                control.call("Target.closeTarget", targetId=target)

            yield open_page
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
