"""What every reader of data sets returns, and what training, evaluation and comparison start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from affectrt.affect import MODALITIES, Modality
from affectrt.errors import AffectError

FloatMatrix = npt.NDArray[np.float32]

RAW_CLIPS = "table of raw clips"
"""Format of data sets whose audio and vision rows the device's own extractors made."""


@dataclass(frozen=True)
class Example:
    """One utterance, review or clip."""

    id: str
    """Unique within its data set."""
    rows: Mapping[Modality, FloatMatrix]
    """Feature rows (T, D) float32, T ≥ 1, of each present modality."""
    words: tuple[str, ...] = ()
    """What was said, where it is known: what a text encoder makes rows of when ``rows`` has no text."""
    sentiment: float | None = None
    """In [-3, 3]; None: no such label."""
    emotion: int | None = None
    """Index into ``EMOTIONS``; None: no such label."""
    group: str = ""
    """Whom or what it shares with others (speaker, video): a fold never splits a group. Empty: none."""


@dataclass(frozen=True)
class Dataset:
    """Labelled examples in splits."""

    name: str
    """For reports."""
    splits: Mapping[str, Sequence[Example]]
    """Among them usually ``train``, ``valid`` and ``test``; ``all`` where the source has no splits."""
    dims: Mapping[Modality, int]
    """Features per row of each modality that occurs."""
    label_range: tuple[float, float] = (-3.0, 3.0)
    """The source's own range of the sentiment label, which was mapped linearly to [-3, 3]."""
    notes: Sequence[str] = field(default_factory=tuple)
    """What the reader changed or noticed: values cleared, rows cut."""
    format: str = ""
    """What kind of source it was read from, for people."""
    cleared: Mapping[Modality, int] = field(default_factory=dict)
    """Feature values that were NaN or infinite and became 0."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those that occur; words are text before they have rows."""
        words = any(example.words for part in self.splits.values() for example in part)
        return tuple(m for m in MODALITIES if m in self.dims or (m == "text" and words))

    def split(self, name: str) -> Sequence[Example]:
        """Raises ``data.no_split`` naming those there are."""
        if name not in self.splits:
            raise AffectError(
                "data.no_split",
                f"{self.name}: expected a split '{name}', got {', '.join(self.splits)}; "
                f"make one with --valid-share or --folds",
            )
        return self.splits[name]


def widths(dims: Mapping[Modality, int]) -> dict[Modality, int]:
    """Features per row of all three modalities; 1 for one that never occurs, whose rows no model reads."""
    return {modality: dims.get(modality, 1) for modality in MODALITIES}


def collate(examples: Sequence[Example], dims: Mapping[Modality, int]) -> dict[str, Tensor]:
    """Pad to a fusion model's inputs; an absent modality is one padded row of length 0.

    Keys: each modality (B, T_m, D_m), ``…_lengths`` (B,) int64, ``sentiment`` (B,) with NaN
    and ``emotion`` (B,) int64 with -1 where there is no such label. A modality that ``dims`` doesn't name is
    absent, as wide as :func:`widths` says.
    """
    batch: dict[str, Tensor] = {}
    for modality, dim in widths(dims).items():
        nothing = np.zeros((0, dim), np.float32)
        rows = [torch.from_numpy(example.rows.get(modality, nothing)) for example in examples]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        batch[modality] = padded if padded.shape[1] else torch.zeros(len(rows), 1, dim)
        batch[f"{modality}_lengths"] = torch.tensor([len(r) for r in rows])
    batch["sentiment"] = torch.tensor([np.nan if e.sentiment is None else e.sentiment for e in examples])
    batch["emotion"] = torch.tensor([-1 if e.emotion is None else e.emotion for e in examples])
    return batch


def inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a batch that a fusion model takes."""
    return {key: batch[key] for m in MODALITIES for key in (m, f"{m}_lengths")}
