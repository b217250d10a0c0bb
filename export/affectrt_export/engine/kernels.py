"""A graph's recurrence as a kernel of ours: what ``python -m affectrt_kernels.aot`` compiled, read, and put
in the place of the ``GRU`` nodes that stand for it.

Only the forward kernel of one row and one gate in float32 is used: batches here have at most eight rows. Its
arguments come as a TensorRT plugin passes them: inputs, integers, outputs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from affectrt.errors import AffectError, require

NAMESPACE = "affectrt"

ARGUMENTS = {
    "sums": "*fp32",
    "w_h": "*fp32",
    "lengths": "*i64",
    "h0": "*fp32",
    "batch": "i32",
    "steps": "i32",
    "y": "*fp32",
    "h_n": "*fp32",
}
"""Name → type, in the order of the plugin's inputs, integers and outputs."""

_WANTED = {"GATES": 1, "REVERSE": False, "ROWS": 1}


@dataclass(frozen=True)
class Kernel:
    """The recurrence, compiled for one state size."""

    hidden: int
    """State size."""
    entry: str
    """Name of the function in the PTX."""
    ptx: str
    """Takes :data:`ARGUMENTS`, nothing else. Grid: (batch, 1, 1)."""
    threads: int
    """Of a block."""
    shared_bytes: int
    """Shared memory of a block."""

    @property
    def operator(self) -> str:
        """Name of the plugin and of its node."""
        return f"gated_rnn_h{self.hidden}"

    @property
    def sha256(self) -> str:
        """Of the PTX."""
        return hashlib.sha256(self.ptx.encode()).hexdigest()


