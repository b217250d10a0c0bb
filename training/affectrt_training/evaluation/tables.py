"""Figures as Markdown prints them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from affectrt_training.evaluation.measures import Measure
from affectrt_training.evaluation.significance import Difference
from affectrt_training.evaluation.summary import Score


def score_text(measure: Measure, score: Score) -> str:
    """``0.812 ± 0.013``; the mean alone for one seed, a dash where it is undefined."""
    text = measure.text(score.mean)
    return text if score.std is None else f"{text} ± {measure.text(score.std)}"


def plain_text(score: Score, scale: float) -> str:
    """Likewise, ``scale`` times the score, with two digits."""
    if score.mean is None:
        return "–"
    text = f"{scale * score.mean:.2f}"
    return text if score.std is None else f"{text} ± {scale * score.std:.2f}"


def difference_text(measure: Measure, difference: Difference | None) -> str:
    """``+0.012 [−0.010, +0.034]``."""
    if difference is None:
        return "–"
    scale, digits = (100.0, 1) if measure.percent else (1.0, 3)
    value, low, high = (
        f"{scale * x:+.{digits}f}".replace("-", "−")
        for x in (difference.value, difference.low, difference.high)
    )
    return f"{value} [{low}, {high}]"


def p_text(p: float | None) -> str:
    """Three digits; small ones as a bound."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    rule = [":--", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))
