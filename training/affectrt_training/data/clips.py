"""Acted clips with face and voice of one person (Javanese), split by actor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from affectrt_training.data.tables import csv_rows
from affectrt_training.data.text import Split
from affectrt_training.labels import emotion_index

VALID_ACTORS = frozenset({"08", "09"})
"""Never trained on."""

SURE_CODES = frozenset({"01", "02", "03"})
"""The key of the emotion codes is not published; only neutral, sad and happy are beyond doubt."""


@dataclass(frozen=True)
class Clip:
    """One acted clip."""

    path: Path
    """An mp4 with one face and its voice."""
    actor: str
    emotion: int
    """Index into :data:`affectrt.affect.EMOTIONS`."""


def acted_clips(root: Path, split: Split) -> list[Clip]:
    """The clips whose emotion is sure, split by actor. Raises ``data.not_found``."""
    folder = root / "av_clips"
    return [
        Clip(folder / row["file"], row["actor"], emotion_index(row["emotion_guess"]))
        for row in csv_rows(folder / "manifest.csv")
        if row["emotion_code"] in SURE_CODES and (row["actor"] in VALID_ACTORS) == (split == "valid")
    ]
