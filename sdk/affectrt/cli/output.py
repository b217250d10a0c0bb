"""What every command does with its terminal and its files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import monotonic
from typing import Any

from affectrt.errors import AffectError, require

QUIET_S = 2.0
"""Without a terminal, progress is told once this has passed …"""
REPEAT_S = 10.0
"""… and then this often."""


def warn(message: str) -> None:
    """One line on stderr."""
    print("affectrt: warning: " + " ".join(message.split()), file=sys.stderr)


def wants_colour() -> bool:
    """Whether stdout is a terminal whose user hasn't set NO_COLOR (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


@contextmanager
def output_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yields a function that writes ``path``; the file appears complete or not at all.

    Opened before the work starts, so that a path that can't be written costs no minutes. Raises
    ``output.unwritable``.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        if path.exists() and not path.is_file():
            # A device or a pipe is written in place.
            with path.open("wb") as device:

                def write_device(data: bytes) -> None:
                    device.write(data)

                yield write_device
            return
        partial = NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115
    except OSError as error:
        raise _unwritable(path, error) from error
    try:

        def write(data: bytes) -> None:
            try:
                with partial:
                    partial.write(data)
                # What the umask grants, not the 0600 of a temporary file.
                umask = os.umask(0)
                os.umask(umask)
                Path(partial.name).chmod(0o666 & ~umask)
                Path(partial.name).replace(path)
            except OSError as error:
                raise _unwritable(path, error) from error

        yield write
    finally:
        partial.close()
        Path(partial.name).unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> AffectError:
    return AffectError(
        "output.unwritable",
        f"can't write the output '{path}' ({error.strerror}); check that its folder exists and is yours",
    )


@contextmanager
def progress(label: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
    """Yields a function to call with how much of ``total`` is done.

    On a terminal a bar on stderr that goes away when done; else, and where rich isn't installed, a line on
    stderr now and then, and none for short work. ``total`` may be None when it isn't known.
    """
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield _Lines(label, total, unit)
        return
    rich: Any = require("rich.progress", "media")
    console: Any = require("rich.console", "media").Console(stderr=True)
    columns = [rich.TextColumn("{task.description}"), rich.BarColumn(), rich.TaskProgressColumn()]
    with rich.Progress(
        *columns, rich.TimeRemainingColumn(), console=console, transient=True, redirect_stdout=False
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


class _Lines:
    """Progress for logs."""

    def __init__(self, label: str, total: float | None, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._due = monotonic() + QUIET_S

    def __call__(self, done: float) -> None:
        if monotonic() < self._due:
            return
        self._due = monotonic() + REPEAT_S
        of = f" of {self._total:.0f}" if self._total is not None else ""
        print(f"affectrt: {self._label}: {done:.0f}{of} {self._unit}", file=sys.stderr)
