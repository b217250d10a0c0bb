"""A server over real sockets, and a small client, for the tests of ``affectrt serve``."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from websockets.sync.client import ClientConnection, connect

from affectrt.model import Model
from affectrt.serving import protocol
from affectrt.serving.server import Server, Settings

PATIENCE_S = 20.0
"""Nothing here takes so long, however busy the machine."""
RATE_HZ = 16_000


@contextmanager
def running(model: Model, **settings: Any) -> Iterator[Server]:
    """A server in a thread, on a free port."""
    server = Server(model, replace(Settings(port=0, hop_s=0.1), **settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


class Client:
    """One connection that has said hello; what came is kept until it is asked for."""

    def __init__(
        self, server: Server, *, greet: bool = True, hello: dict[str, object] | None = None, **options: Any
    ) -> None:
        self._stack = ExitStack()
        url = server.url.replace("http", "ws", 1) + "v1/stream"
        self.socket: ClientConnection = self._stack.enter_context(connect(url, compression=None, **options))
        self.seen: list[dict[str, Any]] = []
        if greet:
            self.say(type="hello", version=1, **(hello or {}))
            self.welcome = self.wait("hello")

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def say(self, **fields: object) -> None:
        """Send JSON."""
        self.socket.send(json.dumps(fields))

    def sound(self, pcm: np.typing.NDArray[Any], time_s: float | None = None, **header: Any) -> None:
        """Send samples, float32 or int16."""
        kind = protocol.PCM_S16 if pcm.dtype == np.int16 else protocol.PCM_F32
        header = {"sample_rate": RATE_HZ, "channels": 1 if pcm.ndim == 1 else pcm.shape[1], **header}
        self.socket.send(protocol.pack(kind, pcm.tobytes(), time_s=time_s, **header))

    def picture(self, jpeg: bytes, time_s: float | None = None, **header: Any) -> None:
        """Send a picture."""
        self.socket.send(protocol.pack(protocol.JPEG, jpeg, time_s=time_s, **header))

    def wait(self, kind: str, **fields: object) -> dict[str, Any]:
        """The next message of a kind with these fields; the others are kept in ``seen``."""
        while True:
            message: dict[str, Any] = json.loads(self.socket.recv(timeout=PATIENCE_S))
            self.seen.append(message)
            if message["type"] == kind and fields.items() <= message.items():
                return message

    def flush(self) -> list[dict[str, Any]]:
        """The results that have come until all is computed."""
        self.say(type="flush")
        self.wait("done", of="flush")
        seen, self.seen = self.seen, []
        return [message for message in seen if message["type"] == "result"]


def voice(length_s: float) -> np.typing.NDArray[np.float32]:
    """A buzz that swells and fades like syllables."""
    t = np.arange(int(length_s * RATE_HZ)) / RATE_HZ
    buzz = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 12))
    noise = np.random.default_rng(0).normal(0, 1e-4, len(t))
    swell = np.clip(np.sin(2 * np.pi * 2.5 * t), 0, None) ** 2
    return (0.2 * buzz * swell + noise).astype(np.float32)


def jpeg_of(width: int = 64, height: int = 48) -> bytes:
    """A picture of nobody."""
    picture = np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", picture)[1])
