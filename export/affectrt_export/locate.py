"""Where a graph and PyTorch part: the first value inside that differs.

The exporter names a graph's values like the nodes of the program that it traced, so both can be run with
every value on show and compared one by one. Values that folding has merged or renamed are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from affectrt.backends import Array
from affectrt.errors import require

TOLERANCE = 1e-5
"""Largest difference of a value inside, over its largest magnitude or 1, that counts as rounding."""


def first_difference(graph: bytes, program: ExportedProgram, inputs: Mapping[str, Array]) -> str:
    """For people: the first node whose result is not what the traced program computes there, or that none is.

    ``inputs``: arrays by the graph's input names, in the program's order.
    """
    expected, scopes = _traced_values(program, inputs)
    names, found = _graph_values(graph, inputs)
    producers = {name: node for node in onnx.load_from_string(graph).graph.node for name in node.output}
    compared = 0
    for name, got in zip(names, found, strict=True):
        want = expected.get(name)
        if want is None or want.shape != got.shape or got.dtype.kind != "f":
            continue
        compared += 1
        difference = _difference(got, want)
        if difference > TOLERANCE * max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0.0))):
            node = producers[name]
            where = f" of {scopes[name]}" if scopes[name] else ""
            return f"first at node '{node.name}' ({node.op_type}){where}, by {difference:.3g}"
    return (
        f"at none of the {compared} values inside that both name: an output is taken from the wrong place, "
        f"or PyTorch computes something else while it is traced"
    )


def _difference(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    """Largest difference, infinite where only one of the two is a number; equal infinities are masks."""
    with np.errstate(invalid="ignore"):
        gaps = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, np.abs(got - want))
    return float(np.nan_to_num(gaps, nan=np.inf, posinf=np.inf).max(initial=0.0))


class _Recorder(torch.fx.Interpreter):
    """Keeps every result that is one tensor, and the module that it was computed in."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(program.graph_module)
        self.values: dict[str, npt.NDArray[Any]] = {}
        self.scopes: dict[str, str] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op == "call_function":
            self.values[n.name] = value.numpy()
            path, kind = next(reversed((n.meta.get("nn_module_stack") or {"": ("", "")}).values()))
            kind = kind if isinstance(kind, str) else kind.__name__
            self.scopes[n.name] = f"'{path}' ({kind.rpartition('.')[2]})" if path else ""
        return value


def _traced_values(
    program: ExportedProgram, inputs: Mapping[str, Array]
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    given = iter(inputs.values())
    arguments: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            arguments.append(torch.from_numpy(next(given)))
        else:
            assert spec.target is not None
            kept = program.state_dict.get(spec.target)
            arguments.append(program.constants[spec.target] if kept is None else kept)
    recorder = _Recorder(program)
    with torch.no_grad():
        recorder.run(*arguments)
    return recorder.values, recorder.scopes


def _graph_values(graph: bytes, inputs: Mapping[str, Array]) -> tuple[list[str], list[npt.NDArray[Any]]]:
    """Every value that a node computes, in order."""
    model = onnx.load_from_string(graph)
    kept = {output.name: output for output in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(kept.get(name) or onnx.ValueInfoProto(name=name) for name in names)
    ort: Any = require("onnxruntime", "cpu")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return names, session.run(names, dict(inputs))
