"""``affectrt bench --stream`` and ``--soak``: what live streams cost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from affectrt.cli.bench_table import columns
from affectrt.cli.bundles import add_mode_option
from affectrt.cli.output import output_file, progress
from affectrt.errors import AffectError

if TYPE_CHECKING:
    from affectrt.benchmark_live import LiveBenchmark, Soaked
    from affectrt.streaming.statistics import Quantiles


def add_live_options(parser: argparse.ArgumentParser, whole: Any, seconds: Any) -> None:
    """Those of ``affectrt bench`` that are about streams; ``whole`` and ``seconds`` read their numbers."""
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--stream",
        metavar="N",
        type=whole,
        nargs="?",
        const=1,
        help="N live streams at once in real time instead (default: 1), --seconds long",
    )
    kind.add_argument(
        "--soak",
        metavar="MINUTES",
        type=seconds,
        help="so many minutes of media through one stream, as fast as it goes: does its memory grow?",
    )
    add_mode_option(parser)
    parser.add_argument(
        "--every",
        metavar="S",
        type=seconds,
        default=0.1,
        help="of streams: seconds from result to result (default: 0.1)",
    )


def run_live(args: argparse.Namespace) -> int:
    """Measure and print. Raises ``bench.settings`` for options that don't go with streams."""
    from affectrt.benchmark_live import measure_live, soak

    if len(args.bundles) > 1 or len(args.backends or ()) > 1 or args.html or args.rounds:
        raise AffectError(
            "bench.settings",
            "bench: streams take one bundle, at most one backend, --seconds and --json; leave out the rest",
        )
    given: dict[str, Any] = {
        "hop_s": args.every,
        "mode": args.mode,
        "backend": args.backends[0] if args.backends else None,
        "threads": args.threads,
        "clip": args.clip,
        "transcript": args.transcript,
    }
    with ExitStack() as stack:
        write = stack.enter_context(output_file(args.json)) if args.json is not None else None
        with progress("measuring", 100.0, "%") as update:
            given["progress"] = lambda share: update(100.0 * share)
            if args.soak is not None:
                steps = soak(args.bundles[0], minutes=args.soak, **given)
                told, text = [asdict(step) for step in steps], soak_table(steps)
            else:
                found = measure_live(args.bundles[0], streams=args.stream, seconds=args.seconds, **given)
                told, text = [asdict(found)], live_table(found)
        if write is not None:
            write((json.dumps(told, indent=1) + "\n").encode())
    print(text, end="")
    return 0


def live_table(found: LiveBenchmark) -> str:
    """For a terminal."""
    rates = ", ".join(f"{rate:.1f}" for rate in found.results_per_s)
    rows: list[tuple[str, ...]] = [("", "p50 ms", "p95 ms", "p99 ms")]
    rows += [("capture to result", *_times(found.latency))]
    rows += [(f"  {stage}", *_times(times)) for stage, times in found.stages.items()]
    events = ", ".join(f"{code} {count}×" for code, count in found.events.items()) or "none"
    lines = [
        *found.machine,
        "",
        f"{found.streams} live, mode {found.mode}, a result every {found.hop_s:g} s, {found.seconds:.0f} s, "
        f"on {found.backend}: {found.scene}.",
        "",
        f"processor  {found.cores_per_stream:.0%} of one core for each stream",
        f"results    {rates} a second",
        f"events     {events}",
        "",
        *columns(rows),
    ]
    return "\n".join(lines) + "\n"


def _times(times: Quantiles) -> tuple[str, ...]:
    return tuple(f"{time:.1f}" for time in (times.p50_ms, times.p95_ms, times.p99_ms))


def soak_table(steps: Sequence[Soaked]) -> str:
    """For a terminal; the last line tells how memory grew after the first step."""
    rows: list[tuple[str, ...]] = [("media", "memory", "a result takes")]
    rows += [
        (f"{step.media_s / 60:.1f} min", f"{step.rss_bytes / 1e6:.1f} MB", f"{step.result_ms:.1f} ms")
        for step in steps
    ]
    first, last = steps[0].rss_bytes, steps[-1].rss_bytes
    rows.append(("after the first step", f"{last / first - 1.0:+.1%}" if first else "not told", ""))
    return "\n".join(columns(rows)) + "\n"
