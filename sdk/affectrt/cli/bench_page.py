"""A benchmark as one HTML page that needs nothing from elsewhere: a plot of the times, then the tables."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from affectrt.benchmark import Benchmark, Latency
from affectrt.cli.bench_table import (
    LATENCY_HEAD,
    PROCESS_HEAD,
    about,
    labels,
    latency_rows,
    process_rows,
)
from affectrt.errors import require

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which most people can tell apart; every row has its name beside it."""

PLOT_TITLE = "Time of a window and of its stages, by candidate"

MOST_DOTS = 400
"""Longer runs show this many of their rounds, evenly picked."""

_INK, _FAINT = "#222831", "#8a9099"

_STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; color: #222831; background: #fff; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
figure { margin: 1rem 0 } figure svg { width: 100%; height: auto } figcaption { color: #555c66 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .8rem; text-align: right; white-space: nowrap }
th:first-child { text-align: left } tbody th { font-weight: normal }
tr.whole th, tr.whole td { border-top: 1px solid #d5d9de; font-weight: 600 }
tr.stage th { padding-left: 2rem }
.refused { border-left: 4px solid #b3261e; padding-left: 1rem }"""


def page(benchmark: Benchmark) -> str:
    """The page. Needs matplotlib, no display, where something was measured."""
    bundles = [one.bundle for one in benchmark.measured] + [one.bundle for one in benchmark.refused]
    title = f"affectrt bench: {', '.join(dict.fromkeys(bundles))}"
    body = [f"<h1>{escape(title)}</h1>", *_paragraphs(benchmark.machine)]
    if benchmark.measured:
        body += [
            *_paragraphs(about(benchmark)),
            _figure(benchmark),
            "<h2>How long it takes</h2>",
            _table(LATENCY_HEAD, latency_rows(benchmark)),
            "<h2>What it takes besides</h2>",
            _table(PROCESS_HEAD, process_rows(benchmark)),
        ]
    if benchmark.refused:
        body.append("<h2>Without figures</h2>")
        for one in benchmark.refused:
            told = f"{one.bundle} on {one.backend}: [{one.code}] {one.message}"
            body.append(f'<p class="refused">{escape(told)}</p>')
    joined = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n{joined}\n</body>\n</html>\n"
    )


def _paragraphs(lines: Iterable[str]) -> list[str]:
    return [f"<p>{escape(line)}</p>" for line in lines]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ['<div class="wide"><table>', "<thead><tr>"]
    lines += [f'<th scope="col">{escape(cell)}</th>' for cell in head]
    lines += ["</tr></thead>", "<tbody>"]
    for label, *cells in rows:
        kind = "stage" if label.startswith(" ") else "whole"
        told = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr class="{kind}"><th scope="row">{escape(label.strip())}</th>{told}</tr>')
    return "\n".join([*lines, "</tbody>", "</table></div>"])


def _figure(benchmark: Benchmark) -> str:
    names = labels(benchmark)
    medians = "; ".join(
        f"{name} {one.whole.p50_ms:.2f}" for name, one in zip(names, benchmark.measured, strict=True)
    )
    alt = (
        f"Times of the rounds, for the whole window and each of its stages. Medians of the whole in "
        f"milliseconds: {medians}. The tables below hold all figures."
    )
    drawn = plot_svg(benchmark)
    svg = drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
    return (
        f"<figure>\n{svg.strip()}\n<figcaption>A dot is a round. Box: quartiles and median; whiskers: 5 % "
        f"and 95 %; diamond: 99 %.</figcaption>\n</figure>"
    )


def plot_svg(benchmark: Benchmark) -> str:
    """A panel for the whole window and one for each stage, a row for each candidate."""
    matplotlib: Any = require("matplotlib", "plot")
    figure_class: Any = require("matplotlib.figure", "plot").Figure
    stages = list(dict.fromkeys(stage for one in benchmark.measured for stage in one.stages))
    panels: list[tuple[str, list[Latency | None]]] = []
    panels.append(("whole window", [one.whole for one in benchmark.measured]))
    panels += [(stage, [one.stages.get(stage) for one in benchmark.measured]) for stage in stages]
    names = labels(benchmark)
    panel_in = 0.62 + 0.34 * len(names)
    # The same run gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "affectrt", "font.family": "sans-serif"}):
        figure = figure_class(figsize=(9.6, panel_in * len(panels)), layout="constrained", facecolor="white")
        for axes, (title, rows) in zip(np.atleast_1d(figure.subplots(len(panels), 1)), panels, strict=True):
            _panel(axes, title, names, rows)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Title": PLOT_TITLE})
    return out.getvalue()


def _panel(axes: Any, title: str, names: Sequence[str], rows: Sequence[Latency | None]) -> None:
    random = np.random.default_rng(0)
    for place, latency in enumerate(rows):
        if latency is None:
            continue
        colour = COLOURS[place % len(COLOURS)]
        times = np.asarray(latency.times_ms)
        picked = times[np.linspace(0, len(times) - 1, min(len(times), MOST_DOTS)).round().astype(int)]
        apart = place + random.uniform(-0.26, 0.26, len(picked))
        axes.plot(picked, apart, "o", color=colour, markersize=2.6, alpha=0.35, markeredgewidth=0, zorder=2)
        low, left, middle, right, high = np.percentile(times, [5, 25, 50, 75, 95])
        axes.barh(place, right - left, 0.5, left, color=colour, alpha=0.25, linewidth=0, zorder=3)
        axes.hlines([place, place], [low, right], [left, high], color=_INK, linewidth=1.1, zorder=4)
        axes.vlines([low, high], place - 0.12, place + 0.12, color=_INK, linewidth=1.1, zorder=4)
        axes.vlines(middle, place - 0.25, place + 0.25, color=_INK, linewidth=2.2, zorder=4)
        axes.plot(latency.p99_ms, place, "D", color=colour, markersize=5, zorder=5)
        axes.annotate(
            f"{latency.p50_ms:.2f} ms",
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=_INK,
            annotation_clip=False,
        )
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylim(len(names) - 0.45, -0.55)
    # The slowest hundredth may be far away; what is beyond the diamonds is in the JSON.
    furthest = max(latency.p99_ms for latency in rows if latency is not None)
    axes.set_xlim(0, furthest * 1.06)
    axes.tick_params(colors=_FAINT, labelcolor=_INK, labelsize=9, length=3)
    axes.grid(axis="x", color="#e8eaed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("milliseconds", fontsize=8.5, color=_FAINT, loc="right", labelpad=1)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#d5d9de")
