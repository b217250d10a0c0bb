"""From settings to a server that runs until it is told to stop."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from affectrt.errors import AffectError
from affectrt.serving.access import LOOPBACK, Access
from affectrt.serving.app import House
from affectrt.serving.protocol import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from affectrt.model import Model

GRACE_S = 5
"""Connections get so long to end when the server stops."""

DEAD_PEER_MS = 30_000
"""What a peer hasn't taken in for so long, it never will: the system cuts the connection."""

SEND_BUFFER_BYTES = 128 * 2**10
"""Of the system, for each connection: some hundred results."""


@dataclass(frozen=True)
class Settings:
    """Of one server."""

    host: str = "127.0.0.1"
    """Name or address to listen on."""
    port: int = 8765
    """0: any that is free."""
    session_limit: int = 4
    """Streams at once."""
    hop_s: float = 0.5
    """Seconds from result to result, for clients that want no others."""
    idle_s: float = 60.0
    """A client that sends nothing for so long is let go."""
    token: str | None = None
    """What clients must know. Needed beyond loopback."""
    origins: frozenset[str] = frozenset()
    """Web pages of other servers whose scripts may connect: ``https://host:port``."""
    certificate: Path | None = None
    """PEM, with the chain: browsers then get https, without which they give no camera beyond loopback."""
    key: Path | None = None
    """PEM, of the certificate; None: it is in the same file."""


class _Uvicorn(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What a peer that reads nothing hasn't taken in by now is given up; it would stay open."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # they are cut off before the loop ends


class Server:
    """Listens from the start; serves while :meth:`run` runs."""

    def __init__(self, model: Model, settings: Settings) -> None:
        """Raises ``serve.token`` beyond loopback without one, ``serve.address`` when the address can't be
        had, ``serve.certificate`` when it can't be read."""
        loopback = settings.host in LOOPBACK
        if not loopback and settings.token is None:
            raise AffectError(
                "serve.token",
                f"serve: other machines can reach {settings.host}: clients need a token; name a file of it",
            )
        self._house = House(
            model,
            Access(loopback, settings.token, settings.origins),
            session_limit=settings.session_limit,
            hop_s=settings.hop_s,
            idle_s=settings.idle_s,
        )
        config = uvicorn.Config(
            self._house.app(),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="websockets-sansio",  # the one whose bounds were read: it stops reading when we do
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,  # pictures and sound don't get smaller, and bombs stay out
            timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
        )
        try:
            config.load()
        except OSError as error:  # ssl.SSLError, too
            raise AffectError(
                "serve.certificate", f"serve: {settings.certificate} can't be used: {error}; give a PEM file"
            ) from error
        self._server = _Uvicorn(config)
        self._socket = _listen(settings.host, settings.port)
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        scheme = "http" if settings.certificate is None else "https"
        self.url = f"{scheme}://{name}:{self._socket.getsockname()[1]}/"
        """Of the web page."""

    def run(self) -> None:
        """Serve until :meth:`stop`, or until an interruption, in the main thread."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            self._house.close()

    def stop(self) -> None:
        """From any thread; :meth:`run` returns once connections have ended."""
        self._server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family, backlog=256)
    except OSError as error:
        raise AffectError(
            "serve.address", f"serve: {host} port {port} can't be had: {error}; choose others"
        ) from error
    # Accepted sockets inherit both.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MS)
    return listening
