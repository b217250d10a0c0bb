"""The tables of the model card that are written by programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from affectrt_training.recipes.starter.weights import CARD, read_meta

FIGURES = ("<!-- figures -->", "<!-- /figures -->")
"""Around what was measured on the bundle."""

INCREMENTAL = ("<!-- incremental -->", "<!-- /incremental -->")
"""Around what the causal model's training measured."""


def put_table(card: str, marks: tuple[str, str], table: str) -> str:
    """The card with another table between two marks; unchanged when it has no such place."""
    before, mark, rest = card.partition(marks[0])
    if not mark:
        return card
    return f"{before}{mark}\n{table}\n{marks[1]}{rest.partition(marks[1])[2]}"


def incremental_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """The causal model's validation metrics as Markdown."""
    lines = ["| validation set | figures |", "|---|---|"]
    for name, found in metrics.items():
        figures = ", ".join(f"{metric} {value:.3f}" for metric, value in found.items())
        lines.append(f"| {name.replace('audio', 'voice').replace('vision', 'face')} | {figures} |")
    return "\n".join(lines)


def write_card(weights: Path, card: str) -> None:
    """Write a model card beside the weights, with their own figures of the incremental mode."""
    table = incremental_table(read_meta(weights)["causal"]["metrics"])
    weights.with_name(CARD).write_text(put_table(card, INCREMENTAL, table), encoding="utf-8")
