"""Labelled sentences: CMU-MOSI, MELD and the Stanford Sentiment Treebank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from affectrt_training.data.tables import csv_rows
from affectrt_training.labels import emotion_index

Split = Literal["train", "valid"]

SST_CENTRE = 2
SST_POINTS_PER_CLASS = 1.5
"""SST's five classes, spread over the sentiment scale: 0…4 → −3…3."""


@dataclass(frozen=True)
class Sentence:
    """One sentence with the labels that its corpus has."""

    text: str
    sentiment: float | None = None
    """In [-3, 3]."""
    emotion: int | None = None
    """Index into :data:`affectrt.affect.EMOTIONS`."""


def _rows(path: Path, split: Split) -> list[dict[str, str]]:
    return [row for row in csv_rows(path) if row["split"] == split]


def mosi(root: Path, split: Split) -> list[Sentence]:
    """CMU-MOSI utterances with their sentiment."""
    rows = _rows(root / "text/mosi_train_valid.csv", split)
    return [Sentence(row["text"], sentiment=float(row["sentiment"])) for row in rows]


def meld(root: Path, split: Split) -> list[Sentence]:
    """MELD dialogue turns with their emotion; the coarse sentiment column is not used."""
    rows = _rows(root / "text/meld_train_valid.csv", split)
    return [Sentence(row["text"], emotion=emotion_index(row["emotion"])) for row in rows]


def sst5(root: Path, split: Split) -> list[Sentence]:
    """Stanford Sentiment Treebank sentences, their five classes scaled to [-3, 3]."""
    rows = _rows(root / "text/sst5.csv", split)
    return [
        Sentence(
            undo_treebank(row["text"]),
            sentiment=(int(row["label_0_4"]) - SST_CENTRE) * SST_POINTS_PER_CLASS,
        )
        for row in rows
    ]


def undo_treebank(text: str) -> str:
    """Penn Treebank tokens back to plain English, which is what the device sees."""
    for token, plain in (
        (" n't", "n't"), (" '", "'"), ("`` ", '"'), (" ''", '"'), ("''", '"'), ("-LRB- ", "("),
        (" -RRB-", ")"),
        (" .", "."), (" ,", ","), (" !", "!"), (" ?", "?"), (" :", ":"), (" ;", ";"),
    ):  # fmt: skip
        text = text.replace(token, plain)
    return text
