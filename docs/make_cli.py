"""Writes ``cli.md`` from what ``affectrt COMMAND --help`` says: ``make docs``, after an option changes."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

HEAD = """\
# Command line

Written by `make docs` from `affectrt COMMAND --help`.

What you can mend ends in one line on stderr, `affectrt: [code] message`, where the code is stable, and exit
status 2. Status 1 is a command's own "no", 70 a bug of ours, 130 an interruption. A command whose libraries
are not installed says which extra brings them.
"""


def help_of(command: str) -> str:
    """What ``affectrt COMMAND --help`` prints."""
    done = subprocess.run(
        [sys.executable, "-c", "import affectrt.cli as c; c.main()", command, "--help"],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())


def main() -> None:
    """Write the page."""
    names = sorted(entry.name for entry in entry_points(group="affectrt.commands"))
    sections = [f"## affectrt {name}\n\n```text\n{help_of(name)}\n```\n" for name in names]
    (Path(__file__).parent / "cli.md").write_text("\n".join([HEAD, *sections]), encoding="utf-8")


if __name__ == "__main__":
    main()
