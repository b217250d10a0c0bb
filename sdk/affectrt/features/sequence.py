"""What every feature extractor yields: rows with times."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from affectrt.affect import Modality
from affectrt.errors import AffectError

FloatArray = npt.NDArray[np.float32]
TimeArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FeatureSequence:
    """Features of one modality over time.

    Raises ``features.shape`` when the arrays don't fit together, ``features.not_finite`` on NaN or infinity
    and ``features.times`` when times run backwards.
    """

    modality: Modality
    values: FloatArray
    """(T, D) float32. T may be 0: the modality is absent."""
    times_s: TimeArray
    """(T,) float64, non-decreasing: when each row was captured, in stream seconds."""
    source: str = field(default="")
    """Where the rows came from, for people: an extractor's name or an application's."""

    def __post_init__(self) -> None:
        values, times = self.values, self.times_s
        if values.ndim != 2 or values.dtype != np.float32 or times.shape != values.shape[:1]:
            raise AffectError(
                "features.shape",
                f"{self.modality} features: expected values (T, D) float32 and times_s (T,), got "
                f"values {values.shape} {values.dtype} and times_s {times.shape}",
            )
        if not (np.isfinite(values).all() and np.isfinite(times).all()):
            raise AffectError(
                "features.not_finite",
                f"{self.modality} features hold NaN or infinite values; clean the rows before pushing them",
            )
        if (np.diff(times) < 0).any():
            raise AffectError(
                "features.times",
                f"{self.modality} features: times_s must not run backwards; sort the rows by time",
            )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dim(self) -> int:
        """Number of features per row, D."""
        return int(self.values.shape[1])

    @classmethod
    def empty(cls, modality: Modality, dim: int, source: str = "") -> FeatureSequence:
        """An absent modality: no rows."""
        return cls(modality, np.zeros((0, dim), np.float32), np.zeros(0, np.float64), source)

    def between(self, start_s: float, end_s: float) -> FeatureSequence:
        """The rows with ``start_s < time <= end_s``."""
        first, last = np.searchsorted(self.times_s, [start_s, end_s], side="right")
        return FeatureSequence(self.modality, self.values[first:last], self.times_s[first:last], self.source)


def check_dim(sequence: FeatureSequence, dim: int) -> None:
    """Raise ``features.dim`` unless the rows are what the model was trained on; no rows always fit."""
    if len(sequence) and sequence.dim != dim:
        raise AffectError(
            "features.dim",
            f"{sequence.modality} features: the model expects {dim} per row, got {sequence.dim} from "
            f"'{sequence.source or 'the application'}'; use the extractor that the bundle names",
        )
