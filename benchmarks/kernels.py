"""How fast are the native operators, and the fusion built from them, against what else one can install?

Run from the repository root:

    python -m benchmarks.kernels [--json] [--rounds N] [--quick] [--only ghrnn,pairwise_attention,fusion,tick]

Every contender must first agree with float64; if one does not, nothing is timed and the exit status is 1.
Then, for one thread and for two, all take turns within every round, and what is reported is a peer's time
over ours: the median of the rounds' ratios, with their quartiles. Targets are what the project set itself for
one thread. A figure is a fact and no test: a missed target does not change the exit status.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module

from benchmarks import machine
from benchmarks.timing import TOLERANCE, Case, Result, measure, wrong

OPERATORS = {
    "ghrnn": "benchmarks.cases.ghrnn",
    "pairwise_attention": "benchmarks.cases.attention",
    "fusion": "benchmarks.cases.fusion",
    "tick": "benchmarks.cases.tick",
}
THREADS = (1, 2)
ROUNDS, QUICK_ROUNDS = 31, 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, time, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    parser.add_argument("--rounds", type=_positive, help=f"turns of each (default: {ROUNDS})")
    parser.add_argument(
        "--quick", action="store_true", help="one shape, one thread, a few rounds, not compiled"
    )
    parser.add_argument("--only", type=_operators, default=list(OPERATORS), help=f"of {','.join(OPERATORS)}")
    args = parser.parse_args(arguments)
    cases: list[Case] = []
    for operator in args.only:
        _progress(f"{operator}: preparing")
        # Imported when asked for: the recurrence alone needs no model and no exporter.
        cases += import_module(OPERATORS[operator]).cases(THREADS[:1] if args.quick else THREADS, args.quick)
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    return report(cases, rounds, as_json=args.json)


def report(cases: Sequence[Case], rounds: int, *, as_json: bool) -> int:
    """Time and print ``cases`` if all that take part are right; the exit status."""
    head = machine.lines()  # first: the load is that of others
    _progress("checking against float64")
    if found := wrong(cases):
        _progress("")
        print("\n".join(["Numbers are wrong, so no speed is reported:", *found]), file=sys.stderr)
        return 1
    results: list[Result] = []
    for index, case in enumerate(cases):
        _progress(f"{index + 1} of {len(cases)}: {case.operator} {case.shape}, {_threads(case)}")
        results += measure(case, rounds)
    _progress("")
    if as_json:
        print("\n".join(head), file=sys.stderr)
        print("[" + ",\n ".join(json.dumps(asdict(result)) for result in results) + "]")
    else:
        _print_table(head, cases, results, rounds)
    return 0


def _print_table(head: Sequence[str], cases: Sequence[Case], results: Sequence[Result], rounds: int) -> None:
    print("\n".join(head))
    print(f"Every contender within {TOLERANCE:.0e} of float64, unless said otherwise. Peer's time over ours:")
    print(f"median of {rounds} rounds (quartiles); times are medians.")
    waiting = iter(results)
    for case in cases:
        of_case = [next(waiting) for _ in case.peers]
        print(f"\n{case.operator}  {case.shape}, {_threads(case)}: native {_time(of_case[0].ours_us)}")
        for result in of_case:
            low, high = result.spread
            ratio = f"{result.ratio:.2f} ({low:.2f}–{high:.2f})"
            print(f"  {result.peer:<46}{_time(result.peer_us):>10}{ratio:>24}  {result.verdict}".rstrip())


def _threads(case: Case) -> str:
    said = f"threads {case.threads}"
    return said if case.ours_threads == case.threads else f"{said}, native {case.ours_threads}"


def _time(us: float) -> str:
    return f"{us:.1f} µs" if us < 1000 else f"{us / 1000:.2f} ms"


def _progress(said: str) -> None:
    """One line that the next one replaces, for people only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{said}", end="", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _operators(text: str) -> list[str]:
    names = text.split(",")
    if foreign := [name for name in names if name not in OPERATORS]:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(OPERATORS)}, got {','.join(foreign)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
