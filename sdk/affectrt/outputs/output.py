"""What an output is, and how results go to several without one stopping the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from affectrt.affect import Affect


class Output(Protocol):
    """Somewhere results go."""

    @property
    def name(self) -> str:
        """For people: ``osc 127.0.0.1:9000``."""

    def send(self, affect: Affect) -> None:
        """Pass one result on. May raise anything; the next result is tried again."""

    def close(self) -> None:
        """Nothing comes any more."""


class FanOut:
    """Results to all of them. That one fails is told once: ``output.failed``, and later ``output.back``."""

    def __init__(self, outputs: Sequence[Output], report: Callable[[str, str], None]) -> None:
        """``report`` takes a code and a message."""
        self._outputs = outputs
        self._report = report
        self._failed: set[str] = set()

    def send(self, affect: Affect) -> None:
        """Never raises for what an output does."""
        for output in self._outputs:
            try:
                output.send(affect)
            except Exception as error:  # of a network or a disk: the stream goes on
                if output.name not in self._failed:
                    self._failed.add(output.name)
                    self._report(
                        "output.failed", f"{output.name}: {error!r}; it is tried again with each result"
                    )
            else:
                if output.name in self._failed:
                    self._failed.discard(output.name)
                    self._report("output.back", f"{output.name}: it takes results again")

    def close(self) -> None:
        """All of them."""
        for output in self._outputs:
            try:
                output.close()
            except Exception as error:  # the others are still to be closed
                self._report("output.failed", f"{output.name}: {error!r} at its end")
