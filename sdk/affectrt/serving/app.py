"""The application: the WebSocket, the web page, and what a monitor asks for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from affectrt import __version__
from affectrt.errors import AffectError
from affectrt.serving import protocol
from affectrt.serving.access import Access
from affectrt.serving.metrics import CONTENT_TYPE, Metrics
from affectrt.serving.protocol import Hello
from affectrt.serving.session import Ending, Session

if TYPE_CHECKING:
    from affectrt.model import Model

PAGE = Path(__file__).parent / "page"

MAX_STRANGERS = 32
"""Connections that may be open without a session: before their hello, or being refused."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; media-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Guard:
    """Refuses requests from where none may come, and gives every answer the headers that keep a page safe."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if self._access.admits(Headers(scope=scope)):
            await self._app(scope, receive, send_guarded)
        elif scope["type"] == "http":
            refusal = PlainTextResponse("serve.origin: not from this host or origin\n", 403)
            await refusal(scope, receive, send_guarded)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it was accepted: HTTP 403


class House:
    """What all connections share."""

    def __init__(
        self, model: Model, access: Access, *, session_limit: int, hop_s: float, idle_s: float
    ) -> None:
        """``session_limit``: streams at once; ``hop_s``: seconds from result to result unless a client wants
        others; ``idle_s``: a client that sends nothing for so long is let go."""
        self._model = model
        self._access = access
        self._session_limit = session_limit
        self._hop_s = hop_s
        self._idle_s = idle_s
        self._metrics = Metrics(session_limit)
        self._open = 0
        self._sessions = 0
        # A thread each: who waits for a flush holds up nobody else.
        self._executor = ThreadPoolExecutor(session_limit, thread_name_prefix="affectrt session")

    def app(self) -> Starlette:
        """The ASGI application. It belongs to one event loop."""
        return Starlette(
            routes=[
                WebSocketRoute("/v1/stream", self._stream),
                Route("/healthz", self._health),
                Route("/metrics", self._page_of_metrics),
                Mount("/", StaticFiles(directory=PAGE, html=True)),
            ],
            middleware=[Middleware(Guard, access=self._access)],
        )

    def close(self) -> None:
        """After the last connection."""
        self._executor.shutdown()

    async def _stream(self, socket: WebSocket) -> None:
        if self._open >= self._session_limit + MAX_STRANGERS:
            await socket.send_denial_response(PlainTextResponse("serve.full: too many connections\n", 503))
            return
        mine = False

        def admit(hello: Hello) -> Ending | None:
            nonlocal mine
            refusal = self._refusal(hello)
            if refusal is None:
                mine = True
                self._count_sessions(1)
            return refusal

        self._open += 1
        code = 1006
        try:
            code = await Session(
                socket,
                self._model,
                self._executor,
                self._metrics,
                hop_s=self._hop_s,
                idle_s=self._idle_s,
                admit=admit,
            ).run()
        finally:
            self._open -= 1
            if mine:
                self._count_sessions(-1)
            self._metrics.closed.labels(str(code)).inc()

    def _refusal(self, hello: Hello) -> Ending | None:
        if not self._access.knows(hello.token):
            return Ending(
                protocol.CLOSE_TOKEN,
                AffectError(
                    "serve.token", "serve: hello has no token or a wrong one; ask who runs the server"
                ),
            )
        if self._sessions >= self._session_limit:
            return Ending(
                protocol.CLOSE_FULL,
                AffectError(
                    "serve.full", f"serve: all {self._session_limit} sessions are taken; try again later"
                ),
            )
        return None

    def _count_sessions(self, change: int) -> None:
        self._sessions += change
        self._metrics.sessions.set(self._sessions)

    async def _health(self, _: Request) -> Response:
        return JSONResponse(
            {
                "status": "ok",
                "version": __version__,
                "protocol": protocol.VERSION,
                "token_required": self._access.token is not None,
                "sessions": self._sessions,
                "session_limit": self._session_limit,
            }
        )

    async def _page_of_metrics(self, request: Request) -> Response:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not self._access.knows(token if scheme.lower() == "bearer" else None):
            return PlainTextResponse(
                "serve.token: send 'Authorization: Bearer' and the token\n",
                401,
                {"WWW-Authenticate": "Bearer"},
            )
        return Response(self._metrics.page(), media_type=CONTENT_TYPE)
