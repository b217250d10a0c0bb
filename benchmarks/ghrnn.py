"""How fast is the native GHRNN? Against the PyTorch reference loop and ONNX Runtime's GRU with tied weights.

Run from the repository root: ``python -m benchmarks.ghrnn``. One thread each, random weights, float32. Every
contender must first agree with the float64 reference; if one does not, nothing is timed and the exit status
is 1. Then all take turns within every round, so that whatever else the machine does falls on all alike, and
what is reported is the median of the rounds' ratios to the native kernel, with their quartiles.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from affectrt_kernels import native, reference

Array = NDArray[np.float32]
States = tuple[Array, Array]
"""Every state (S, B, T, H) and the last one (S, B, H)."""

TOLERANCE = 1e-5
"""Largest difference from float64 that a float32 contender may show; states lie in (-1, 1)."""
ROUND_S = 0.02
"""How long each contender runs, at least, within a round."""


@dataclass(frozen=True)
class Size:
    """One problem."""

    streams: int
    """Independent recurrences, S; GHRNN-CMA has three."""
    batch: int
    """Sequences, B. Four is what one live result takes: the fusion, and again without each modality."""
    steps: int
    """Length, T."""
    inputs: int
    """Features per step, I."""
    hidden: int
    """State size, H."""


SIZES = tuple(Size(3, batch, steps, 128, 64) for batch in (1, 4) for steps in (20, 128, 500))


@dataclass(frozen=True)
class Contender:
    """One implementation, bound to its problem; layout and type are converted outside the clock."""

    run: Callable[[], Sequence[object]]
    """What is timed: all streams over all steps, every state kept."""
    states: Callable[[Sequence[object]], States]
    """Its outputs in the layout of the reference."""


@dataclass(frozen=True)
class Problem:
    """Arrays of one size: x (S, B, T, I), w_x (S, 2H, I), w_h (S, 2H, H), bias (S, 2H)."""

    x: Array
    w_x: Array
    w_h: Array
    bias: Array


def problem_of(size: Size, seed: int = 0) -> Problem:
    """Random inputs and weights at the scale of a trained recurrence."""
    generator = np.random.default_rng(seed)

    def draw(scale: float, *shape: int) -> Array:
        return (scale * generator.standard_normal(shape)).astype(np.float32)

    streams, blocks = size.streams, 2 * size.hidden
    return Problem(
        x=draw(1.0, streams, size.batch, size.steps, size.inputs),
        w_x=draw(size.inputs**-0.5, streams, blocks, size.inputs),
        w_h=draw(size.hidden**-0.5, streams, blocks, size.hidden),
        bias=draw(0.1, streams, blocks),
    )


def tied_gru(problem: Problem) -> bytes:
    """The same recurrences as standard ONNX ``GRU`` nodes, one a stream, inputs x0, x1, … of (T, B, I).

    With both of GRU's gates given the one gate's weights, and ``linear_before_reset=0``, its update
    h = (1 − z̃) ∘ g + z̃ ∘ h becomes GHRNN's once z̃ = 1 − z, that is with the sign of its weights turned.
    """
    streams, _, _, inputs = problem.x.shape
    hidden = problem.w_h.shape[2]
    nodes, initializers = [], []
    for stream in range(streams):

        def tied(weights: Array) -> Array:
            gate, candidate = weights[:hidden], weights[hidden:]
            return np.concatenate([-gate, gate, candidate])[None]

        weights = {
            f"w{stream}": tied(problem.w_x[stream]),
            f"r{stream}": tied(problem.w_h[stream]),
            f"b{stream}": np.concatenate(
                [tied(problem.bias[stream]), np.zeros((1, 3 * hidden), np.float32)], 1
            ),
        }
        initializers += [numpy_helper.from_array(array, name) for name, array in weights.items()]
        nodes.append(
            helper.make_node(
                "GRU",
                [f"x{stream}", *weights],
                [f"y{stream}", f"h{stream}"],
                hidden_size=hidden,
                linear_before_reset=0,
            )
        )
    shapes = {"x": ["T", "B", inputs], "y": ["T", 1, "B", hidden], "h": [1, "B", hidden]}

    def values(kind: str) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(f"{kind}{stream}", TensorProto.FLOAT, shapes[kind])
            for stream in range(streams)
        ]

    graph = helper.make_graph(nodes, "tied_gru", values("x"), values("y") + values("h"), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def contenders(problem: Problem) -> dict[str, Contender]:
    """All implementations by name."""
    streams = len(problem.x)
    tensors = [torch.from_numpy(array) for array in (problem.x, problem.w_x, problem.w_h, problem.bias)]

    def run_reference() -> Sequence[object]:
        with torch.inference_mode():
            return reference.gated_rnn(*tensors)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(tied_gru(problem), options, providers=["CPUExecutionProvider"])
    fed = {f"x{stream}": np.ascontiguousarray(problem.x[stream].swapaxes(0, 1)) for stream in range(streams)}

    def states_of_onnx(outputs: Sequence[object]) -> States:
        arrays = [np.asarray(output) for output in outputs]
        y = np.stack([array[:, 0].swapaxes(0, 1) for array in arrays[:streams]])
        return y, np.concatenate(arrays[streams:])

    def states_as_they_are(outputs: Sequence[object]) -> States:
        y, last = outputs
        return np.asarray(y), np.asarray(last)

    return {
        "native": Contender(
            lambda: native.gated_rnn(problem.x, problem.w_x, problem.w_h, problem.bias), states_as_they_are
        ),
        "reference": Contender(run_reference, states_as_they_are),
        "onnxruntime": Contender(lambda: list(session.run(None, fed)), states_of_onnx),
    }


def differences(problem: Problem) -> dict[str, float]:
    """Largest difference of each contender from the reference in float64."""
    arrays = (problem.x, problem.w_x, problem.w_h, problem.bias)
    truth = [
        tensor.numpy() for tensor in reference.gated_rnn(*(torch.from_numpy(a).double() for a in arrays))
    ]
    return {
        name: max(
            float(np.abs(got - want).max())
            for got, want in zip(contender.states(contender.run()), truth, strict=True)
        )
        for name, contender in contenders(problem).items()
    }


def seconds_per_run(entered: Mapping[str, Contender], rounds: int) -> dict[str, NDArray[np.float64]]:
    """(rounds,) seconds per run for each contender, taking turns within each round."""
    repeats = {}
    for name, contender in entered.items():
        start = perf_counter()
        contender.run()
        repeats[name] = max(1, round(ROUND_S / (perf_counter() - start)))
    taken = {name: np.zeros(rounds) for name in entered}
    for index in range(rounds):
        for name, contender in entered.items():
            start = perf_counter()
            for _ in range(repeats[name]):
                contender.run()
            taken[name][index] = (perf_counter() - start) / repeats[name]
    return taken


def main() -> int:
    """Check, time, print a table."""
    parser = argparse.ArgumentParser(description="Speed of the native GHRNN, one thread.")
    parser.add_argument("--rounds", type=int, default=31, help="turns each contender takes (default: 31)")
    rounds: int = parser.parse_args().rounds
    torch.set_num_threads(1)
    cases = [(size, problem_of(size)) for size in SIZES]
    wrong = [
        f"{name} differs from the float64 reference by {difference:.1e} (at most {TOLERANCE:.0e}) at {size}"
        for size, problem in cases
        for name, difference in differences(problem).items()
        if not difference <= TOLERANCE
    ]
    if wrong:
        print("\n".join(["Numbers are wrong, so no speed is reported:", *wrong]), file=sys.stderr)
        return 1

    print(
        f"GHRNN forward, fp32, one thread, {platform.machine()}, native for {native.instruction_sets()[0]};"
    )
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}; all right to {TOLERANCE:.0e}.")
    print(f"reference, onnxruntime: time over the native one's, median of {rounds} rounds (quartiles).\n")
    print(" S  B    T    I   H       native               reference           onnxruntime")
    for size, problem in cases:
        taken = seconds_per_run(contenders(problem), rounds)
        cells = []
        for name in ("reference", "onnxruntime"):
            low, median, high = np.percentile(taken[name] / taken["native"], [25, 50, 75])
            cells.append(f"{median:6.2f} ({low:.2f}–{high:.2f})")
        native_us = float(np.median(taken["native"])) * 1e6
        print(
            f"{size.streams:>2} {size.batch:>2} {size.steps:>4} {size.inputs:>4} {size.hidden:>3}"
            f"   {native_us:>7.0f} µs   {cells[0]:>21}   {cells[1]:>19}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
