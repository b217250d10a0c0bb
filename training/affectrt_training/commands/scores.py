"""How commands show metrics and predictions: a table for people, a CSV for the rest."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt_training.metrics import ECE_BINS

_SENTIMENT_NAMES = {
    "mae": "MAE",
    "r": "Pearson r",
    "acc2_has0": "acc-2, Has0 (y ≥ 0)",
    "acc2_non0": "acc-2, Non0 (y ≠ 0)",
    "f1_has0": "weighted F1, Has0",
    "f1_non0": "weighted F1, Non0",
    "acc5": "acc-5",
    "acc7": "acc-7",
    "interval_coverage": "90 % interval covers",
}
_EMOTION_NAMES = {
    "accuracy": "accuracy",
    "weighted_f1": "weighted F1",
    "uar": "unweighted recall",
    "ece": f"ECE ({ECE_BINS} bins)",
}

PREDICTION_COLUMNS = (
    "row",
    "sentiment",
    "emotion",
    "predicted_sentiment",
    "interval_low",
    "interval_high",
    "predicted_emotion",
    *EMOTIONS,
    "present",
)


@dataclass(frozen=True)
class Judged:
    """One row of data with what a model says of it."""

    row: str
    """Its number or its id."""
    sentiment: float | None
    """Truth in [-3, 3]."""
    emotion: int | None
    """Truth as an index into ``EMOTIONS``."""
    predicted_sentiment: float
    interval: tuple[float, float] | None
    """Where the sentiment is with 90 % confidence; None: the model was not calibrated."""
    probabilities: npt.NDArray[np.float64]
    """(7,)"""
    present: frozenset[Modality]
    """What the model saw of it."""


def predictions_csv(rows: Sequence[Judged]) -> str:
    """One line a row: which, the truth, and what the model said."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(PREDICTION_COLUMNS)
    for row in rows:
        writer.writerow(
            [
                row.row,
                "" if row.sentiment is None else row.sentiment,
                "" if row.emotion is None else EMOTIONS[row.emotion],
                f"{row.predicted_sentiment:.4f}",
                *(("", "") if row.interval is None else (f"{bound:.4f}" for bound in row.interval)),
                EMOTIONS[int(row.probabilities.argmax())],
                *(f"{probability:.4f}" for probability in row.probabilities),
                "+".join(m for m in MODALITIES if m in row.present),
            ]
        )
    return out.getvalue()


def report(result: Mapping[str, object], title: str) -> str:
    """The metrics for people, in at most 80 columns."""
    lines = [title, f"{result['n']} rows scored"]
    for kind, names in (("sentiment", _SENTIMENT_NAMES), ("emotion", _EMOTION_NAMES)):
        if f"n_{kind}" in result:
            lines += ["", f"{kind}, {result[f'n_{kind}']} rows"]
            lines += [f"  {name:<22} {_figure(result[key])}" for key, name in names.items()]
    confusion, recall = result.get("confusion"), result.get("recall")
    if isinstance(confusion, dict) and isinstance(recall, dict):
        lines += [
            "",
            "  truth \\ predicted",
            "           " + "".join(f"{n[:7]:>8}" for n in EMOTIONS) + "  recall",
        ]
        for name in EMOTIONS:
            counts = "".join(f"{confusion[name][predicted]:>8}" for predicted in EMOTIONS)
            lines.append(f"  {name:<9}{counts}  {_figure(recall[name])}")
    return "\n".join(lines) + "\n"


def _figure(value: object) -> str:
    return "–" if value is None else f"{value:.4f}"
