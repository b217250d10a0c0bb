"""Acted emotional speech: RAVDESS (English) and EmoDB (German)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from affectrt_training.data.tables import csv_rows
from affectrt_training.data.text import Split
from affectrt_training.labels import emotion_index

VALID_SPEAKERS = frozenset({"actor17", "actor18", "actor19", "actor20", "emodb15", "emodb16"})
"""Never trained on: two women and two men of RAVDESS, one of each of EmoDB."""

LEFT_OUT = frozenset({"bored"})
"""EmoDB's boredom is none of our seven emotions."""


@dataclass(frozen=True)
class Recording:
    """One acted utterance."""

    path: Path
    """An audio file, mono."""
    speaker: str
    emotion: int
    """Index into :data:`affectrt.affect.EMOTIONS`."""
    corpus: str
    """"ravdess" or "emodb"."""


def acted_speech(root: Path, split: Split) -> list[Recording]:
    """RAVDESS and EmoDB utterances, split by speaker. Raises ``data.not_found``."""
    folder = root / "speech"
    rows = [row for row in csv_rows(folder / "manifest.csv") if row["emotion"] not in LEFT_OUT]
    return [
        Recording(
            folder / row["file"],
            row["speaker"],
            emotion_index(row["emotion"]),
            row["file"].split("/")[0],
        )
        for row in rows
        if (row["speaker"] in VALID_SPEAKERS) == (split == "valid")
    ]
