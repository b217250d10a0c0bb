"""The pictures of a comparison, as PNG. Needs matplotlib, no display.

Colours are Okabe and Ito's, which colour-blind people tell apart; what they say is in shapes and labels, too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from affectrt.affect import EMOTIONS
from affectrt.errors import require
from affectrt_training.evaluation.conclusion import Comparison
from affectrt_training.evaluation.fits import Attention
from affectrt_training.evaluation.measures import MEASURES, Measure
from affectrt_training.evaluation.summary import BASELINE, Row, Score

KIND_COLOURS = {"paper": "#0072B2", "peer": "#D55E00", "baseline": "#CC79A7", "variant": "#009E73"}
KIND_MARKERS = {"paper": "o", "peer": "s", "baseline": "D", "variant": "^"}
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINE_MARKERS = ("o", "s", "^", "D", "v", "P")
INK, FAINT = "#222831", "#8a9099"

SHOWN = ("mae", "r", "acc2_non0", "acc7", "accuracy", "weighted_f1", "uar")
"""Panels of the overview, as far as the labels allow."""


def scores_png(comparison: Comparison) -> bytes:
    """Every row's mean with its standard deviation over seeds, seeds as dots, a panel a measure."""
    rows = [row for row in comparison.rows if row.kind != "trivial"][::-1]
    measures = [MEASURES[name] for name in SHOWN if name in comparison.rows[-1].scores]
    figure = _figure(2.6 + 2.6 * len(measures), 1.6 + 0.3 * len(rows))
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        for y, row in enumerate(rows):
            _point(axes, y, row, measure)
        floor = comparison.rows[-1].scores[measure.name].mean
        if floor is not None:
            axes.axvline(_scaled(measure, floor), color=FAINT, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(rows)), [row.label for row in rows], parse_math=False)
        arrow = "←" if measure.better == "lower" else "→"
        axes.set_xlabel(f"{_unit(measure)}   better {arrow}", fontsize=9)
        axes.grid(axis="x", color="#e8eaed", linewidth=0.8)
        _bare(axes)
    kinds = dict.fromkeys(row.kind for row in rows[::-1])
    handles = [
        panels[0].plot([], [], KIND_MARKERS[kind], color=KIND_COLOURS[kind], label=kind)[0] for kind in kinds
    ]
    handles.append(panels[0].plot([], [], "--", color=FAINT, label=BASELINE)[0])
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9)
    return _png(figure)


def _point(axes: Any, y: float, row: Row, measure: Measure) -> None:
    score, colour = row.scores[measure.name], KIND_COLOURS[row.kind]
    if score.mean is None:
        return
    seeds = [_scaled(measure, v) for v in score.seeds if v is not None]
    axes.plot(seeds, [y] * len(seeds), ".", color=colour, alpha=0.35, markersize=5)
    axes.errorbar(
        _scaled(measure, score.mean), y, xerr=_scaled(measure, score.std or 0.0),
        fmt=KIND_MARKERS[row.kind], color=colour, capsize=3, markersize=6,
    )  # fmt: skip


def curves_png(comparison: Comparison, kind: str) -> bytes:
    """The primary measure over missing rates (``missing``) or noise (``noise``), a panel a modality."""
    curves = [curve for curve in comparison.curves if curve.kind == kind]
    measure = MEASURES[comparison.primary]
    modalities = list(dict.fromkeys(curve.modality for curve in curves))
    labels = list(dict.fromkeys(curve.label for curve in curves))
    figure = _figure(1.2 + 3.4 * len(modalities), 3.8)
    panels = figure.subplots(1, len(modalities), sharey=True, squeeze=False)[0]
    floor = comparison.rows[-1].scores[measure.name].mean
    for axes, modality in zip(panels, modalities, strict=True):
        for curve in (c for c in curves if c.modality == modality):
            _line(axes, curve.at, curve.scores, labels.index(curve.label), curve.label, measure)
        if floor is not None:
            axes.axhline(_scaled(measure, floor), color=FAINT, linestyle="--", linewidth=1, label=BASELINE)
        axes.set_title(f"{modality} {kind if kind == 'missing' else 'noisy'}", fontsize=10, color=INK)
        axes.set_xlabel(
            "share of examples without it" if kind == "missing" else "noise in standard deviations",
            fontsize=9,
        )
        axes.grid(color="#e8eaed", linewidth=0.8)
        _bare(axes)
    panels[0].set_ylabel(f"{_unit(measure)} ({measure.better} is better)", fontsize=9)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=len(names), frameon=False, fontsize=9)
    return _png(figure)


def _line(
    axes: Any, at: Sequence[float], scores: Sequence[Score], index: int, label: str, measure: Measure
) -> None:
    style = index % len(LINE_COLOURS)
    mean = np.array([_scaled(measure, s.mean) if s.mean is not None else np.nan for s in scores])
    std = np.array([_scaled(measure, s.std or 0.0) for s in scores])
    axes.fill_between(at, mean - std, mean + std, color=LINE_COLOURS[style], alpha=0.15, linewidth=0)
    look = {"marker": LINE_MARKERS[style], "color": LINE_COLOURS[style], "markersize": 4, "linewidth": 1.8}
    axes.plot(at, mean, label=label, **look)


