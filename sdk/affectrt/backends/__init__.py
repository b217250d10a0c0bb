"""What runs a bundle's graphs and its fusion model.

Feature extractors see only :class:`Graph` and a model only :class:`Fusion`, never the runtime behind them.
:mod:`affectrt.backends.choice` says which backends can run a bundle here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from affectrt.affect import Modality

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class Graph(Protocol):
    """A function from named arrays to arrays, safe to call from several threads."""

    def __call__(self, **inputs: Array) -> tuple[FloatArray, ...]:
        """Run once: one argument per graph input, by its name; the outputs in the graph's order."""
        ...


class Fusion(Protocol):
    """A fusion model over the features of one window, safe to call from several threads."""

    def __call__(
        self, features: Mapping[Modality, FloatArray], subsets: BoolArray
    ) -> tuple[FloatArray, FloatArray]:
        """One result for each subset of the modalities.

        ``features``: rows (T, D) of each modality, of the width that the manifest tells; one that is left out
        or has no rows is absent. ``subsets`` (R, 3): which of them count, in the order of
        :data:`~affectrt.affect.MODALITIES`. Returns ``sentiment`` (R,) and ``emotion_logits`` (R, 7).
        """
        ...
