"""One connection: its messages go into a stream of its own, and its results come back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from affectrt.affect import EMOTIONS, MODALITIES, Affect
from affectrt.errors import AffectError
from affectrt.serving import protocol
from affectrt.serving.jpeg import MAX_PIXELS, decode_jpeg
from affectrt.serving.metrics import Metrics
from affectrt.serving.outgoing import Outgoing
from affectrt.serving.protocol import Control, Hello, Picture, Sound, Words

if TYPE_CHECKING:
    from affectrt.model import Model
    from affectrt.stream import Stream

HELLO_S = 10.0
"""A client that says nothing for so long is a mistake."""
SEND_S = 15.0
"""A client that takes in nothing for so long doesn't read."""
HOP_LIMITS_S = (0.05, 60.0)
WINDOW_LIMITS_S = (0.5, 60.0)
MAX_GAP_S = 60.0
"""Times further ahead than this would cost as many results as that holds: the stream starts over there."""

LAST_WORD_S = 2.0
_Result = TypeVar("_Result")
_log = logging.getLogger("affectrt.serving")


@dataclass(frozen=True)
class Ending:
    """How a connection ends."""

    code: int
    """That of the WebSocket."""
    error: AffectError | None = None
    """What the client is told before; None: it went by itself."""


class Session:
    """Of one client that was let in as far as its hello."""

    def __init__(
        self,
        socket: WebSocket,
        model: Model,
        executor: Executor,
        metrics: Metrics,
        *,
        hop_s: float,
        idle_s: float,
        admit: Callable[[Hello], Ending | None],
    ) -> None:
        """``executor`` must have a thread for each session; ``admit`` takes a place, or says why not."""
        self._socket = socket
        self._model = model
        self._executor = executor
        self._metrics = metrics
        self._hop_s = hop_s
        self._idle_s = idle_s
        self._admit = admit
        self._outgoing = Outgoing()
        self._newest_s: float | None = None
        self._timed: bool | None = None  # until the first input

    async def run(self) -> int:
        """Serve it to its end; returns the code of the WebSocket that it ended with."""
        offered: list[str] = self._socket.scope.get("subprotocols", [])
        await self._socket.accept(protocol.SUBPROTOCOL if protocol.SUBPROTOCOL in offered else None)
        ending = await self._greet()
        if ending.error is not None:
            self._count(ending.error)
        with suppress(asyncio.TimeoutError, WebSocketDisconnect, RuntimeError):
            await asyncio.wait_for(self._say_goodbye(ending), LAST_WORD_S)
        return ending.code

    async def _say_goodbye(self, ending: Ending) -> None:
        if ending.error is not None:
            await self._socket.send_json(protocol.error_message(ending.error, fatal=True))
        await self._socket.close(ending.code, ending.error.code if ending.error else "")

    async def _greet(self) -> Ending:
        try:
            data = await self._receive(HELLO_S)
        except asyncio.TimeoutError:
            return Ending(
                protocol.CLOSE_PROTOCOL,
                AffectError("protocol.hello", "protocol: no hello came; send one first"),
            )
        if data is None:
            return Ending(1000)
        try:
            hello = protocol.parse_json(data) if isinstance(data, str) else None
            if not isinstance(hello, Hello):
                raise AffectError("protocol.hello", "protocol: expected hello as the first message")
            _check_within("hop_s", hello.hop_s, HOP_LIMITS_S)
            _check_within("window_s", hello.window_s, WINDOW_LIMITS_S)
            if hello.mode == "incremental":
                _ = self._model.causal
        except AffectError as error:
            return Ending(protocol.CLOSE_PROTOCOL, error)
        refusal = self._admit(hello)
        if refusal is not None:
            return refusal
        return await self._serve(hello)

    async def _serve(self, hello: Hello) -> Ending:
        hop_s = self._hop_s if hello.hop_s is None else hello.hop_s
        model = self._model
        stream = await self._in_thread(
            lambda: model.stream(hello.window_s, hop_s, mode=hello.mode, on_result=self._take_result)
        )
        try:
            self._outgoing.put(self._welcome(hello, hop_s))
            tasks = [asyncio.create_task(self._read(stream)), asyncio.create_task(self._write())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                return next(iter(done)).result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._metrics.unread.inc(self._outgoing.lost)
            await self._in_thread(stream.close)

    def _welcome(self, hello: Hello, hop_s: float) -> dict[str, object]:
        encoders = self._model.encoders
        own_s = self._model.manifest.window_s if hello.mode == "window" else self._model.causal.window_s
        return {
            "type": "hello",
            "version": protocol.VERSION,
            "model": self._model.manifest.name,
            "modalities": [m for m in MODALITIES if self._model.manifest.extracts(m)],
            "emotions": list(EMOTIONS),
            "hop_s": hop_s,
            "mode": hello.mode,
            "window_s": own_s if hello.window_s is None else hello.window_s,
            "frame_rate_hz": encoders.frame_rate_hz,
            "max_message_bytes": protocol.MAX_MESSAGE_BYTES,
            "max_pixels": MAX_PIXELS,
            "idle_s": self._idle_s,
        }

    async def _read(self, stream: Stream) -> Ending:
        while True:
            try:
                data = await self._receive(self._idle_s)
            except asyncio.TimeoutError:
                return Ending(
                    protocol.CLOSE_IDLE,
                    AffectError("serve.idle", f"serve: nothing came for {self._idle_s:g} s; connect again"),
                )
            if data is None:
                return Ending(1000)
            # One at a time: the next message stays in the socket until this one is taken in.
            await self._in_thread(lambda data=data: self._take_in(stream, data))  # type: ignore[misc]

    async def _receive(self, within_s: float) -> str | bytes | None:
        """The next message, None at the end. Raises asyncio.TimeoutError."""
        message = await asyncio.wait_for(self._socket.receive(), within_s)
        if message["type"] == "websocket.disconnect":
            return None
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        self._metrics.bytes.inc(len(data if text is None else text))
        return data if text is None else text

    async def _write(self) -> Ending:
        while True:
            text = await self._outgoing.take()
            try:
                await asyncio.wait_for(self._socket.send_text(text), SEND_S)
            except asyncio.TimeoutError:
                return Ending(
                    protocol.CLOSE_SLOW,
                    AffectError(
                        "serve.slow_reader", f"serve: nothing was read for {SEND_S:g} s; read results"
                    ),
                )
            except (WebSocketDisconnect, RuntimeError):  # it has gone
                return Ending(1000)

    async def _in_thread(self, call: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def _take_in(self, stream: Stream, data: str | bytes) -> None:
        """In a thread. A fault of one message costs that message alone."""
        sequence = protocol.sequence_of(data) if isinstance(data, bytes) else None
        try:
            message = protocol.parse_json(data) if isinstance(data, str) else protocol.parse_binary(data)
            self._metrics.messages.labels(type(message).__name__.lower()).inc()
            self._obey(stream, message)
        except AffectError as error:
            self._tell(error, sequence)
        except Exception:
            _log.exception("a message could not be taken in; this is a defect")
            self._tell(AffectError("serve.failed", "serve: this message met a defect; report it"), sequence)

    def _follow(self, stream: Stream, start_s: float | None, end_s: float | None) -> None:
        """All inputs have times or none has; they never make more than :data:`MAX_GAP_S` of results due."""
        if start_s is not None and end_s is not None and end_s > start_s + MAX_GAP_S:
            raise AffectError(
                "protocol.time",
                f"protocol: expected words of at most {MAX_GAP_S:g} s, got {end_s - start_s:g} s",
            )
        time_s = start_s if end_s is None else end_s
        if self._timed is None:
            self._timed = time_s is not None
        if self._timed != (time_s is not None):
            raise AffectError(
                "protocol.time",
                "protocol: expected times in all messages or in none, got both; reset to change",
            )
        if time_s is None:
            return
        newest_s, self._newest_s = self._newest_s, time_s
        if newest_s is not None and time_s > newest_s + MAX_GAP_S:
            stream.reset()
            self._tell(
                AffectError(
                    "protocol.gap",
                    f"protocol: {time_s:g} s follows on {newest_s:g} s; the stream started over, as by reset",
                )
            )

    def _obey(self, stream: Stream, message: protocol.Message) -> None:
        if isinstance(message, Words):
            self._follow(stream, message.start_s, message.end_s)
        elif isinstance(message, Sound | Picture):
            self._follow(stream, message.time_s, None)
        match message:
            case Sound(pcm, sample_rate, time_s):
                with np.errstate(invalid="ignore", over="ignore"):  # such samples are refused anyway
                    stream.push_audio(pcm, sample_rate, time_s)
            case Picture(jpeg, time_s):
                stream.push_frame(decode_jpeg(jpeg), time_s)
            case Words(text, start_s, end_s):
                stream.push_text(text, start_s, end_s)
            case Control(name):
                if name == "reset":
                    self._newest_s = self._timed = None
                (stream.flush if name == "flush" else stream.reset)()
                self._outgoing.put({"type": "done", "of": name})
            case Hello():
                raise AffectError("protocol.hello", "protocol: hello came again; it is said once")

    def _take_result(self, affect: Affect) -> None:
        """In the stream's thread."""
        self._metrics.result(affect)
        self._outgoing.put({"type": "result", **affect.to_dict()})

    def _tell(self, error: AffectError, sequence: int | None = None) -> None:
        self._count(error)
        self._outgoing.put(protocol.error_message(error, fatal=False, sequence=sequence))

    def _count(self, error: AffectError) -> None:
        self._metrics.errors.labels(error.code).inc()


def _check_within(name: str, value: float | None, limits: tuple[float, float]) -> None:
    low, high = limits
    if value is not None and not low <= value <= high:
        raise AffectError("protocol.field", f"protocol: expected {name} from {low} to {high} s, got {value}")
