"""The backend ``torch`` as a whole: numpy arrays in, numpy arrays out, the way to the GPU and back included.

With the starter's weights, at one subset of the modalities and at the four that a live result takes. It runs
on the CPU, too, where our operators are the C++ kernels and there is no CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from affectrt.backends import Array, FloatArray, Graph
from affectrt_training.models.ghrnn_cma import GhrnnCma
from affectrt_training.torch_fusion import CpuModel, CudaModel
from benchmarks.cases.fusion import (
    ALL_PRESENT,
    AND_WITHOUT_EACH,
    REFERENCE,
    STEPS,
    batch_of,
    draw_features,
    operators,
    starter,
    truth_of,
)
from benchmarks.timing import difference

TOLERANCE = 1e-4
"""How far a backend may be from float64; what ``affectrt doctor`` allows, too."""

CALLS_PER_ROUND = 10

OURS = {"cpu": "our operators", "cuda": "our operators (Triton)"}
GRAPH = "our operators, CUDA graph"


class Line(NamedTuple):
    """One contender at one shape."""

    shape: str
    contender: str
    us: float
    """Median of the rounds, microseconds a call."""
    us_low: float
    us_high: float
    """Quartiles."""
    ratio: float
    """Over that of the first, with the reference operators; median of the rounds' ratios."""
    difference: float
    """From float64."""


Run = Callable[[], Sequence[FloatArray]]


def contenders(model: GhrnnCma, inputs: dict[str, Array], device: str) -> dict[str, Run]:
    """Name → one call; the eager one first."""

    def bound(graph: Graph) -> Run:
        return lambda: graph(**inputs)

    plain: Graph = CpuModel(model) if device == "cpu" else CudaModel(model, records=False)

    def eager() -> Sequence[FloatArray]:
        with operators(REFERENCE):
            return plain(**inputs)

    found: dict[str, Run] = {"eager (reference operators)": eager, OURS[device]: bound(plain)}
    if device == "cuda":
        found[GRAPH] = bound(CudaModel(starter(), records=True))
    return found


def measure(device: str, rounds: int) -> Iterator[Line]:
    """All of them in turns, at both numbers of subsets. Raises ValueError when one is wrong."""
    model = starter()
    features = draw_features(model.config, STEPS)
    for subsets in (ALL_PRESENT, AND_WITHOUT_EACH):
        inputs: dict[str, Array] = dict(batch_of(features, subsets))
        truth = truth_of(starter(), inputs)
        runs = contenders(model, inputs, device)
        for _ in range(3):  # the second call records a graph, the third replays it
            off = {name: difference(run(), truth) for name, run in runs.items()}
        if wrong := [f"{name} by {gap:.1e}" for name, gap in off.items() if not gap <= TOLERANCE]:
            raise ValueError(f"backend torch on {device} differs from float64: {', '.join(wrong)}")
        taken = np.array([[_microseconds(run) for run in runs.values()] for _ in range(rounds)])
        yield from _lines(f"ghrnn-cma {STEPS} subsets={len(subsets)}", list(runs), taken, off)


def _lines(
    shape: str, names: Sequence[str], taken: npt.NDArray[np.float64], off: dict[str, float]
) -> Iterator[Line]:
    for name, own in zip(names, taken.T, strict=True):
        low, middle, high = np.percentile(own, [25, 50, 75]).tolist()
        yield Line(shape, name, middle, low, high, float(np.median(own / taken[:, 0])), off[name])


def _microseconds(run: Run) -> float:
    """One call among several, by the host's clock: its results are here when it returns."""
    start = perf_counter()
    for _ in range(CALLS_PER_ROUND):
        run()
    return (perf_counter() - start) * 1e6 / CALLS_PER_ROUND
