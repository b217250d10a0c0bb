"""Labelled sentences: CMU-MOSI, MELD and the Stanford Sentiment Treebank."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from affectrt.errors import AffectError
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
    """MELD dialogue turns with their emotion.

    The coarse sentiment column is not used: half of the turns are neutral, and a model that learns so takes
    what sounds spoken for neutral.
    """
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


_NODE = re.compile(r"\((\d) ?|([^\s()]+)|\)")


def sst_phrases(root: Path) -> list[Sentence]:
    """Every phrase that the treebank's raters saw, from single words to whole sentences (train split).

    ``text/sst_train_trees.txt`` has one tree a line, ``(3 (2 Very) (3 good))``; each node is a phrase
    with its class. They come as :func:`spoken` has them, each text once, with the mean of its ratings
    scaled to [-3, 3]. Raises ``data.not_found`` and ``data.unreadable``.
    """
    path = root / "text/sst_train_trees.txt"
    if not path.is_file():
        raise AffectError("data.not_found", f"expected the treebank's trees {path.name} at {path}")
    ratings: dict[str, list[int]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            for words, rating in _phrases(line):
                if text := spoken(undo_treebank(" ".join(words))):
                    ratings.setdefault(text, []).append(rating)
        except IndexError:
            raise AffectError(
                "data.unreadable", f"{path}, line {number}: expected one tree in balanced parentheses"
            ) from None
    return [
        Sentence(text, sentiment=(sum(found) / len(found) - SST_CENTRE) * SST_POINTS_PER_CLASS)
        for text, found in ratings.items()
    ]


def _phrases(line: str) -> Iterator[tuple[list[str], int]]:
    """Words and class of every node of one tree. Raises IndexError where parentheses don't match."""
    open_nodes: list[tuple[int, list[str]]] = []
    for match in _NODE.finditer(line):
        if match[1]:
            open_nodes.append((int(match[1]), []))
        elif match[2]:
            open_nodes[-1][1].append(match[2])
        else:
            rating, words = open_nodes.pop()
            yield words, rating
            if open_nodes:
                open_nodes[-1][1].extend(words)
    if open_nodes:
        raise IndexError


def spoken(text: str) -> str:
    """Written English as a transcript has it: lower case, apostrophes inside words, no other punctuation."""
    kept = re.sub(r"[^a-z0-9' ]", " ", text.lower())
    return " ".join(word for part in kept.split() if (word := part.strip("'")))
