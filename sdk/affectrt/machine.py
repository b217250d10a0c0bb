"""Where and with what figures were measured: no path and no name of a person or a host."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from affectrt.backends.native import extension
from affectrt.errors import AffectError

PACKAGES = ("affectrt", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "torch")
"""Whose versions a figure depends on, where they are installed."""

BUSY = 0.5
"""Load average of the last minute above which a figure on two threads is worth little."""


def machine() -> str:
    """Processor, cores this process may use, system."""
    return f"{processor()}, {cores()} cores for this process, {platform.system()} {platform.machine()}"


def processor() -> str:
    """The processor's name as Linux tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lines(more: Sequence[str] = ()) -> tuple[str, ...]:
    """The head of a table: the machine as it is now, then versions and date, then a warning if it is busy.

    ``more``: what else the figures depend on, after the versions.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    versions = [f"python {platform.python_version()}", *_versions(), *more]
    said = (
        f"{processor()}{_instruction_set()}, {cores()} cores, load {load:.2f}, "
        f"{platform.system()} {platform.release()} {platform.machine()}",
        f"{', '.join(versions)}; {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    )
    if load <= BUSY:
        return said
    return (
        *said,
        "The machine is busy: peers whose threads wait for each other look far slower than they are.",
    )


def _instruction_set() -> str:
    """The one that the C++ kernels take here; nothing without them."""
    try:
        return f", {extension().instruction_sets()[0]}"
    except AffectError:
        return ""


def _versions() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found
