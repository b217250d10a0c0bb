"""A benchmark as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from affectrt.benchmark import Benchmark, Latency, Measured

NOT_TOLD = "not told by this machine"
"""The energy, where nothing counts it."""

LATENCY_HEAD = ("", "p50 ms", "p95 ms", "p99 ms", "per second", "× first", "quartiles")
PROCESS_HEAD = ("", "loads in", "peak memory", "bundle", "energy a window", "differs by")


def labels(benchmark: Benchmark) -> list[str]:
    """What to call each candidate: its backend, and its bundle where there are several."""
    bundles = {one.bundle for one in benchmark.measured}
    names = {Path(bundle).stem for bundle in bundles}
    if len(bundles) == 1:
        return [one.backend for one in benchmark.measured]
    short = len(names) == len(bundles)
    return [f"{Path(one.bundle).stem if short else one.bundle} · {one.backend}" for one in benchmark.measured]


def about(benchmark: Benchmark) -> list[str]:
    """What was done, in two lines."""
    return [
        f"A window: {'; '.join(dict.fromkeys(one.window for one in benchmark.measured))}.",
        f"One of each in turn, {benchmark.rounds} rounds, threads {benchmark.threads}; × is the median of "
        f"the rounds' ratios to the first.",
    ]


def latency_rows(benchmark: Benchmark) -> Iterator[tuple[str, ...]]:
    """A row for each candidate, followed by one, indented, for each of its stages."""
    for label, one in zip(labels(benchmark), benchmark.measured, strict=True):
        yield (label, *_latency(one.whole))
        for stage, latency in one.stages.items():
            yield (f"  {stage}", *_latency(latency))


def _latency(latency: Latency) -> tuple[str, ...]:
    times = (f"{time:.2f}" for time in (latency.p50_ms, latency.p95_ms, latency.p99_ms))
    if latency.ratio is None or latency.ratio_quartiles is None:
        return (*times, f"{latency.per_s:.1f}", "", "")
    low, high = latency.ratio_quartiles
    return (*times, f"{latency.per_s:.1f}", f"{latency.ratio:.2f}", f"{low:.2f}–{high:.2f}")


def process_rows(benchmark: Benchmark) -> Iterator[tuple[str, ...]]:
    """A row for each candidate: what loading and holding it takes."""
    for label, one in zip(labels(benchmark), benchmark.measured, strict=True):
        yield (
            label,
            f"{one.load_s:.2f} s",
            f"{one.peak_bytes / 1e6:.0f} MB",
            f"{one.bundle_bytes / 1e6:.1f} MB",
            energy(one.joules),
            _difference(one),
        )


def energy(joules: Mapping[str, float]) -> str:
    """Of a window, by meter."""
    return ", ".join(f"{value:.3g} J {name}" for name, value in joules.items()) or NOT_TOLD


def _difference(one: Measured) -> str:
    if one.difference is None:
        return "–"
    return f"{one.difference:.0e} from {one.compared_with}"


def table(benchmark: Benchmark) -> str:
    """All of it for a terminal."""
    lines = [*benchmark.machine, ""]
    if benchmark.measured:
        lines += [*about(benchmark), ""]
        lines += columns([LATENCY_HEAD, *latency_rows(benchmark)])
        lines += ["", *columns([PROCESS_HEAD, *process_rows(benchmark)])]
    for one in benchmark.refused:
        lines += ["", f"NO FIGURES  {one.bundle} on {one.backend}: [{one.code}] {one.message}"]
    return "\n".join(lines) + "\n"


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
