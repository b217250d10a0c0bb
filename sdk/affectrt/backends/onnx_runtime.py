"""Runs a bundle's ONNX graphs with ONNX Runtime on the CPU."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectrt.affect import MODALITIES, Modality
from affectrt.backends import Array, BoolArray, FloatArray
from affectrt.errors import AffectError, require

if TYPE_CHECKING:
    import numpy.typing as npt

    from affectrt.bundle import Bundle

_DTYPES: Mapping[str, npt.DTypeLike] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class OnnxGraph:
    """One ONNX graph, ready to run; immutable and safe to share between threads.

    Every call is checked against the graph's own signature (names, dtypes, ranks, fixed sizes), so that a
    wrong array is ``graph.signature`` with the name of the input and not a message from inside the runtime.
    """

    def __init__(self, model: bytes, *, threads: int | None = None, name: str = "graph") -> None:
        """Load serialised ONNX; ``threads`` within one operator, None for one per core.

        Raises ``graph.invalid`` when the runtime refuses the graph, ``extra.missing`` without a runtime.
        """
        if threads is not None and threads < 1:
            raise AffectError("graph.threads", f"threads: expected at least 1 or None, got {threads}")
        ort = require("onnxruntime", "cpu")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Between ticks the device has other work; threads that spin would eat it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if _saturates():
            # ONNX Runtime then takes a slower path that doesn't.
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises its own classes, which share no other base
            reason = str(error).strip().splitlines()
            raise AffectError(
                "graph.invalid",
                f"{name}: ONNX Runtime {ort.__version__} could not load this graph "
                f"({reason[0] if reason else type(error).__name__}); export the model again",
            ) from error
        self._name = name
        self._inputs: dict[str, Any] = {node.name: node for node in self._session.get_inputs()}
        self._outputs = tuple(node.name for node in self._session.get_outputs())

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the graph's order."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in the graph's order."""
        return self._outputs

    def expect(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Raise ``graph.signature`` unless the graph has these inputs and, in order, these outputs."""
        if set(inputs) != set(self._inputs) or tuple(outputs) != self._outputs:
            raise AffectError(
                "graph.signature",
                f"{self._name}: expected inputs {_names(inputs)} and outputs {_names(outputs)}, got inputs "
                f"{_names(self._inputs)} and outputs {_names(self._outputs)}; export the model again",
            )

    def __call__(self, **inputs: Array) -> tuple[FloatArray, ...]:
        """Run once. Raises ``graph.signature`` when an array doesn't fit, ``graph.failed``."""
        if inputs.keys() != self._inputs.keys():
            raise AffectError(
                "graph.signature",
                f"{self._name}: expected inputs {_names(self._inputs)}, got {_names(inputs)}",
            )
        for name, array in inputs.items():
            self._check(name, array)
        try:
            return tuple(self._session.run(None, inputs))
        except Exception as error:  # as above
            reason = str(error).strip().splitlines()
            raise AffectError(
                "graph.failed",
                f"{self._name}: ONNX Runtime failed on shapes "
                f"{ {name: array.shape for name, array in inputs.items()} } "
                f"({reason[0] if reason else type(error).__name__})",
            ) from error

    def _check(self, name: str, array: Array) -> None:
        node = self._inputs[name]
        shape: list[int | str | None] = node.shape
        dtype = _DTYPES.get(node.type)
        fits = len(shape) == array.ndim and all(
            not isinstance(expected, int) or expected == got
            for expected, got in zip(shape, array.shape, strict=False)
        )
        if not fits or (dtype is not None and array.dtype != dtype):
            raise AffectError(
                "graph.signature",
                f"{self._name}: input '{name}': expected {node.type} of shape {shape}, "
                f"got {array.dtype} of shape {list(array.shape)}",
            )


def member_graph(
    bundle: Bundle, member: str, inputs: Sequence[str], outputs: Sequence[str], *, threads: int | None
) -> OnnxGraph:
    """A graph of a bundle. Raises ``graph.signature`` unless it has these inputs and outputs."""
    graph = OnnxGraph(bundle.read(member), threads=threads, name=f"{bundle.manifest.name}/{member}")
    graph.expect(inputs, outputs)
    return graph


class OnnxFusion:
    """The fusion graph of any bundle. Immutable; share it between threads."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        """Load it. Raises as :class:`OnnxGraph` and ``graph.signature`` when it isn't a fusion graph."""
        manifest = bundle.manifest
        inputs = [name for m in MODALITIES for name in (m, f"{m}_lengths")]
        outputs = ["sentiment", "emotion_logits"]
        self._graph = member_graph(bundle, manifest.fusion.graph, inputs, outputs, threads=threads)
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


@cache
def _saturates() -> bool:
    """Whether this processor's int8 matmul can saturate."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        described = ""
    return lacks_vnni(platform.machine(), described)


def lacks_vnni(machine: str, cpuinfo: str) -> bool:
    """Whether a machine, by its name and Linux's ``/proc/cpuinfo``, is x86 without VNNI.

    Such processors add two products of uint8 by int8 in 16 bits, where they saturate: a text encoder's
    states were off by up to 0.36. When in doubt, the answer is yes.
    """
    return machine.lower() in ("x86_64", "amd64") and not {"avx512_vnni", "avx_vnni"} & set(cpuinfo.split())


def _names(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(names) or "none"
