"""Tells on stderr what an export is doing and what each stage took."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic
from typing import Any

from affectrt.errors import require

Stages = Callable[[str], AbstractContextManager[None]]
"""Called with what is about to be done; it is being done while the context lasts."""


def silent(_: str) -> AbstractContextManager[None]:
    """Stages for programs: nothing is shown."""
    return nullcontext()


def shown() -> Stages:
    """Stages for people: a line for each when it is done, and a spinner until then on a terminal."""
    console: Any = require("rich.console", "media").Console(stderr=True, highlight=False)

    @contextmanager
    def stage(what: str) -> Iterator[None]:
        start = monotonic()
        # Without a terminal rich shows no spinner.
        with console.status(what):
            yield
        console.print(f"{what:<58} {monotonic() - start:6.1f} s", markup=False)

    return stage
