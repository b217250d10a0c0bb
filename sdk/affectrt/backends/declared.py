"""Backends of other packages: entry points of the group ``affectrt.backends``.

The device package imports no workstation library; whoever owns one declares what it can do with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from affectrt.errors import AffectError

if TYPE_CHECKING:
    from affectrt.backends import Fusion
    from affectrt.bundle import Bundle

GROUP = "affectrt.backends"


@dataclass(frozen=True)
class Backend:
    """One backend. Its module imports nothing heavy; ``load`` does. It computes in float32."""

    devices: tuple[str, ...]
    """Where it can run a fusion model: ``cpu``, ``cuda``."""
    check: Callable[[Bundle], None]
    """Raises what stands in its way here, as far as can be told without starting it."""
    load: Callable[[Bundle, str, int | None], Fusion]
    """The fusion model of a bundle on ``cpu``, ``cuda`` or ``auto`` (``cuda`` where it can), with so many
    threads on the processor, None: one per core."""


def declared() -> dict[str, EntryPoint]:
    """Name → where it is, in order of the names."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def find_backend(name: str) -> Backend | None:
    """A declared backend; None: nobody declares that name. Raises ``backend.broken``."""
    entry = declared().get(name)
    if entry is None:
        return None
    try:
        found: Backend = entry.load()
    except (ImportError, AttributeError) as error:
        raise AffectError(
            "backend.broken",
            f"backend {name}: could not be loaded from {entry.value}: {error}; install the package that "
            f"declares it again",
        ) from error
    return found
