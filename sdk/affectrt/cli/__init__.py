"""The one command, ``affectrt``. Subcommands are entry points of the group ``affectrt.commands``.

What the user can mend ends as one line on stderr, ``affectrt: [code] message``, and exit status 2. Status 1
is a command's own "no" (doctor found a fault), 70 a bug of ours, 130 an interruption.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import NoReturn

from affectrt import __version__
from affectrt.errors import AffectError

USAGE_ERROR = 2
INTERNAL_ERROR = 70
INTERRUPTED = 130

TRACEBACK_VARIABLE = "AFFECTRT_TRACEBACK"
"""Environment variable: when set, a bug shows its traceback."""


@dataclass(frozen=True)
class Command:
    """One subcommand. Its module imports nothing heavy; ``run`` does."""

    summary: str
    """One line for ``affectrt --help``."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    """Returns the exit status; raises AffectError for what the user can mend."""
    examples: str = ""
    """Shown at the end of ``affectrt NAME --help``."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise AffectError("cli.usage", f"{message}; see '{self.prog} --help'")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``affectrt`` and return its exit status; only ``--help`` and ``--version`` raise SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that knows no "─" or "●" shows a question mark instead of failing.
            stream.reconfigure(errors="replace")
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except AffectError as error:
        return _fail(str(error), USAGE_ERROR)
    except BrokenPipeError:
        # `affectrt analyze … | head` is not an error; the interpreter's last flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"[os.error] {error}", USAGE_ERROR)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        return _fail(
            f"[internal.error] {type(error).__name__}: {error}; this is a bug, please report it with what "
            f"'{TRACEBACK_VARIABLE}=1 affectrt …' prints",
            INTERNAL_ERROR,
        )


def _run(argv: list[str]) -> int:
    entries = {entry.name: entry for entry in entry_points(group="affectrt.commands")}
    chosen = next((word for word in argv if not word.startswith("-")), None)
    parser = _Parser(
        prog="affectrt",
        description="Reads how a person feels from text, audio and video, on the device.",
        epilog="'affectrt COMMAND --help' shows the options of one command, with examples.",
    )
    parser.add_argument(
        "--version", action="version", version=f"affectrt {__version__}", help="show the version and exit"
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    if chosen in entries:
        # The others stay unimported: one broken or slow command never costs the rest anything.
        _add(subparsers, entries[chosen])
    else:
        for _, entry in sorted(entries.items()):
            _add(subparsers, entry)
    if chosen is not None and chosen not in entries:
        near = difflib.get_close_matches(chosen, entries, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise AffectError(
            "cli.unknown_command", f"unknown command '{chosen}'; {hint}commands: {', '.join(sorted(entries))}"
        )
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        of = f"affectrt {chosen}" if chosen else "affectrt"
        raise AffectError("cli.usage", f"unknown argument '{unknown[0]}'; see '{of} --help'")
    if chosen is None:
        raise AffectError("cli.usage", f"no command given; commands: {', '.join(sorted(entries))}")
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)


def _add(subparsers: argparse._SubParsersAction[_Parser], entry: EntryPoint) -> None:
    try:
        command: Command = entry.load()
    except (ImportError, AttributeError) as error:
        fault = f"the command '{entry.name}' could not be loaded from {entry.value}: {error}"
        summary = "(not available here)"

        def refuse(_: argparse.Namespace) -> NoReturn:
            raise AffectError(
                "cli.command_broken", f"{fault}; reinstall affectrt or the package that adds it"
            )

        subparsers.add_parser(entry.name, help=summary, description=summary).set_defaults(run=refuse)
        return
    sub = subparsers.add_parser(
        entry.name,
        help=command.summary,
        description=command.summary,
        epilog=command.examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(sub)
    sub.set_defaults(run=command.run)


def _fail(message: str, status: int) -> int:
    # One line, whatever a library wrote into its own message.
    print("affectrt: " + " ".join(message.split()), file=sys.stderr)
    return status
