"""How long a window takes as a bundle, for its manifest."""

from __future__ import annotations

from pathlib import Path

from affectrt.backends.choice import DEVICES, obstacle
from affectrt.benchmark import measure
from affectrt.bundle import Bundle
from affectrt.errors import AffectError
from affectrt.manifest import MeasuredLatency

ROUNDS = 50
"""Windows on each backend: enough for a 95th percentile."""


def cpu_backends(path: Path) -> list[str]:
    """Those of the CPU that can run a bundle here."""
    bundle = Bundle.open(path)
    return [name for name in DEVICES["cpu"] if obstacle(name, bundle) is None]


def latency_of(path: Path) -> tuple[MeasuredLatency, ...]:
    """Time a written bundle on every backend of the CPU that can run it, one thread, in turns.

    Raises what :func:`affectrt.benchmark.measure` does, and ``export.verify`` when backends disagree.
    """
    found = measure([path], backends=cpu_backends(path), rounds=ROUNDS)
    if found.refused:
        one = found.refused[0]
        raise AffectError("export.verify", f"{one.backend}: {one.message}; nothing was written")
    return tuple(
        MeasuredLatency(
            backend=one.backend,
            p50_ms=round(one.whole.p50_ms, 3),
            p95_ms=round(one.whole.p95_ms, 3),
            window=one.window,
            machine="; ".join(found.machine),
        )
        for one in found.measured
    )
