"""The tables of the model card that are written by programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from affectrt.errors import AffectError
from affectrt_training.recipes.starter.weights import CARD, read_meta

FIGURES = ("<!-- figures -->", "<!-- /figures -->")
"""Around what was measured on the bundle."""

INCREMENTAL = ("<!-- incremental -->", "<!-- /incremental -->")
"""Around what the causal model's training measured, and what is said of it."""

UNMEASURED = """\
Not measured yet: these weights are newer than any figures of the bundle. `affectrt export starter` makes the
bundle, and `python -m affectrt_training.recipes.starter.measure BUNDLE --data DIR --weights WEIGHTS` puts its
figures here."""
"""Stands for the figures of a bundle until there are some."""


def check_card(card: str) -> None:
    """Raise ``weights.card`` unless the card has both its places for tables."""
    for marks in (FIGURES, INCREMENTAL):
        _place(card, marks)


def put_table(card: str, marks: tuple[str, str], table: str) -> str:
    """The card with another table between two marks.

    Raises ``weights.card`` unless it has both of them, once each and in order.
    """
    begin, end = _place(card, marks)
    return f"{card[:begin]}\n{table}\n{card[end:]}"


def _place(card: str, marks: tuple[str, str]) -> tuple[int, int]:
    """From where to where the card's text between two marks goes."""
    opening, closing = marks
    begin, end = card.find(opening) + len(opening), card.find(closing)
    found = card.count(opening), card.count(closing)
    if found != (1, 1) or begin > end:
        order = "the second before the first" if found == (1, 1) else f"{found[0]} and {found[1]} of them"
        raise AffectError(
            "weights.card",
            f"the model card: expected the marks {opening} and {closing} around a table, once each and in "
            f"this order, got {order}; put them where the table goes, or remove {CARD} beside the weights",
        )
    return begin, end


def incremental_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """The causal model's validation metrics as Markdown."""
    lines = ["| validation set | figures |", "|---|---|"]
    for name, found in metrics.items():
        figures = ", ".join(f"{metric} {value:.3f}" for metric, value in found.items())
        lines.append(f"| {name.replace('audio', 'voice').replace('vision', 'face')} | {figures} |")
    return "\n".join(lines)


def write_card(weights: Path, card: str) -> None:
    """Write a model card beside the weights, with no figures but theirs.

    Without metrics in the sidecar it says that the bundle isn't measured yet. What is said below the table of
    the incremental mode compares both, and goes when either is another. Raises as :func:`put_table`.
    """
    meta = read_meta(weights)
    table = incremental_table(meta["causal"]["metrics"])
    if not meta["metrics"]:
        card = put_table(card, FIGURES, UNMEASURED)
    if not meta["metrics"] or table not in card:
        card = put_table(card, INCREMENTAL, table)
    weights.with_name(CARD).write_text(card, encoding="utf-8")
