"""Who may connect: a token, and which web pages' scripts."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from affectrt.errors import AffectError

LOOPBACK = ("127.0.0.1", "localhost", "::1")

MIN_TOKEN_CHARS = 16


@dataclass(frozen=True)
class Access:
    """Rules of one server."""

    loopback: bool
    """Whether only programs of this machine reach it."""
    token: str | None
    """What clients must know; None: nothing, on loopback."""
    origins: frozenset[str]
    """Web pages of other servers whose scripts may connect: ``https://host:port``."""

    def knows(self, token: str | None) -> bool:
        """Whether a client may go on; takes the same time however much of the token is right."""
        if self.token is None:
            return True
        return token is not None and hmac.compare_digest(token.encode(), self.token.encode())

    def admits(self, headers: Mapping[str, str]) -> bool:
        """Whether a request comes from where it may. Programs send no Origin, browsers always do.

        On loopback the name asked for must be this machine's: a page elsewhere could have its own name lead
        here (DNS rebinding), and then its origin and the name are the same.
        """
        host = headers.get("host", "")
        if self.loopback and _hostname(host) not in LOOPBACK:
            return False
        origin = headers.get("origin")
        if origin is None or origin.lower() in self.origins:
            return True
        scheme, _, netloc = origin.lower().partition("://")
        return scheme in ("http", "https") and netloc == host.lower()


def _hostname(netloc: str) -> str | None:
    try:
        return urlsplit(f"//{netloc}").hostname
    except ValueError:
        return None


def read_token(path: Path) -> str:
    """The token in a file, which is made with a new one, for its owner alone, when it isn't there.

    Raises ``serve.token`` when it is too short, OSError when the file can't be read or made.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return checked_token(path.read_text(encoding="utf-8").strip(), str(path))
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(token + "\n")
    return token


def checked_token(token: str, where: str) -> str:
    """The token itself. Raises ``serve.token``, which doesn't show it."""
    if len(token) < MIN_TOKEN_CHARS or not token.isascii() or not token.isprintable() or " " in token:
        raise AffectError(
            "serve.token",
            f"serve: expected a token of at least {MIN_TOKEN_CHARS} printable ASCII characters without "
            f"spaces in {where}, got {len(token)} characters; name a file that isn't there and it is made",
        )
    return token
