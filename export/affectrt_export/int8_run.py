"""A run's graphs at int8: ranges from its training rows, and back to fp32 what the task is sensitive to.

Sensitivity is measured: one layer at a time at int8, all others fp32, and how far sentiment and probabilities
move on calibration examples. Only when the metric drops too far are layers ranked so and kept back, the most
sensitive first, one, two, four … up to half of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as save_safetensors

from affectrt.affect import MODALITIES, Modality
from affectrt.backends import FloatArray
from affectrt.backends.fusion import GraphFusion
from affectrt.backends.onnx_runtime import OnnxGraph
from affectrt.calibration import presence_key
from affectrt.errors import AffectError
from affectrt.features.text import TextFeatures, Tokenizer, words_of
from affectrt.manifest import Manifest, TextSpec
from affectrt_export import int8, quantize, task
from affectrt_export.describe import FUSION_WEIGHTS, TOKENIZER
from affectrt_export.int8 import LEAST_WEIGHTS
from affectrt_export.parity import Case
from affectrt_export.progress import Stages
from affectrt_export.task import TaskGate
from affectrt_export.workplace import Proofs
from affectrt_training.data.dataset import Dataset, Example
from affectrt_training.fit.checkpoint import Fitted
from affectrt_training.fit.prepare import fingerprint

CALIBRATION_EXAMPLES = 64
"""Training examples that ranges come from, spread evenly over the split."""

RANKED_EXAMPLES = 8
"""Of those, the ones that layers are ranked by."""

RANKED_WORDS = 32
"""Of an example, the first ones: its text encoder runs once for each of its layers."""

GRAPHS = ("text", "fusion")
"""What of a run is rewritten: the rows of sound and faces are made by the starter's encoders, at fp32."""

SHOWN_LAYERS = 10
"""Of a ranking, in a refusal."""


@dataclass(frozen=True)
class Sensitivity:
    """What one layer's int8 does to the result."""

    graph: str
    """``text`` or ``fusion``."""
    node: str
    """Its node in that graph."""
    difference: float
    """Of sentiment or a probability, the largest, mean over examples; this layer alone is at int8."""

    def __str__(self) -> str:
        return f"{self.graph}/{self.node} {self.difference:.2g}"


Kept = Collection[Sensitivity]


class Int8Run:
    """Rewrites the proven fp32 graphs of a run."""

    def __init__(
        self,
        fitted: Fitted,
        manifest: Manifest,
        proofs: Proofs,
        examples: Sequence[Example],
        cache: Path | None,
    ) -> None:
        """Calibrate on :func:`calibration_examples`. Raises ``export.calibration``."""
        self._manifest = manifest
        self._graphs = {name: proofs.fp32[f"{name}.onnx"] for name in GRAPHS if f"{name}.onnx" in proofs.fp32}
        self._members = proofs.members
        self._examples = examples
        rows = task.fusion_rows(fitted, self._examples, cache, len(self._examples))
        self._rows = rows[:RANKED_EXAMPLES]
        self._ranges = int8.measure_ranges(
            self._graphs["fusion"],
            "fusion",
            (
                case
                for example, given in zip(self._examples, rows, strict=True)
                for case in self._cases(example, given)
            ),
        )
        state = fitted.model.state_dict()
        self._weights = {name: tensor.float().numpy() for name, tensor in state.items()}

    def members(self, kept: Kept = ()) -> dict[str, bytes]:
        """The bundle's files with everything at int8 but the layers that are kept."""
        found = dict(self._members)
        for graph in self._graphs:
            found[f"{graph}.onnx"] = self._rewritten(graph, {k.node for k in kept if k.graph == graph})
        # Layers of the graph have no counterpart among the weights: these stay whole when one is kept.
        if FUSION_WEIGHTS in found and all(k.graph != "fusion" for k in kept):
            found[FUSION_WEIGHTS] = int8_weights(self._weights)
        return found

    def ranking(self) -> list[Sensitivity]:
        """Every layer that int8 changes, the most sensitive first."""
        exact = self._answers(self._graphs)
        found = []
        for graph in self._graphs:
            names = self._layers(graph)
            for node in names:
                alone = self._rewritten(graph, set(names) - {node})
                moved = np.abs(self._answers({**self._graphs, graph: alone}) - exact).max(axis=1).mean()
                found.append(Sensitivity(graph, node, float(moved)))
        return sorted(found, key=lambda k: -k.difference)

    def _layers(self, graph: str) -> list[str]:
        model = self._graphs[graph]
        return quantize.layers(model) if graph == "text" else int8.layers(model, graph)

    def _rewritten(self, graph: str, kept: Collection[str]) -> bytes:
        if graph == "text":
            return quantize.quantize(self._graphs[graph], kept)
        return int8.to_int8(self._graphs[graph], graph, self._ranges, kept)

    def _cases(self, example: Example, given: Mapping[Modality, FloatArray]) -> list[Case]:
        """An example as the fusion graph reads it, with all patterns of what is left of it."""
        found = []
        for count in range(len(given) + 1):
            for present in combinations(given, count):
                inputs: dict[str, npt.NDArray[np.generic]] = {}
                for m in MODALITIES:
                    nothing = np.zeros((1, self._manifest.dim(m)), np.float32)
                    inputs[m] = (given[m] if m in present else nothing)[None]
                    inputs[f"{m}_lengths"] = np.array([len(given[m]) if m in present else 0])
                found.append(Case(f"example '{example.id}' with {presence_key(present)}", inputs))
        return found

    def _answers(self, graphs: Mapping[str, bytes]) -> FloatArray:
        """(N, 8): sentiment and probabilities of the ranked examples."""
        fusion = GraphFusion(OnnxGraph(graphs["fusion"], threads=1, name="fusion.onnx"), self._manifest)
        text = self._text(graphs["text"]) if "text" in graphs else None
        found = []
        for example, given in zip(self._examples, self._rows, strict=False):
            if text is not None and example.words:
                given = {
                    **given,
                    "text": text.extract(words_of(" ".join(example.words[:RANKED_WORDS]), 0.0)).values,
                }
            sentiment, logits = fusion(given, np.ones((1, len(MODALITIES)), bool))
            odds = np.exp(logits[0] - logits[0].max())
            found.append(np.concatenate([sentiment, odds / odds.sum()]))
        return np.stack(found)

    def _text(self, graph: bytes) -> TextFeatures:
        spec = self._manifest.text
        assert isinstance(spec, TextSpec)
        tokenizer = Tokenizer.from_json(self._members[TOKENIZER], spec.max_tokens)
        runner = OnnxGraph(graph, threads=1, name="text.onnx")
        return TextFeatures(tokenizer, runner, spec.dim, spec.words_per_row)


