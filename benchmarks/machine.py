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
    """Two lines for the head of a table: the machine as it is now, then versions and date."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"
    versions = [f"python {platform.python_version()}"]
    versions += [f"{name} {metadata.version(name)}" for name in PACKAGES]
    if of := commit():
        versions.append(f"commit {of}")
    return [
        f"{processor()}, {native.instruction_sets()[0]}, {cores} cores, load {load}, "
        f"{platform.system()} {platform.release()} {platform.machine()}",
        f"{', '.join(versions)}; {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    ]