def read_kernels(folder: Path, compute_capability: str) -> Mapping[int, Kernel]:
    """State size → kernel, for this GPU (``8.7``), from a folder that ``affectrt_kernels.aot`` wrote.

    Of several architectures it is the newest that this GPU runs. Raises ``engine.kernels``.
    """
    remedy = (
        f"make them on a workstation: python -m affectrt_kernels.aot --arch "
        f"{compute_capability.replace('.', '')} --out {folder} --bundle BUNDLE"
    )
    try:
        entries: list[Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["kernels"]
        here = int(compute_capability.replace(".", ""))
        fitting = [
            entry
            for entry in entries
            if entry["name"].startswith("gated_rnn_forward")
            and entry["arch"] <= here
            and all(entry["constants"][name] == value for name, value in _WANTED.items())
            and {a["name"]: a["type"] for a in entry["arguments"]}["sums"] == ARGUMENTS["sums"]
            and {a["name"]: a["type"] for a in entry["arguments"]}["y"] == ARGUMENTS["y"]
        ]
        newest = max((entry["arch"] for entry in fitting), default=None)
        found = [_kernel(folder, entry) for entry in fitting if entry["arch"] == newest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AffectError(
            "engine.kernels",
            f"--kernels {folder}: expected what affectrt_kernels.aot writes, got: {error}; {remedy}",
        ) from error
    if not found:
        raise AffectError(
            "engine.kernels",
            f"--kernels {folder}: expected a recurrence for compute capability {compute_capability}, got "
            f"none; {remedy}",
        )
    return {kernel.hidden: kernel for kernel in found}


def _kernel(folder: Path, entry: Mapping[str, Any]) -> Kernel:
    """Raises ValueError for a kernel that a plugin can't launch."""
    got = [(argument["name"], argument["type"]) for argument in entry["arguments"]]
    # Neither compiler nor TensorRT would notice another order: its numbers would be wrong.
    if got != list(ARGUMENTS.items()):
        raise ValueError(f"{entry['name']}: arguments {got}, expected {list(ARGUMENTS.items())}")
    if any(scratch["bytes"] for scratch in entry["scratch"]):
        raise ValueError(f"{entry['name']}: it needs scratch memory, which a plugin doesn't pass")
    ptx = (folder / entry["ptx"]).read_text(encoding="utf-8")
    return Kernel(
        hidden=entry["constants"]["H"],
        entry=entry["entry"],
        ptx=without_scratch(ptx, len(ARGUMENTS), len(entry["scratch"])),
        threads=entry["block"][0],
        shared_bytes=entry["shared_bytes"],
    )


def without_scratch(ptx: str, arguments: int, scratch: int) -> str:
    """PTX whose one entry no longer takes the pointers that Triton appends.

    Raises ValueError when it has another number of parameters, or uses those.
    """
    declared = re.findall(r"\.param \.[^\n]*?(\w+_param_\d+)", ptx)
    if len(declared) != arguments + scratch:
        raise ValueError(f"the PTX takes {len(declared)} parameters, expected {arguments} + {scratch}")
    for name in declared[arguments:]:
        if len(re.findall(rf"\b{name}\b", ptx)) != 1:
            raise ValueError(f"the PTX uses {name}, which nobody would pass")
        ptx = re.sub(rf",\n[^\n]*\b{name}\b", "", ptx)
    return ptx


def with_kernels(graph: bytes, kernels: Mapping[int, Kernel]) -> tuple[bytes, tuple[Kernel, ...]]:
    """A graph in which kernels stand where ``GRU`` nodes stood for our recurrence, and those that do.

    Other ``GRU`` nodes stay: of two gates, backwards, of other state sizes, without lengths. Raises
    ``extra.missing`` without the library ``onnx``.
    """
    if not kernels:
        return graph, ()
    onnx: Any = require("onnx", "tensorrt")
    model = onnx.load_from_string(graph)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    nodes: list[Any] = []
    used: dict[int, Kernel] = {}
    for number, node in enumerate(model.graph.node):
        weights = _tied(node, values, onnx) if node.op_type == "GRU" else None
        kernel = kernels.get(weights[1].shape[1]) if weights is not None else None
        if weights is None or kernel is None:
            nodes.append(node)
            continue
        used[kernel.hidden] = kernel
        names = [f"kernel_{number}_{part}" for part in ("w_x", "w_h", "bias")]
        for name, value in zip(names, weights, strict=True):
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        nodes += _nodes(node, kernel, f"kernel_{number}", onnx)
        _add_constants(model.graph, f"kernel_{number}", kernel, onnx)
    if not used:
        return graph, ()
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(onnx.helper.make_opsetid(NAMESPACE, 1))
    return bytes(model.SerializeToString()), tuple(used[hidden] for hidden in sorted(used))


Weights = npt.NDArray[np.float32]


def _tied(node: Any, values: Mapping[str, Weights], onnx: Any) -> tuple[Weights, Weights, Weights] | None:
    """Our w_x (I, 2·H), w_h (2·H, H) and bias (2·H,) of a ``GRU`` node that stands for one gate."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    unlike = {"activations", "activation_alpha", "activation_beta", "clip"} & attributes.keys()
    inputs = dict(zip(("x", "w", "r", "b", "lengths", "h0"), [*node.input, "", "", ""], strict=False))
    parts = [values.get(inputs[name]) for name in "wrb"]
    if (
        unlike
        or attributes.get("direction", b"forward") != b"forward"
        or attributes.get("linear_before_reset", 0)
        or attributes.get("layout", 0)
        or not inputs["lengths"]
        or inputs["h0"]
        or any(part is None or part.dtype != np.float32 for part in parts)
    ):
        return None
    hidden = int(attributes["hidden_size"])
    w, r, b = (part[0] for part in parts if part is not None)
    bias, recurrent_bias = b[: 3 * hidden], b[3 * hidden :]
    # ONNX keeps the old state where its z is near 1, we where ours is near 0; our gate resets, too.
    one_gate = all(np.array_equal(m[:hidden], -m[hidden : 2 * hidden]) for m in (w, r, bias))
    if not one_gate or recurrent_bias.any():
        return None
    return np.ascontiguousarray(w[hidden:].T), np.ascontiguousarray(r[hidden:]), bias[hidden:].copy()


def _add_constants(graph: Any, name: str, kernel: Kernel, onnx: Any) -> None:
    constants = {"batch_axis": [1], "hidden": [kernel.hidden], "first_axis": [0], "second_axis": [1]}
    for part, value in constants.items():
        array = np.array(value, np.int64)
        graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}_{part}"))


def _nodes(node: Any, kernel: Kernel, name: str, onnx: Any) -> list[Any]:
    """x (T, B, I) and lengths → Y (T, 1, B, H) and Y_h (1, B, H), through the kernel."""

    def make(operator: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return onnx.helper.make_node(operator, inputs, [output], name=f"{output}_node", **attributes)

    def part(of: str) -> str:
        return f"{name}_{of}"

    y, h_n = [*node.output, "", ""][:2]
    plugin = onnx.helper.make_node(
        kernel.operator,
        [part("sums"), part("w_h"), part("lengths"), part("h0")],
        [part("y"), part("h_n")],
        name=f"{name}_node",
        domain=NAMESPACE,
        plugin_namespace=NAMESPACE,
        plugin_version="1",
    )
    made = [
        make("Transpose", [node.input[0]], part("x"), perm=[1, 0, 2]),
        make("MatMul", [part("x"), part("w_x")], part("product")),
        make("Add", [part("product"), part("bias")], part("sums")),
        make("Cast", [node.input[4]], part("lengths"), to=onnx.TensorProto.INT64),
        make("Shape", [node.input[0]], part("shape")),
        make("Gather", [part("shape"), part("batch_axis")], part("batch")),
        make("Concat", [part("batch"), part("hidden")], part("state_shape"), axis=0),
        make("ConstantOfShape", [part("state_shape")], part("h0")),
        plugin,
    ]
    if y:
        made.append(make("Transpose", [part("y")], part("y_steps"), perm=[1, 0, 2]))
        made.append(make("Unsqueeze", [part("y_steps"), part("second_axis")], y))
    if h_n:
        made.append(make("Unsqueeze", [part("h_n"), part("first_axis")], h_n))
    return made