def calibration_examples(fitted: Fitted, dataset: Dataset) -> Sequence[Example]:
    """Some of the split ``train``, the same ones each time.

    Raises ``export.calibration`` for an empty split, NaN or infinity in its rows, or values that its reader
    had to clear in data that the run wasn't trained on; ``data.no_split``.
    """
    examples = dataset.split("train")
    where = f"calibration: {dataset.name}, split 'train'"
    if not examples:
        raise AffectError("export.calibration", f"{where}: expected examples, got none; split the data anew")
    for example in examples:
        for modality, rows in example.rows.items():
            if not np.isfinite(rows).all():
                raise AffectError(
                    "export.calibration",
                    f"{where}, example '{example.id}': {modality} rows hold NaN or infinity, from which no "
                    f"range follows; mend or remove it",
                )
    if any(dataset.cleared.values()) and fingerprint([examples]) not in fitted.data["sha256"].values():
        told = " and ".join(f"{count} {m} values" for m, count in dataset.cleared.items() if count)
        raise AffectError(
            "export.calibration",
            f"{where}: {told} are NaN or infinite, and the run wasn't trained on these data; mend them, or "
            f"calibrate on the data that it was trained on",
        )
    step = max(1, len(examples) // CALIBRATION_EXAMPLES)
    return examples[::step][:CALIBRATION_EXAMPLES]


def int8_weights(weights: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """Weights for native execution: matrices as int8, the graph's codes and scales; the rest as it is."""
    found: dict[str, npt.NDArray[np.generic]] = {}
    for name, weight in weights.items():
        found[name] = weight
        if weight.ndim >= 2 and weight.size >= LEAST_WEIGHTS:
            # A scale for each output channel: of a convolution the first axis, else all but the last.
            axes = (1, 2) if name.endswith("conv.weight") else weight.ndim - 1
            found[name], found[f"{name}.scale"] = quantize.quantize_weight(weight, axes)
    return bytes(save_safetensors({name: np.ascontiguousarray(value) for name, value in found.items()}))


def settle(
    run: Int8Run, measure: Callable[[Mapping[str, bytes]], TaskGate], max_drop: float, stages: Stages
) -> tuple[dict[str, bytes], TaskGate, list[Sensitivity]]:
    """Members that the task allows, what it said of them, and the layers that were kept back for it.

    Raises ``export.task_gate`` with the ranked layers when half of them kept back don't suffice.
    """
    members = run.members()
    gate = measure(members)
    if gate.drop <= max_drop:
        return members, gate, []
    with stages("int8: layers ranked by sensitivity"):
        ranking = run.ranking()
    half = len(ranking) // 2
    for count in sorted({min(2**k, half) for k in range(half.bit_length() + 1)} - {0}):
        kept = ranking[:count]
        with stages(f"int8: {count} of {len(ranking)} layers kept back"):
            members = run.members(kept)
            found = measure(members)
        if found.drop <= max_drop:
            return members, found, kept
    told = "".join(f"\n  {layer}" for layer in ranking[:SHOWN_LAYERS])
    task.check(gate, max_drop, f"; layers by sensitivity:{told}")
    raise AssertionError("unreachable: the gate was closed above")
