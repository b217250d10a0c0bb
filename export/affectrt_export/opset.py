"""Takes an ONNX graph from opset 18, the oldest that PyTorch's exporter writes, to opset 17.

Only what our graphs hold is converted; what else changed between the two is refused by name.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper, numpy_helper

from affectrt.errors import AffectError

FROM, TO = 18, 17


def downgrade(model: Any) -> None:
    """Convert an ``onnx.ModelProto`` in place. Raises ``export.opset`` for a node that can't be written."""
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found != {"": FROM}:
        raise AffectError(
            "export.opset", f"export: expected a graph of standard operators at opset {FROM}, got {found}"
        )
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if onnx.defs.get_schema(node.op_type, FROM, "").since_version < FROM:
            continue
        if node.op_type.startswith("Reduce"):
            _axes_to_attribute(node, constants)
        elif node.op_type == "Pad" and not any(node.input[3:]):
            continue  # only the axes, which may be named since opset 18, are new
        elif node.op_type == "Split":
            # Before opset 18 a split without sizes always was even, and into as many as there are outputs.
            _remove_attribute(node, "num_outputs")
        else:
            raise AffectError(
                "export.opset",
                f"export: node '{node.name}' ({node.op_type}) differs between opset {FROM} and {TO} in a way "
                f"that no conversion is known for; add one to affectrt_export.opset",
            )
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", TO))


def _axes_to_attribute(node: Any, constants: dict[str, Any]) -> None:
    axes = node.input[1] if len(node.input) > 1 else ""
    if axes:
        if axes not in constants:
            raise AffectError(
                "export.opset",
                f"export: node '{node.name}' ({node.op_type}) computes its axes; opset {TO} wants constants",
            )
        node.attribute.append(helper.make_attribute("axes", constants[axes].tolist()))
    _remove_attribute(node, "noop_with_empty_axes")
    del node.input[1:]


def _remove_attribute(node: Any, name: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
