"""The one command, ``affectrt``. Subcommands are entry points of the group ``affectrt.commands``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points

from affectrt.errors import AffectError

USAGE_ERROR = 2


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
    def error(self, message: str) -> None:  # type: ignore[override]
        raise AffectError("cli.usage", f"{message}; see '{self.prog} --help'")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="affectrt",
        description="Reads how a person feels from text, audio and video, on the device.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for entry in sorted(entry_points(group="affectrt.commands"), key=lambda e: e.name):
        command: Command = entry.load()
        sub = subparsers.add_parser(
            entry.name,
            help=command.summary,
            description=command.summary,
            epilog=command.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``affectrt``; every :class:`AffectError` becomes one line on stderr and exit status 2."""
    try:
        args = _parser().parse_args(argv)
        return int(args.run(args))
    except AffectError as error:
        print(f"affectrt: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `affectrt analyze … | head` is not an error of ours.
        sys.stderr.close()
        return 0
