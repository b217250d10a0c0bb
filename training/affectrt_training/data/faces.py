"""FER+ face crops with their raters' votes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from affectrt.affect import EMOTIONS
from affectrt.errors import AffectError
from affectrt_training.data.text import Split
from affectrt_training.labels import emotion_index

LEFT_OUT = ("contempt", "unknown", "NF")
"""Votes that name none of our seven emotions."""


@dataclass(frozen=True)
class Faces:
    """N face crops."""

    images: npt.NDArray[np.uint8]
    """(N, 48, 48) grey."""
    votes: npt.NDArray[np.float32]
    """(N, 7) share of the raters' votes per emotion; rows sum to 1."""
    clear: npt.NDArray[np.bool_]
    """(N,) the most voted of all ten choices is one of our seven: the rows that accuracy is measured on."""

    @property
    def emotions(self) -> npt.NDArray[np.int64]:
        """(N,) the most voted of the seven emotions."""
        return np.asarray(self.votes.argmax(axis=1), np.int64)

    def __len__(self) -> int:
        return len(self.images)


def ferplus(root: Path, split: Split) -> Faces:
    """FER+ crops. Rows without a single vote for one of the seven are dropped.

    Raises ``data.not_found``.
    """
    path = root / "faces/ferplus_train_valid.npz"
    if not path.is_file():
        raise AffectError("data.not_found", f"expected the data set {path.name} at {path}")
    with np.load(path, allow_pickle=False) as file:
        rows = file["is_valid"].astype(bool) == (split == "valid")
        images, all_votes = file["image"][rows], file["votes"][rows].astype(np.float32)
        names = [str(name) for name in file["vote_names"]]
    votes = np.zeros((len(images), len(EMOTIONS)), np.float32)
    for column, name in enumerate(names):
        if name not in LEFT_OUT:
            votes[:, emotion_index(name)] += all_votes[:, column]
    ours = [column for column, name in enumerate(names) if name not in LEFT_OUT]
    clear = np.isin(all_votes.argmax(axis=1), ours)
    total = votes.sum(axis=1, keepdims=True)
    kept = total[:, 0] > 0
    return Faces(images[kept], votes[kept] / total[kept], clear[kept])
