"""Runs a bundle's graphs as TensorRT engines that ``affectrt build-engine`` built on this machine.

Written for TensorRT 10.3 to 11. Inputs go through pinned buffers that are made once, at the largest shapes
that the engine takes; a shape that comes a second time is recorded as a CUDA graph and replayed from then on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from affectrt.backends import Array, FloatArray
from affectrt.backends.gpu import Bytes, Stream, find_gpu
from affectrt.engines import Engine, EngineCache, EngineKey, Shape
from affectrt.errors import AffectError, require

if TYPE_CHECKING:
    import tensorrt as trt

    from affectrt.bundle import Bundle

RECORDINGS = 8
"""Shapes kept as CUDA graphs, each with an execution context of its own; the longest unused goes."""

Shapes = tuple[Shape, ...]


def engine_key(bundle: Bundle, graph: str) -> EngineKey:
    """What the engine of a bundle's graph is tied to here. Raises ``extra.missing``, ``gpu.missing``."""
    require("tensorrt", "tensorrt")
    import tensorrt as trt

    gpu = find_gpu()
    return EngineKey(bundle.sha256, graph, gpu.name, gpu.compute_capability, trt.__version__, gpu.cuda)


def find_engine(bundle: Bundle, graph: str) -> Engine:
    """A bundle's engine from the cache. Raises ``engine.missing``, ``extra.missing``, ``gpu.missing``."""
    key, cache = engine_key(bundle, graph), EngineCache()
    found = cache.find(key)
    if isinstance(found, Engine):
        return found
    raise AffectError(
        "engine.missing",
        f"model {bundle.manifest.name}: no engine for its graph {graph} on {key.gpu}: {found.reason}; run "
        f"'affectrt build-engine' on this machine",
    )


def member_engine(bundle: Bundle, graph: str, inputs: Sequence[str], outputs: Sequence[str]) -> EngineGraph:
    """A graph of a bundle as an engine.

    Raises as :func:`find_engine` and :class:`EngineGraph`; ``graph.signature`` unless it has these inputs
    and, in order, these outputs.
    """
    engine = EngineGraph(find_engine(bundle, graph), name=f"{bundle.manifest.name}/{graph}")
    engine.expect(inputs, outputs)
    return engine


@dataclass(frozen=True)
class _Tensor:
    """One input or output and its memory, large enough for any shape that the engine takes."""

    dtype: npt.DTypeLike
    smallest: Shape
    largest: Shape
    host: Bytes
    device: int

    def size(self, shape: Shape) -> int:
        """Bytes that it takes in this shape."""
        return prod(shape) * np.dtype(self.dtype).itemsize

    def view(self, shape: Shape) -> Array:
        """The pinned memory as an array."""
        view: Array = self.host[: self.size(shape)].view(self.dtype).reshape(shape)
        return view


@dataclass(frozen=True)
class _Recording:
    """A run in one shape, to be replayed."""

    context: trt.IExecutionContext
    """Its own: a recording is bound to its memory and shapes."""
    replay: Any
    outputs: Shapes


