"""Fuzzes the WebSocket protocol of ``affectrt serve``: messages of every kind, right, bent and broken, in
both modes where the bundle has both.

    python -m benchmarks.fuzz_protocol starter.affect --minutes 10

The server runs in this process. After every conversation a bystander's stream must still give results; at
the end no message may have met a defect (``serve.failed``, ``stream.failed``), no thread be left behind.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.request import urlopen

import cv2
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import affectrt
from affectrt.serving import protocol
from affectrt.serving.server import Server, Settings

PATIENCE_S = 60.0
DEFECTS = ("serve.failed", "stream.failed", "internal")
_NUMBERS: tuple[Any, ...] = (0, -1, 1, 0.5, 1e9, 1e10, 1e300, -1e10, 2**31, 10**400, True, None, "1", [], {})
_STRINGS = ("", "so happy", "a" * 4000, "a " * 2000, "😀", "\0", "\u202e", "ﬀ", "\n\t", "{}")
_DOUBLES = (0.0, 1.5, -3.0, 1e10, -1e10, 1e300, float("nan"), float("inf"), -0.0, 5e-324)
_RATES = (0, 1, 999, 1000, 8000, 16_000, 44_100, 768_000, 2**32 - 1)


def _jpeg(chance: random.Random) -> bytes:
    side = chance.choice((8, 16, 64, 200))
    picture = np.full((side, side * chance.choice((1, 2)), 3), chance.randrange(256), np.uint8)
    return bytes(cv2.imencode(".jpg", picture)[1])


def _samples(chance: random.Random) -> bytes:
    count = chance.choice((0, 1, 2, 160, 1600, 16_000))
    values: list[float] = [chance.uniform(-1, 1) for _ in range(min(count, 160))] * max(1, count // 160)
    if values and chance.random() < 0.3:
        values[chance.randrange(len(values))] = chance.choice(_DOUBLES)
    with np.errstate(over="ignore"):
        floats = np.array(values, np.float32)
    if chance.random() < 0.5:
        return floats.tobytes()
    return (np.nan_to_num(floats).clip(-1, 1) * 32767).astype(np.int16).tobytes()


def binary_message(chance: random.Random) -> bytes:
    """Mostly right; a field or some bytes may be anything."""
    kind = chance.choice((1, 2, 3, 3, chance.randrange(256)))
    picture = kind == 3
    payload = _jpeg(chance) if picture else _samples(chance)
    fields: list[Any] = [
        kind,
        1,
        0 if picture else chance.choice((1, 1, 2)),
        chance.randrange(2**32),
        chance.choice((float("nan"), chance.uniform(0, 20))),
        0 if picture else 16_000,
        0,
    ]
    if chance.random() < 0.3:
        place = chance.choice((1, 2, 4, 5, 6))
        fields[place] = {4: chance.choice(_DOUBLES), 5: chance.choice(_RATES)}.get(
            place, chance.randrange(256)
        )
    message = bytearray(struct.pack("<BBHIdII", *fields) + payload)
    if chance.random() < 0.3:
        for _ in range(chance.randrange(1, 20)):
            message[chance.randrange(len(message))] = chance.randrange(256)
    if chance.random() < 0.1:
        del message[chance.randrange(len(message)) :]
    return bytes(message)


def text_message(chance: random.Random) -> str:
    """JSON with fields that may be anything, or with letters changed."""
    kind = chance.choice(("text", "text", "flush", "reset", "hello", "result", "", None, 5))
    fields: dict[str, Any] = {"type": kind}
    if kind == "text" or chance.random() < 0.1:
        fields["text"] = chance.choice(_STRINGS if chance.random() < 0.8 else _NUMBERS)
    for name in ("start_s", "end_s", "version", "token", "hop_s", "window_s", "mode", "x"):
        if chance.random() < 0.05:
            fields[name] = chance.choice((*_NUMBERS, *_STRINGS, chance.uniform(0, 20)))
    text = json.dumps(fields, ensure_ascii=chance.random() < 0.5)
    if chance.random() < 0.2:
        place = chance.randrange(len(text))
        text = text[:place] + chance.choice('{}[]",:\\0-eNn') + text[place + chance.randrange(3) :]
    return text


class Fuzzer:
    """A server, a bystander, and conversations that try to disturb both."""

    def __init__(self, model: affectrt.Model) -> None:
        self._modes = ("window", "incremental") if model.manifest.causal is not None else ("window",)
        self._server = Server(model, Settings(port=0, hop_s=1.0, session_limit=3))
        self._url = self._server.url.replace("http", "ws", 1) + "v1/stream"
        self._thread = threading.Thread(target=self._server.run)
        self._bystander_s = 0.0
        self.messages = 0
        """How many were sent."""
        self.codes: dict[str, int] = {}
        """Error code → how often it came."""
        self.defects: list[str] = []
        """What results told of defects."""

    def run(self, seed: int, goes_on: Callable[[int], bool]) -> None:
        """Conversations while ``goes_on(how many there were)``. Raises AssertionError for a defect."""
        self._thread.start()
        try:
            with connect(self._url, compression=None) as bystander:
                _greet(bystander)
                number = 0
                while goes_on(number):
                    self._converse(random.Random(f"{seed} {number}"))
                    self._check(bystander, f"seed {seed}, conversation {number}")
                    number += 1
            with urlopen(f"{self._server.url}metrics", timeout=PATIENCE_S) as answer:
                page = answer.read().decode()
        finally:
            self._server.stop()
            self._thread.join(PATIENCE_S)
        assert not any(f'code="{code}' in page for code in DEFECTS), (self.defects, page)
        assert not [t for t in threading.enumerate() if t.name == "affectrt stream"]

    def _converse(self, chance: random.Random) -> None:
        with connect(self._url, compression=None, max_queue=None) as socket:
            try:
                if chance.random() < 0.95:
                    _greet(socket, chance.choice(self._modes))
                for _ in range(chance.randrange(1, 40)):
                    make = chance.choice((binary_message, text_message))
                    socket.send(make(chance))
                    self.messages += 1
                if chance.random() < 0.8:
                    socket.send('{"type": "flush"}')
                    for data in socket:
                        message = json.loads(data)
                        if message["type"] == "error":
                            self.codes[message["code"]] = self.codes.get(message["code"], 0) + 1
                        elif message["type"] == "result":
                            events = message["events"]
                            self.defects += [e["message"] for e in events if e["code"] in DEFECTS]
                        elif message == {"type": "done", "of": "flush"}:
                            break
            except ConnectionClosed as closed:
                code = closed.rcvd.code if closed.rcvd else None
                assert code in (1000, 4000, 4001, 4004), f"the server closed with {closed}"

    def _check(self, bystander: ClientConnection, where: str) -> None:
        pcm = b"\0\0" * 16_000
        header = {"sample_rate": 16_000, "channels": 1, "time_s": self._bystander_s}
        bystander.send(protocol.pack(protocol.PCM_S16, pcm, **header))  # type: ignore[arg-type]
        self._bystander_s += 1.0
        message = json.loads(bystander.recv(timeout=PATIENCE_S))
        assert (message["type"], message["time_s"]) == ("result", self._bystander_s), f"{where}: {message}"


def _greet(socket: ClientConnection, mode: str = "window") -> None:
    socket.send(json.dumps({"type": "hello", "version": 1, "mode": mode}))
    json.loads(socket.recv(timeout=PATIENCE_S))


def main() -> None:
    """Fuzz for so many minutes and tell what came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    fuzzer = Fuzzer(affectrt.load(args.bundle, threads=1))
    began, told = monotonic(), monotonic()
    count = 0

    def goes_on(number: int) -> bool:
        nonlocal told, count
        count = number
        if monotonic() - told > 10.0:
            told = monotonic()
            print(f"{told - began:6.0f} s  {number} conversations, {fuzzer.messages} messages", flush=True)
        return bool(monotonic() - began < 60.0 * args.minutes)

    fuzzer.run(args.seed, goes_on)
    print(f"{count} conversations, {fuzzer.messages} messages, no defect")
    for code, times in sorted(fuzzer.codes.items()):
        print(f"{times:8} {code}")


if __name__ == "__main__":
    main()
