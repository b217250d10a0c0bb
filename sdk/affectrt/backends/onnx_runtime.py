"""Runs a bundle's ONNX graphs with ONNX Runtime, on the CPU or, where it is named, on a GPU."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectrt.backends import Array, FloatArray
from affectrt.backends.fusion import FUSION_INPUTS, FUSION_OUTPUTS, GraphFusion
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


CPU = "CPUExecutionProvider"


class OnnxGraph:
    """One ONNX graph, ready to run; immutable and safe to share between threads.

    Every call is checked against the graph's own signature (names, dtypes, ranks, fixed sizes), so that a
    wrong array is ``graph.signature`` with the name of the input and not a message from inside the runtime.
    """

    def __init__(
        self, model: bytes, *, threads: int | None = None, name: str = "graph", provider: str = CPU
    ) -> None:
        """Load serialised ONNX; ``threads`` within one operator, None for one per core.

        ``provider``: what executes it. One for a GPU may leave to the CPU what it doesn't know, operator by
        operator, but not everything.

        Raises ``graph.invalid`` when the runtime refuses the graph, ``extra.missing`` without a runtime,
        ``backend.unavailable`` when the provider doesn't start here.
        """
        if threads is not None and threads < 1:
            raise AffectError("graph.threads", f"threads: expected at least 1 or None, got {threads}")
        ort = require("onnxruntime", "cpu" if provider == CPU else "gpu")
        check_provider(provider)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Between ticks the device has other work; threads that spin would eat it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if _saturates():
            # ONNX Runtime then takes a slower path that doesn't.
            options.add_session_config_entry("session.x64quantprecision", "1")
        used: list[str] = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a provider that doesn't start; asked for below
                # Without fallback: it would start again without the GPU, now and after a fault.
                self._session = ort.InferenceSession(
                    model, options, providers=list(dict.fromkeys([provider, CPU])), enable_fallback=0
                )
            used = self._session.get_providers()
        except Exception as error:  # the runtime raises its own classes, which share no other base
            # Some providers that don't start raise, with a class that no fault of a graph has; some don't.
            if provider == CPU or type(error) not in (RuntimeError, ValueError):
                reason = str(error).strip().splitlines()
                raise AffectError(
                    "graph.invalid",
                    f"{name}: ONNX Runtime {ort.__version__} could not load this graph "
                    f"({reason[0] if reason else type(error).__name__}); export the model again",
                ) from error
        if provider not in used:
            raise AffectError(
                "backend.unavailable",
                f"{name}: {provider} was asked for and doesn't start here, ONNX Runtime would go on without "
                f"it; install the CUDA, cuDNN and TensorRT that onnxruntime-gpu {ort.__version__} names (pip "
                f"install 'onnxruntime-gpu[cuda,cudnn]'), or name another backend",
            )
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


def check_provider(provider: str) -> None:
    """Raise ``backend.unavailable`` when ONNX Runtime was built without a provider, ``extra.missing``."""
    ort = require("onnxruntime", "cpu" if provider == CPU else "gpu")
    available: list[str] = ort.get_available_providers()
    if provider not in available:
        raise AffectError(
            "backend.unavailable",
            f"ONNX Runtime {ort.__version__} has no {provider}, only {', '.join(available)}; replace it: "
            f"pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'affectrt[gpu]'",
        )


def member_graph(
    bundle: Bundle,
    member: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    threads: int | None,
    provider: str = CPU,
) -> OnnxGraph:
    """A graph of a bundle. Raises ``graph.signature`` unless it has these inputs and outputs."""
    name = f"{bundle.manifest.name}/{member}"
    graph = OnnxGraph(bundle.read(member), threads=threads, name=name, provider=provider)
    graph.expect(inputs, outputs)
    return graph


class OnnxFusion(GraphFusion):
    """The fusion graph of any bundle. Immutable; share it between threads."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, provider: str = CPU) -> None:
        """Load it. Raises as :class:`OnnxGraph` and ``graph.signature`` when it isn't a fusion graph."""
        member = bundle.manifest.fusion.graph
        super().__init__(
            member_graph(bundle, member, FUSION_INPUTS, FUSION_OUTPUTS, threads=threads, provider=provider),
            bundle.manifest,
        )


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
