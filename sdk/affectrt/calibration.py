"""Turns raw scores into honest ones: temperature for emotions, a conformal interval for sentiment.

How far a model may be trusted depends on what it could sense, so every constant is per *presence key*: the
present modalities in canonical order joined by ``+`` (``"text+audio"``), or ``"none"``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from time import perf_counter

import numpy as np
import numpy.typing as npt

from affectrt.affect import EMOTIONS, MODALITIES, SENTIMENT_LIMIT, Affect, Modality
from affectrt.errors import AffectError


def presence_key(present: Collection[Modality]) -> str:
    """``{"audio", "text"}`` → ``"text+audio"``; nothing → ``"none"``."""
    return "+".join(m for m in MODALITIES if m in present) or "none"


def presence_keys(modalities: Collection[Modality]) -> tuple[str, ...]:
    """The keys of all that can be present of some modalities, the fullest first, ``none`` last."""
    known = [m for m in MODALITIES if m in modalities]
    return tuple(
        presence_key(some) for size in reversed(range(len(known) + 1)) for some in combinations(known, size)
    )


PRESENCE_KEYS = presence_keys(MODALITIES)
"""All eight presence keys."""


@dataclass(frozen=True)
class Calibration:
    """Constants fitted on validation data when the model was trained.

    They have the keys of all that can be present of the modalities that the model knows. Raises
    ``calibration.invalid`` when a key is missing or unknown or a constant is out of its range.
    """

    coverage: float
    """Share of true sentiments that the interval is meant to hold, in (0, 1)."""
    temperature: Mapping[str, float]
    """Presence key → divisor of the emotion logits (Guo et al. 2017), > 0; above 1 softens."""
    interval_half_width: Mapping[str, float]
    """Presence key → split-conformal quantile of the absolute sentiment error, ≥ 0."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those that the keys name."""
        named = {part for key in self.temperature for part in key.split("+")}
        return tuple(m for m in MODALITIES if m in named)

    def __post_init__(self) -> None:
        keys = presence_keys(self.modalities)
        for name, table in (
            ("temperature", self.temperature),
            ("interval_half_width", self.interval_half_width),
        ):
            if set(table) != set(keys):
                raise AffectError(
                    "calibration.invalid",
                    f"calibration {name}: expected the keys {', '.join(keys)}, got "
                    f"{', '.join(table) or 'none'}; export the model again",
                )
        in_range = (
            0.0 < self.coverage < 1.0
            and all(0.0 < t < float("inf") for t in self.temperature.values())
            and all(0.0 <= w < float("inf") for w in self.interval_half_width.values())
        )
        if not in_range:
            raise AffectError(
                "calibration.invalid",
                "calibration: expected coverage in (0, 1), temperatures > 0 and half widths >= 0, got "
                f"coverage {self.coverage}, temperatures {dict(self.temperature)}, half widths "
                f"{dict(self.interval_half_width)}; export the model again",
            )

    def probabilities(
        self, logits: npt.NDArray[np.floating], present: Collection[Modality]
    ) -> npt.NDArray[np.float64]:
        """Softmax of ``logits`` (..., 7) at the temperature for ``present``, in float64."""
        scaled = np.asarray(logits, np.float64) / self.temperature[presence_key(present)]
        scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        return np.asarray(scaled / scaled.sum(axis=-1, keepdims=True))

    def interval(self, sentiment: float, present: Collection[Modality]) -> tuple[float, float]:
        """The prediction interval around ``sentiment``, clipped to the scale."""
        half = self.interval_half_width[presence_key(present)]
        return max(sentiment - half, -SENTIMENT_LIMIT), min(sentiment + half, SENTIMENT_LIMIT)

    def affect(
        self,
        sentiments: Sequence[float],
        logits: npt.NDArray[np.floating],
        present: Sequence[Modality],
        time_s: float,
        captured_at: float,
    ) -> Affect:
        """The result at ``time_s``.

        ``sentiments``: of all that is present, then without the first of ``present``, without the second …;
        ``logits`` (7,); ``captured_at``: when the newest input arrived, as :func:`time.perf_counter` tells
        it. Raises ``model.not_finite`` when the model yields NaN or infinity.
        """
        if not (np.isfinite(sentiments).all() and np.isfinite(logits).all()):
            raise AffectError(
                "model.not_finite",
                f"model: fusion yields NaN or infinity at {time_s:.3f} s; check the features that were "
                f"pushed, or export the model again",
            )
        sentiment, *without = (min(max(float(s), -SENTIMENT_LIMIT), SENTIMENT_LIMIT) for s in sentiments)
        probabilities = self.probabilities(logits, present).tolist()
        return Affect(
            time_s=float(time_s),
            sentiment=sentiment,
            interval=self.interval(sentiment, present),
            emotions=dict(zip(EMOTIONS, probabilities, strict=True)),
            contributions={m: sentiment - left for m, left in zip(present, without, strict=True)},
            present=frozenset(present),
            latency_ms=(perf_counter() - captured_at) * 1e3,
        )
