"""The whole GHRNN-CMA with the starter's weights: features in, sentiment and emotions out.

At one subset it is one forward pass with everything present; at four, what one live result takes: that, and
again without each modality. We give the features once, everybody else as a batch with lengths of zero.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import numpy.typing as npt
import torch

from affectrt.affect import EMOTIONS, MODALITIES
from affectrt_export.graphs import fusion_graph
from affectrt_kernels import _native, reference
from affectrt_training.models import ghrnn_cma, parts
from affectrt_training.models.ghrnn_cma import Fusion, GhrnnCma, GhrnnCmaConfig
from affectrt_training.recipes.starter.weights import COMMITTED, fill, read_parts
from benchmarks.peers import eager
from benchmarks.peers.onnx_runtime import Array, Session
from benchmarks.timing import Case, Contender, difference, difference_of

STEPS = (50, 500, 375)
"""Rows of text, audio and vision."""
ALL_PRESENT = np.ones((1, 3), bool)
AND_WITHOUT_EACH = np.concatenate([ALL_PRESENT, ~np.eye(3, dtype=bool)])

Inputs = Mapping[str, npt.NDArray[np.generic]]
Operators = Mapping[str, Callable[..., object]]
"""By name."""

CALLERS = {"gated_rnn": ghrnn_cma, "pairwise_attention": parts}
"""Operator → the module from which the model calls it."""

REFERENCE: Operators = {
    "gated_rnn": reference.gated_rnn,
    "pairwise_attention": lambda *arguments: reference.pairwise_attention(*arguments)[0],
}
LEAN: Operators = {"gated_rnn": eager.gated_rnn, "pairwise_attention": eager.pairwise_attention}


def cases(threads: Iterable[int], quick: bool) -> list[Case]:
    """One subset and four, with every number of threads; ``quick``: one."""
    model = starter()
    graph = graph_of(model)
    return [
        _case(model, graph, subsets, count)
        for subsets in ((ALL_PRESENT,) if quick else (ALL_PRESENT, AND_WITHOUT_EACH))
        for count in threads
    ]


def starter() -> GhrnnCma:
    """The fusion that the repository ships."""
    meta = json.loads(COMMITTED.with_suffix(".json").read_text(encoding="utf-8"))
    model = GhrnnCma(GhrnnCmaConfig(**meta["config"]))
    fill(model, read_parts(COMMITTED)["fusion"], "fusion")
    return model.eval().requires_grad_(False)


def graph_of(model: GhrnnCma) -> bytes:
    """As a bundle carries it."""
    config = model.config
    dims = (config.text_dim, config.audio_dim, config.vision_dim)
    return fusion_graph(model, dict(zip(MODALITIES, dims, strict=True))).graph


def native_of(model: Fusion) -> _native.GhrnnCma:
    """Its weights, packed."""
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    return _native.GhrnnCma(weights, heads=model.config.heads)


def draw_features(config: GhrnnCmaConfig, steps: Sequence[int]) -> list[Array]:
    """Random rows (T, D) of text, audio and vision."""
    generator = np.random.default_rng(0)
    dims = (config.text_dim, config.audio_dim, config.vision_dim)
    return [generator.standard_normal(shape).astype(np.float32) for shape in zip(steps, dims, strict=True)]


def batch_of(features: Sequence[Array], subsets: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[np.generic]]:
    """One row for each subset, (B, T, D), with lengths (B,)."""
    inputs: dict[str, npt.NDArray[np.generic]] = {}
    for modality, rows, present in zip(MODALITIES, features, subsets.T, strict=True):
        inputs[modality] = np.repeat(rows[None], len(subsets), axis=0)
        inputs[f"{modality}_lengths"] = np.where(present, len(rows), 0)
    return inputs


def truth_of(model: GhrnnCma, inputs: Inputs) -> list[npt.NDArray[np.float64]]:
    """Sentiment and logits of the PyTorch model in float64."""
    doubled = deepcopy(model).double()
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.inference_mode():
        outputs = doubled(**{name: x.double() if x.is_floating_point() else x for name, x in tensors.items()})
    return [output.numpy() for output in outputs]


def in_onnx_runtime(graph: bytes, inputs: Inputs, threads: int) -> Session:
    """The graph, bound to its inputs."""
    batch = len(inputs["text"])
    return Session(graph, inputs, {"sentiment": (batch,), "emotion_logits": (batch, len(EMOTIONS))}, threads)


def _case(model: GhrnnCma, graph: bytes, subsets: npt.NDArray[np.bool_], threads: int) -> Case:
    ours = native_of(model)
    text, audio, vision = features = draw_features(model.config, STEPS)
    inputs = batch_of(features, subsets)
    truth = truth_of(model, inputs)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    session = in_onnx_runtime(graph, inputs, threads)

    def run_native() -> tuple[Array, Array]:
        return ours(text, audio, vision, subsets)

    def eagerly() -> list[Array]:
        with torch.inference_mode():
            return [output.numpy() for output in model(**tensors)]

    def with_operators(of: Operators) -> Callable[[], list[Array]]:
        def run() -> list[Array]:
            with operators(of):
                return eagerly()

        return run

    def contender(name: str, run: Callable[[], Sequence[Array]], target: float | None = None) -> Contender:
        return Contender(name, run, lambda: difference(run(), truth), target)

    held = len(subsets) == 1 and threads == 1
    eager_target = 8.0 if held else None
    return Case(
        operator="fusion",
        shape=f"ghrnn-cma {STEPS} subsets={len(subsets)}",
        threads=threads,
        ours=contender("native", run_native),
        peers=(
            Contender(
                "onnxruntime, exported graph",
                session,
                difference_of(session, session.outputs, truth),
                2.0 if held else None,
            ),
            contender("torch eager (reference operators)", with_operators(REFERENCE), eager_target),
            contender("torch eager (lean operators)", with_operators(LEAN), eager_target),
            contender("torch eager (our operators)", eagerly),
        ),
        ours_threads=1,
    )


@contextmanager
def operators(of: Operators) -> Iterator[None]:
    """Within it, GHRNN-CMA is computed with these operators instead of ours."""
    kept = {name: vars(CALLERS[name])[name] for name in of}
    try:
        for name, operator in of.items():
            vars(CALLERS[name])[name] = operator
        yield
    finally:
        for name, operator in kept.items():
            vars(CALLERS[name])[name] = operator
