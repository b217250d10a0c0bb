"""``affectrt bench``: how fast bundles run here, on which backend; right first, then timed in turns."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from affectrt.backends.choice import known_backends
from affectrt.cli import Command
from affectrt.cli.bench_live import add_live_options, run_live
from affectrt.cli.output import output_file, progress
from affectrt.errors import AffectError, require

REFUSED_STATUS = 1


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", metavar="BUNDLE", type=Path, nargs="+", help="models, .affect files")
    parser.add_argument(
        "--backends",
        metavar="NAME",
        nargs="+",
        choices=known_backends(),
        help=f"some of {', '.join(known_backends())} (default: all that can run the bundle here)",
    )
    parser.add_argument(
        "--threads", metavar="N", type=_whole, default=1, help="threads of each graph (default: 1)"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds",
        metavar="S",
        type=_seconds,
        default=10.0,
        help="how long to measure, for each bundle on each backend (default: 10)",
    )
    length.add_argument("--rounds", metavar="N", type=_whole, help="turns of each instead")
    parser.add_argument(
        "--clip",
        metavar="FILE",
        type=Path,
        help="the first 20 s of a video or sound file instead of made-up input; decoding isn't timed",
    )
    add_live_options(parser, _whole, _seconds)
    parser.add_argument("--transcript", metavar="FILE", type=Path, help="its words: .srt, .vtt or .txt")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all of it, every time included")
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="write one page with a plot; takes affectrt[plot]"
    )


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got '{text}'")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got '{text}'")
    return seconds


def _run(args: argparse.Namespace) -> int:
    from affectrt.benchmark import measure
    from affectrt.cli.bench_table import table

    if args.stream is not None or args.soak is not None:
        return run_live(args)
    if args.mode != "window":
        raise AffectError("bench.settings", "bench: --mode is of streams; add --stream or --soak")
    if args.html is not None:
        require("matplotlib", "plot")  # before minutes of work
    with ExitStack() as stack:
        write_json, write_html = (
            stack.enter_context(output_file(path)) if path is not None else None
            for path in (args.json, args.html)
        )
        with progress("measuring", 100.0, "%") as update:
            found = measure(
                args.bundles,
                backends=args.backends,
                threads=args.threads,
                seconds=args.seconds,
                rounds=args.rounds,
                clip=args.clip,
                transcript=args.transcript,
                progress=lambda share: update(100.0 * share),
            )
        if write_json is not None:
            write_json((json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n").encode())
        if write_html is not None:
            from affectrt.cli.bench_page import page

            write_html(page(found).encode())
    print(table(found), end="")
    sys.stdout.flush()
    return REFUSED_STATUS if found.refused else 0


COMMAND = Command(
    summary="Measure how fast bundles run here, on every backend that can, and compare them.",
    add_arguments=_add_arguments,
    run=_run,
    examples="""\
Every backend first has to say what the others say of the same input, within the tolerance of
'affectrt doctor': one that doesn't gets no figures, and the exit status is 1. All then take turns,
a window each, so that what else the machine does falls on all alike; × compares with the first.
Every candidate has a process of its own, and memory and the time to load are that process's.

--stream and --soak measure live streams instead, in this process: pictures of 512 x 512 at 25 a
second, sound, and the words of --transcript. What is pushed is made ready beforehand.

examples:
  affectrt bench starter.affect
  affectrt bench fp32.affect int8.affect --backends native            # what int8 gains
  affectrt bench starter.affect --clip clip.mp4 --transcript clip.srt --html bench.html
  affectrt bench starter.affect --stream 4 --clip clip.mp4 --transcript clip.srt   # does it hold 10 Hz?
  affectrt bench starter.affect --soak 60 --clip clip.mp4             # an hour, as fast as it goes
  affectrt bench starter.affect --backends native onnxruntime --threads 2 --rounds 200 --json bench.json
""",
)
