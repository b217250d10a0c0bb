"""What waits to be sent to one client: bounded, so that who never reads loses results and costs nothing."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress

from affectrt.errors import AffectError
from affectrt.serving.protocol import error_message

MAX_WAITING = 256
"""Messages; beyond it the oldest go."""


class Outgoing:
    """Filled by any thread, emptied by one task of the event loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self._lock = threading.Lock()
        self._waiting: deque[Mapping[str, object]] = deque()
        self._lost = 0
        self.lost = 0
        """How many had to go in all."""

    def put(self, message: Mapping[str, object]) -> None:
        """Never waits."""
        with self._lock:
            self._waiting.append(message)
            if len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self._lost += 1
                self.lost += 1
        with suppress(RuntimeError):  # the loop was closed: nobody sends any more
            self._loop.call_soon_threadsafe(self._filled.set)

    async def take(self) -> str:
        """The next message as JSON. What had to go is told first."""
        while True:
            self._filled.clear()
            with self._lock:
                lost, self._lost = self._lost, 0
                message = self._waiting.popleft() if self._waiting and not lost else None
            if lost:
                message = error_message(
                    AffectError(
                        "serve.dropped", f"serve: {lost} messages were dropped: read them as they come"
                    ),
                    fatal=False,
                )
            if message is not None:
                return json.dumps(message)
            await self._filled.wait()
