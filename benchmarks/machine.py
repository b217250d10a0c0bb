"""Where and with what figures were measured: no path and no name of a person or a host."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from affectrt_kernels import native

PACKAGES = ("numpy", "torch", "onnxruntime", "affectrt")
BUSY = 0.5
"""Load average of the last minute above which a figure on two threads is worth little."""


def processor() -> str:
    """The processor's name as Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """The commit of this checkout, marked when tracked files differ from it; empty outside one."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip()


def lines() -> list[str]:
    """The head of a table: the machine as it is now, then versions and date, then a warning if it is busy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    versions = [f"python {platform.python_version()}"]
    versions += [f"{name} {metadata.version(name)}" for name in PACKAGES]
    if of := commit():
        versions.append(f"commit {of}")
    said = [
        f"{processor()}, {native.instruction_sets()[0]}, {cores} cores, load {load:.2f}, "
        f"{platform.system()} {platform.release()} {platform.machine()}",
        f"{', '.join(versions)}; {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    ]
    if load > BUSY:
        said.append(
            "The machine is busy: peers whose threads wait for each other look far slower than they are."
        )
    return said
