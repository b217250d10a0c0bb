"""The one exception type of AffectRT."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class AffectError(Exception):
    """A fault the caller can act on.

    ``code`` is stable and dotted (``"bundle.hash_mismatch"``), so programs can branch on it; the
    message is for people and says who complains, what was expected, what came and what to do.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"

    def __reduce__(self) -> tuple[type[AffectError], tuple[str, str]]:
        # The default would rebuild with one argument and fail in a worker process.
        return (type(self), (self.code, self.message))


def require(module: str, extra: str) -> ModuleType:
    """Import a library that one of our extras brings, by dotted name.

    Raises ``extra.missing`` naming the extra to install when it is absent.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise AffectError(
            "extra.missing",
            f"this needs the library '{module}', which could not be imported ({error}); "
            f"install it with: pip install 'affectrt[{extra}]'",
        ) from error