def subsets_png(comparison: Comparison) -> bytes:
    """The primary measure with some modalities alone, for models trained with all of them."""
    measure = MEASURES[comparison.primary]
    keys = list(dict.fromkeys(s.present for s in comparison.subsets))[::-1]
    labels = list(dict.fromkeys(s.label for s in comparison.subsets))
    figure = _figure(7.5, 1.4 + 0.42 * len(keys))
    axes = figure.subplots()
    for subset in comparison.subsets:
        if subset.score.mean is None:
            continue
        index = labels.index(subset.label)
        style = index % len(LINE_COLOURS)
        offset = 0.5 * ((len(labels) - 1) / 2 - index) / max(1, len(labels))
        axes.errorbar(
            _scaled(measure, subset.score.mean),
            keys.index(subset.present) + offset,
            xerr=_scaled(measure, subset.score.std or 0.0),
            fmt=LINE_MARKERS[style],
            color=LINE_COLOURS[style],
            capsize=3,
            label=subset.label if subset.present == keys[-1] else None,
        )
    floor = comparison.rows[-1].scores[measure.name].mean
    if floor is not None:
        axes.axvline(_scaled(measure, floor), color=FAINT, linestyle="--", linewidth=1, label=BASELINE)
    axes.set_yticks(range(len(keys)), [key.replace("+", " + ") for key in keys])
    axes.set_xlabel(f"{_unit(measure)} ({measure.better} is better)", fontsize=9)
    axes.grid(axis="x", color="#e8eaed", linewidth=0.8)
    _bare(axes)
    figure.legend(loc="outside upper right", ncols=len(labels) + 1, frameon=False, fontsize=9)
    return _png(figure)


def confusion_png(rows: Sequence[Row]) -> bytes:
    """Confusion matrices, a line of panels for each kind of label: shares of each true class."""
    kinds = list(rows[0].confusion)
    figure = _figure(1.0 + 4.4 * len(rows), 4.2 * len(kinds))
    grid = figure.subplots(len(kinds), len(rows), squeeze=False)
    names: Mapping[str, Sequence[str]] = {
        "sentiment": ["−3", "−2", "−1", "0", "1", "2", "3"],
        "emotion": EMOTIONS,
    }
    for kind, line in zip(kinds, grid, strict=True):
        for row, axes in zip(rows, line, strict=True):
            counts = np.array(row.confusion[kind])
            shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
            for (y, x), share in np.ndenumerate(shares):
                if counts[y].sum():
                    ink = "black" if share > 0.5 else "white"
                    axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=ink)
            axes.set_xticks(range(7), names[kind], rotation=45 if kind == "emotion" else 0)
            axes.set_yticks(range(7), names[kind])
            axes.set_xlabel(f"predicted {kind}", fontsize=9)
            axes.set_ylabel(f"true {kind}", fontsize=9)
            axes.set_title(row.label, fontsize=10, color=INK, parse_math=False)
    figure.colorbar(image, ax=grid, label="share of the true class", shrink=0.8)
    return _png(figure)


def attention_png(attention: Attention, title: str) -> bytes:
    """Who looked at whom in one example: a panel a pair, mean over heads, null slots first (MulG, fig. 4)."""
    columns = min(3, len(attention.weights))
    lines = math.ceil(len(attention.weights) / columns)
    figure = _figure(3.6 * columns + 0.8, 3.4 * lines + 0.3)
    grid = figure.subplots(lines, columns, squeeze=False)
    low = min(float(weights.min()) for weights in attention.weights)
    top = max(float(weights.max()) for weights in attention.weights)
    for axes in grid.flat[len(attention.weights) :]:
        axes.set_visible(False)
    for axes, (asking, answering), weights in zip(
        grid.flat, attention.pairs, attention.weights, strict=False
    ):
        image = axes.imshow(
            weights, cmap="cividis", vmin=low, vmax=top, aspect="auto", interpolation="nearest"
        )
        axes.axvline(0.5, color="white", linewidth=1.2)
        axes.axhline(0.5, color="white", linewidth=1.2)
        axes.set_xlabel(f"{answering}: time step, ∅ first", fontsize=8)
        axes.set_ylabel(f"{asking}: time step, ∅ first", fontsize=8)
        axes.tick_params(labelsize=7)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=grid, label="attention weight, mean over heads", shrink=0.8)
    figure.suptitle(title, fontsize=10, color=INK, parse_math=False)
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    figure_class: Any = require("matplotlib.figure", "plot").Figure
    canvas_class: Any = require("matplotlib.backends.backend_agg", "plot").FigureCanvasAgg
    figure = figure_class(figsize=(width, height), dpi=130, facecolor="white", layout="constrained")
    canvas_class(figure)
    return figure


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": "AffectRT"})
    return out.getvalue()


def _bare(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _scaled(measure: Measure, value: float) -> float:
    return 100 * value if measure.percent else value


def _unit(measure: Measure) -> str:
    return f"{measure.title} in %" if measure.percent else measure.title