class EngineGraph:
    """One engine, ready to run. Safe to share between threads, which take turns.

    Every call is checked against the engine's signature and limits first, so that a wrong array is an error
    with the name of the input.
    """

    def __init__(self, engine: Engine, *, name: str = "engine") -> None:
        """Deserialise a verified engine and make its buffers.

        Raises ``engine.invalid`` when TensorRT refuses it, ``gpu.failed`` and ``extra.missing``.
        """
        require("tensorrt", "tensorrt")
        import tensorrt as trt

        self._name = name
        self._lock = threading.Lock()
        self._stream = Stream()
        self._logger = trt.Logger(trt.Logger.ERROR)  # TensorRT's own reasons appear on stderr
        self._runtime = trt.Runtime(self._logger)
        # The engine brings its runtime as code; the cache has made sure whose code it is.
        self._runtime.engine_host_code_allowed = engine.build.version_compatible
        self._engine: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(engine.data)
        if self._engine is None:
            self._refuse("TensorRT could not read this engine")
        # One for all contexts, which take turns on one stream: with recordings there are several.
        self._scratch_size: int = self._engine.device_memory_size_v2
        self._scratch = self._stream.device_buffer(self._scratch_size)
        self._context = self._new_context()
        self._inputs: dict[str, _Tensor] = {}
        self._outputs: dict[str, _Tensor] = {}
        self._make_buffers()
        self._bind(self._context)
        self._seen: OrderedDict[Shapes, _Recording | None] = OrderedDict()
        self._records = True

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the engine's order."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in the engine's order."""
        return tuple(self._outputs)

    def expect(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Raise ``graph.signature`` unless the engine has these inputs and, in order, these outputs."""
        if set(inputs) != set(self._inputs) or tuple(outputs) != self.outputs:
            raise AffectError(
                "graph.signature",
                f"{self._name}: expected inputs {', '.join(inputs)} and outputs {', '.join(outputs)}, got "
                f"inputs {', '.join(self.inputs)} and outputs {', '.join(self.outputs)}; build the engine "
                f"again",
            )

    def __call__(self, **inputs: Array) -> tuple[FloatArray, ...]:
        """Run once. Raises ``graph.signature``, ``engine.limits`` for a shape that the engine doesn't take,
        ``graph.failed`` and ``gpu.failed``.
        """
        shapes = self._shapes(inputs)
        with self._lock:
            self._stream.use()
            for (name, tensor), shape in zip(self._inputs.items(), shapes, strict=True):
                np.copyto(tensor.view(shape), inputs[name])
            recording = self._seen.get(shapes)
            if recording is not None:
                self._stream.replay(recording.replay)
                outputs = recording.outputs
            else:
                outputs = self._queue(self._context, shapes)
            self._stream.wait()
            results = tuple(
                tensor.view(shape).astype(np.float32)
                for tensor, shape in zip(self._outputs.values(), outputs, strict=True)
            )
            self._remember(shapes)
        return results

    def _shapes(self, inputs: Mapping[str, Array]) -> Shapes:
        if inputs.keys() != self._inputs.keys():
            raise AffectError(
                "graph.signature",
                f"{self._name}: expected inputs {', '.join(self._inputs)}, got {', '.join(inputs) or 'none'}",
            )
        for name, tensor in self._inputs.items():
            array = inputs[name]
            bounds = list(zip(tensor.smallest, tensor.largest, strict=True))
            fixed = [low if low == high else "any" for low, high in bounds]
            if array.dtype != tensor.dtype or array.ndim != len(bounds):
                raise AffectError(
                    "graph.signature",
                    f"{self._name}: input '{name}': expected {np.dtype(tensor.dtype)} of shape {fixed}, got "
                    f"{array.dtype} of shape {list(array.shape)}",
                )
            if not all(low <= size <= high for (low, high), size in zip(bounds, array.shape, strict=True)):
                raise AffectError(
                    "engine.limits",
                    f"{self._name}: input '{name}': expected shapes from {list(tensor.smallest)} to "
                    f"{list(tensor.largest)}, got {list(array.shape)}; build the engine again with a larger "
                    f"--max-text, --max-audio or --max-vision",
                )
        return tuple(inputs[name].shape for name in self._inputs)

    def _queue(self, context: trt.IExecutionContext, shapes: Shapes) -> Shapes:
        """Queue copies in, a run and copies out, and return the outputs' shapes."""
        for (name, tensor), shape in zip(self._inputs.items(), shapes, strict=True):
            if not context.set_input_shape(name, shape):
                self._fail(f"input '{name}' can't have the shape {list(shape)}", shapes)
            self._stream.copy_in(tensor.device, tensor.host, tensor.size(shape))
        outputs = tuple(_shape(context.get_tensor_shape(name)) for name in self._outputs)
        if not context.execute_async_v3(self._stream.handle):
            self._fail("TensorRT could not run", shapes)
        for tensor, shape in zip(self._outputs.values(), outputs, strict=True):
            self._stream.copy_out(tensor.host, tensor.device, tensor.size(shape))
        return outputs

    def _remember(self, shapes: Shapes) -> None:
        """Record the run when its shapes come for the second time."""
        if not self._records:
            return
        if shapes in self._seen and self._seen[shapes] is None:
            self._seen[shapes] = self._record(shapes)
        else:
            self._seen.setdefault(shapes, None)
        self._seen.move_to_end(shapes)
        while len(self._seen) > RECORDINGS:
            _, oldest = self._seen.popitem(last=False)
            if oldest is not None:
                self._stream.forget(oldest.replay)

    def _record(self, shapes: Shapes) -> _Recording | None:
        """A run as a CUDA graph; None, once and for all, for an engine that can't be recorded."""
        context = self._new_context()
        self._bind(context)
        # The first run in a new shape prepares things that can't be recorded.
        self._queue(context, shapes)
        self._stream.wait()
        outputs: Shapes = ()
        failed: AffectError | None = None
        self._stream.begin_capture()
        try:
            outputs = self._queue(context, shapes)
        except AffectError as error:
            failed = error
        try:
            replay = self._stream.end_capture()
        except AffectError as error:
            failed = error
        if failed is not None:
            self._records = False  # loops that ask the host, for one; it runs as well without
            return None
        return _Recording(context, replay, outputs)

    def _new_context(self) -> trt.IExecutionContext:
        import tensorrt as trt

        assert self._engine is not None
        mine = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context: trt.IExecutionContext | None = self._engine.create_execution_context(mine)
        if context is None:
            self._refuse("TensorRT could not make room to run it")
        context.set_device_memory(self._scratch, self._scratch_size)
        if not context.set_optimization_profile_async(0, self._stream.handle):
            self._refuse("TensorRT could not choose its only profile")
        self._stream.wait()
        return context

    def _make_buffers(self) -> None:
        import tensorrt as trt

        engine = self._engine
        assert engine is not None
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        given = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        for name in given:
            smallest, _, largest = map(_shape, engine.get_tensor_profile_shape(name, 0))
            self._inputs[name] = self._tensor(name, smallest, largest)
            if not self._context.set_input_shape(name, largest):
                self._refuse(f"input '{name}' doesn't take its own largest shape {list(largest)}")
        for name in names:
            if name in self._inputs:
                continue
            largest = _shape(self._context.get_tensor_shape(name))
            if min(largest, default=0) < 0:
                self._refuse(f"the shape of output '{name}' depends on more than the inputs' shapes")
            self._outputs[name] = self._tensor(name, largest, largest)

    def _tensor(self, name: str, smallest: Shape, largest: Shape) -> _Tensor:
        import tensorrt as trt

        assert self._engine is not None
        dtype: npt.DTypeLike = trt.nptype(self._engine.get_tensor_dtype(name))
        size = prod(largest) * np.dtype(dtype).itemsize
        return _Tensor(
            dtype, smallest, largest, self._stream.pinned_buffer(size), self._stream.device_buffer(size)
        )

    def _bind(self, context: trt.IExecutionContext) -> None:
        for name, tensor in (*self._inputs.items(), *self._outputs.items()):
            if not context.set_tensor_address(name, tensor.device):
                self._refuse(f"'{name}' could not be given memory")

    def _refuse(self, reason: str) -> NoReturn:
        raise AffectError(
            "engine.invalid",
            f"{self._name}: {reason}; build it again with: affectrt build-engine --rebuild",
        )

    def _fail(self, reason: str, shapes: Shapes) -> NoReturn:
        told = ", ".join(f"{name} {list(shape)}" for name, shape in zip(self._inputs, shapes, strict=True))
        raise AffectError("graph.failed", f"{self._name}: {reason} with {told}; stderr has TensorRT's reason")


def _shape(dims: trt.Dims) -> Shape:
    return tuple(dims[axis] for axis in range(len(dims)))
