"""Which int8 pays in a fusion graph? Ours against other ways to write the same.

Run from the repository root: ``python -m benchmarks.fusion_int8 BUNDLE…``, bundles of ``affectrt export RUN``
at fp32. One thread; one utterance with its three subsets, a batch of four, as every result takes; made-up
rows, which serve for speed alone. All take turns within every round, and what is reported is the median of
the rounds' ratios to fp32. *Weights alone*: no int8 activations. *DequantizeLinear*: ours, with that operator
in place of Cast and Mul. *Static*: ONNX Runtime's own quantizer on all products and convolutions.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from affectrt.affect import MODALITIES, Modality
from affectrt.backends import Array
from affectrt.backends.onnx_runtime import OnnxGraph
from affectrt.bundle import Bundle
from affectrt_export import int8
from affectrt_export.parity import Case, fusion_inputs
from benchmarks import machine

STEPS = (20, 200)
"""Rows of each modality: word-aligned data, unaligned data."""
BATCH = 4
REPEATS = 3


class _Rows(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
    def __init__(self, inputs: Mapping[str, Array]) -> None:
        self._left = [inputs]

    def get_next(self) -> Mapping[str, Array] | None:
        return self._left.pop() if self._left else None


def dequantized(model: bytes) -> bytes:
    """Weights that a runtime dequantizes itself: Cast and Mul become one DequantizeLinear."""
    proto = onnx.load_from_string(model)
    graph: Any = proto.graph
    scales = {t.name: t for t in graph.initializer if t.name.endswith(".scale")}
    kept = []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0].endswith(".int8"):
            continue
        if node.op_type == "Mul" and node.input[1] in scales:
            scale = numpy_helper.to_array(scales[node.input[1]])
            wide = [axis for axis, size in enumerate(scale.shape) if size > 1]
            flat = numpy_helper.from_array(scale.reshape(-1), node.input[1])
            scales[node.input[1]].CopyFrom(flat)
            codes = node.input[0].removesuffix(".codes") + ".int8"
            made = onnx.helper.make_node(
                "DequantizeLinear", [codes, node.input[1]], list(node.output), name=node.name, axis=wide[0]
            )
            kept.append(made)
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    return bytes(proto.SerializeToString())


def contenders(fp32: bytes, inputs: Mapping[str, Array]) -> dict[str, bytes]:
    """Every way to int8, by name; fp32 first."""
    ranges = int8.measure_ranges(fp32, "fusion", [Case("made-up rows", inputs)])
    alone = int8.to_int8(fp32, "weights alone", {})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "static.onnx"
        quantize_static(
            onnx.load_from_string(fp32),
            path,
            _Rows(inputs),
            per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )
        static = path.read_bytes()
    return {
        "fp32": fp32,
        "ours": int8.to_int8(fp32, "fusion", ranges),
        "weights alone": alone,
        "weights alone, DequantizeLinear": dequantized(alone),
        "onnxruntime, static": static,
    }


def seconds_per_run(
    runners: Mapping[str, OnnxGraph], inputs: Mapping[str, Array], rounds: int
) -> dict[str, NDArray[np.float64]]:
    """(rounds,) seconds for each contender, taking turns within each round."""
    taken = {name: np.zeros(rounds) for name in runners}
    for index in range(-1, rounds):
        for name, runner in runners.items():
            start = perf_counter()
            for _ in range(REPEATS):
                runner(**inputs)
            taken[name][index] = (perf_counter() - start) / REPEATS
    return taken


def main() -> int:
    """Time, print a table."""
    parser = argparse.ArgumentParser(description="int8 in fusion graphs: size and speed.")
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--rounds", type=int, default=31, help="turns each contender takes (default: 31)")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # ONNX Runtime's quantizer advises on preprocessing
    print("\n".join(machine.lines()))
    for path in args.bundles:
        bundle = Bundle.open(path)
        dims: dict[Modality, int] = {m: bundle.manifest.dim(m) for m in MODALITIES}
        rng = np.random.default_rng(0)
        states = {m: rng.standard_normal((max(STEPS), dim)).astype(np.float32) for m, dim in dims.items()}
        cases = {t: fusion_inputs(states, [dict.fromkeys(MODALITIES, t)] * BATCH) for t in STEPS}
        made = contenders(bundle.read(bundle.manifest.fusion.graph), cases[STEPS[0]])
        runners = {name: OnnxGraph(graph, threads=1, name=name) for name, graph in made.items()}
        print(f"\n{bundle.manifest.family:34}{'MB':>6}" + "".join(f"{f'{t} rows':>22}" for t in STEPS))
        taken = [seconds_per_run(runners, inputs, args.rounds) for inputs in cases.values()]
        for name, graph in made.items():
            cells = []
            for times in taken:
                low, median, high = np.percentile(times[name] / times["fp32"], [25, 50, 75])
                in_ms = f"{np.median(times['fp32']) * 1e3:.2f} ms"
                cells.append(in_ms if name == "fp32" else f"{median:.2f} ({low:.2f}–{high:.2f})")
            print(f"{name:34}{len(graph) / 1e6:6.2f}" + "".join(f"{cell:>22}" for cell in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
