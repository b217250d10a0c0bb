"""Where and with what figures were measured: what the SDK tells of a machine, and the commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

from affectrt import machine


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
    of = commit()
    return list(machine.lines([f"commit {of}"] if of else []))
