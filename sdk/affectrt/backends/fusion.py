"""A fusion graph, whatever runs it, as a fusion model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from affectrt.affect import MODALITIES, Modality
from affectrt.backends import Array, BoolArray, FloatArray, Graph
from affectrt.manifest import Manifest

FUSION_INPUTS: tuple[str, ...] = tuple(name for m in MODALITIES for name in (m, f"{m}_lengths"))
FUSION_OUTPUTS = ("sentiment", "emotion_logits")


class GraphFusion:
    """The fusion model of a graph. Immutable; share it between threads."""

    def __init__(self, graph: Graph, manifest: Manifest) -> None:
        """``graph``: :data:`FUSION_INPUTS` → :data:`FUSION_OUTPUTS`."""
        self._graph = graph
        # No graph sees an axis without elements: what is absent has one row of padding.
        self._absent = {m: np.zeros((1, manifest.dim(m)), np.float32) for m in MODALITIES}

    def __call__(
        self, features: Mapping[Modality, FloatArray], subsets: BoolArray
    ) -> tuple[FloatArray, FloatArray]:
        """As :class:`affectrt.backends.Fusion`, each subset a row of the batch. Raises as the graph does."""
        inputs: dict[str, Array] = {}
        for column, modality in enumerate(MODALITIES):
            values = features.get(modality)
            steps = 0 if values is None else len(values)
            rows = self._absent[modality] if values is None or not steps else values
            inputs[modality] = np.repeat(rows[None], len(subsets), axis=0)
            inputs[f"{modality}_lengths"] = subsets[:, column] * np.int64(steps)
        sentiment, logits = self._graph(**inputs)
        return sentiment, logits
