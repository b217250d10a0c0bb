"""What runs a graph of a bundle. Feature extractors see only :class:`Graph`, never the runtime behind it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


class Graph(Protocol):
    """A function from named arrays to arrays, safe to call from several threads."""

    def __call__(self, **inputs: Array) -> tuple[FloatArray, ...]:
        """Run once: one argument per graph input, by its name; the outputs in the graph's order."""
        ...
