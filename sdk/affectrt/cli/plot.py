"""A timeline as a picture: sentiment with its interval, emotions stacked, and what was present."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from affectrt.affect import EMOTIONS, MODALITIES, SENTIMENT_LIMIT, Affect
from affectrt.errors import require

COLOURS = {
    "anger": "#d1495b",
    "disgust": "#7a8b3c",
    "fear": "#7b5ea7",
    "joy": "#f2b134",
    "neutral": "#c9ccd1",
    "sadness": "#4a7fb5",
    "surprise": "#3fb0a3",
}
"""One hue per emotion; neighbours in the stack differ in lightness too, so that they part in greyscale."""

LONGEST_TITLE = 100
"""Characters; a longer title loses its middle."""

MOST_DOTS = 121
"""Longer timelines show the line alone."""

_INK, _FAINT, _LINE = "#222831", "#8a9099", "#23558f"
_LAMP_NAMES = {"text": "words", "audio": "voice", "vision": "face"}


def timeline_png(rows: Sequence[Affect], *, title: str, every_s: float) -> bytes:
    """The PNG of a timeline whose rows (at least one) are ``every_s`` apart. Needs matplotlib, no display."""
    figure_class: Any = require("matplotlib.figure", "plot").Figure
    canvas_class: Any = require("matplotlib.backends.backend_agg", "plot").FigureCanvasAgg
    figure = figure_class(figsize=(11, 6.4), dpi=130, facecolor="white")
    canvas_class(figure)
    margins = {"left": 0.115, "right": 0.87, "top": 0.94, "bottom": 0.08, "hspace": 0.14}
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[3.2, 3.2, 1], gridspec_kw=margins)
    points = _points(rows, every_s)
    _sentiment(top, rows, points)
    _emotions(middle, points)
    _presence(bottom, rows, every_s)
    short = (
        title
        if len(title) <= LONGEST_TITLE
        else f"{title[: LONGEST_TITLE // 2]}…{title[-LONGEST_TITLE // 2 :]}"
    )
    top.set_title(short, loc="left", fontsize=12, color=_INK, pad=10, parse_math=False)
    for axes in (top, middle, bottom):
        axes.set_xlim(rows[0].time_s - every_s, rows[-1].time_s)
        axes.tick_params(colors=_FAINT, labelcolor=_INK, labelsize=9, length=3)
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)
    bottom.set_xlabel("time in seconds", fontsize=9, color=_INK)
    out = io.BytesIO()
    with warnings.catch_warnings():
        # A file name in a script that the font lacks shows boxes; nobody can do anything about it here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(out, format="png", metadata={"Software": "AffectRT"})
    return out.getvalue()


def _points(rows: Sequence[Affect], every_s: float) -> list[tuple[float, Affect]]:
    """Times to draw rows at.

    A row speaks of the time up to it, so each run of rows that rest on something starts one step early: a
    single row between two silent ones stays visible.
    """
    points = []
    for k, row in enumerate(rows):
        if k == 0 or (row.present and not rows[k - 1].present):
            points.append((_begin(rows, k, every_s), row))
        points.append((row.time_s, row))
    return points


def _begin(rows: Sequence[Affect], k: int, every_s: float) -> float:
    """From when row ``k`` is drawn: one step before it, less where the row before is nearer than that."""
    before = rows[k].time_s - every_s
    return max(before, rows[k - 1].time_s) if k else before


def _curve(points: Sequence[tuple[float, Affect]], value: Callable[[Affect], float]) -> Any:
    """(N,) values, NaN where the row rests on nothing."""
    return np.array([value(row) if row.present else np.nan for _, row in points])


def _sentiment(axes: Any, rows: Sequence[Affect], points: Sequence[tuple[float, Affect]]) -> None:
    times = [time_s for time_s, _ in points]
    low, high = _curve(points, lambda row: row.interval[0]), _curve(points, lambda row: row.interval[1])
    axes.axhline(0, color=_FAINT, linewidth=0.8, zorder=1)
    axes.fill_between(times, low, high, color=_LINE, alpha=0.16, linewidth=0, label="90 % interval")
    axes.plot(times, _curve(points, lambda row: row.sentiment), color=_LINE, linewidth=2, label="sentiment")
    if len(rows) <= MOST_DOTS:
        dots = [(row.time_s, row.sentiment) for row in rows if row.present]
        axes.plot([t for t, _ in dots], [s for _, s in dots], "o", color=_LINE, markersize=4, clip_on=False)
    axes.set_ylim(-SENTIMENT_LIMIT, SENTIMENT_LIMIT)
    axes.set_yticks(
        np.arange(-3, 4), ["−3 very negative", "−2", "−1", "0 neutral", "+1", "+2", "+3 very positive"]
    )
    axes.grid(axis="y", color="#e8eaed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, labelcolor=_INK)


def _emotions(axes: Any, points: Sequence[tuple[float, Affect]]) -> None:
    times = [time_s for time_s, _ in points]
    shares = [[row.emotions[name] if row.present else np.nan for _, row in points] for name in EMOTIONS]
    edges = np.cumsum([[0.0] * len(points), *shares], axis=0)
    bands = [
        axes.fill_between(
            times, edges[k], edges[k + 1], color=COLOURS[name], edgecolor="white", linewidth=0.6, label=name
        )
        for k, name in enumerate(EMOTIONS)
    ]
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    # Reversed, so that the legend reads in the order of the stack.
    axes.legend(
        handles=bands[::-1],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
    )


def _presence(axes: Any, rows: Sequence[Affect], every_s: float) -> None:
    for track, modality in enumerate(reversed(MODALITIES)):
        begins = [_begin(rows, k, every_s) for k in range(len(rows))]
        spans = [(begin, row.time_s - begin) for begin, row in zip(begins, rows, strict=True)]
        lit = [span for span, row in zip(spans, rows, strict=True) if modality in row.present]
        axes.broken_barh(spans, (track - 0.32, 0.64), facecolors="#eef0f2", linewidth=0)
        axes.broken_barh(lit, (track - 0.32, 0.64), facecolors="#3fa34d", linewidth=0)
    axes.set_ylim(-0.6, len(MODALITIES) - 0.4)
    axes.set_yticks(range(len(MODALITIES)), [_LAMP_NAMES[m] for m in reversed(MODALITIES)])
