"""A stand-in for TensorRT, beside that for ``cuda-python``: an engine is its ONNX graph.

ONNX Runtime runs the graph; where it holds our operator, ONNX's own reference does. The stand-in knows what
affectrt calls, no more, and is strict where that finds faults.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from affectrt.cli.equations import ghrnn
from tests.sdk.stand_in_cuda import Cuda

DTYPES = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}


class Recurrence(OpRun):  # type: ignore[misc]
    """What the plugin of a recurrence with a state of four computes, from the equations."""

    op_domain = "affectrt"

    def _run(self, sums: Any, w_h: Any, lengths: Any, h0: Any, **_: Any) -> tuple[Any, Any]:
        y, h_n = np.zeros((*sums.shape[:2], len(w_h[0])), np.float32), h0.copy()
        for row, length in enumerate(lengths):
            if length:
                y[row, :length] = ghrnn(sums[row, :length], np.eye(len(w_h)), w_h, np.zeros(len(w_h)))
                h_n[row] = y[row, length - 1]
        return y, h_n


Recurrence.__name__ = "gated_rnn_h4"


class WithPlugins:
    """A graph that ONNX Runtime can't run: it holds our operator."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.run = ReferenceEvaluator(model, new_ops=[Recurrence]).run
        self.model = model

    def get_inputs(self) -> list[Any]:
        kinds = {onnx.TensorProto.FLOAT: "tensor(float)", onnx.TensorProto.INT64: "tensor(int64)"}
        inputs = self.model.graph.input
        return [SimpleNamespace(name=i.name, type=kinds[i.type.tensor_type.elem_type]) for i in inputs]

    def get_outputs(self) -> list[Any]:
        return list(self.model.graph.output)


def session(graph: bytes) -> Any:
    model = onnx.load_from_string(graph)
    if any(node.domain for node in model.graph.node):
        return WithPlugins(model)
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


class Plugins(ModuleType):
    """``tensorrt.plugin``: keeps what it is given."""

    TensorDesc = KernelLaunchParams = SymIntExprs = SimpleNamespace

    def __init__(self) -> None:
        super().__init__("tensorrt.plugin")
        self.registered: list[str] = []

    def register(self, name: str) -> Callable[[Any], Any]:
        self.registered.append(name)
        return lambda function: function

    def aot_impl(self, name: str) -> Callable[[Any], Any]:
        assert name in self.registered
        return lambda function: function


class StandInContext:
    """Runs the graph on whatever lies at the addresses that it was given."""

    def __init__(self, engine: StandInEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.has_memory = False

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == 512 and len(self.engine.cuda.memory[address]) == 512
        self.has_memory = True

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return index == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.profile[name]
        self.shapes[name] = tuple(shape)
        return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def _at(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        size = int(np.prod(shape)) * dtype.itemsize
        raw = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        given = {n: np.ones(shape, self.engine.inputs[n]) for n, shape in self.shapes.items()}
        shape: tuple[int, ...] = self.engine.session.run([name], given)[0].shape
        return shape

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77 and self.has_memory
        shapes = dict(self.shapes)

        def work() -> None:
            given = {n: self._at(n, shape, self.engine.inputs[n]) for n, shape in shapes.items()}
            for name, result in zip(self.engine.outputs, self.engine.session.run(None, given), strict=True):
                self._at(name, result.shape, result.dtype)[...] = result

        self.engine.cuda.queue(work)
        return True


class StandInEngine:
    """Named tensors of a graph."""

    def __init__(self, data: bytes, cuda: Cuda) -> None:
        header, self.model = data.split(b"\n", 1)
        self.profile = json.loads(header)
        self.cuda = cuda
        self.session = session(self.model)
        self.inputs: dict[str, Any] = {node.name: DTYPES[node.type] for node in self.session.get_inputs()}
        self.outputs: list[str] = [node.name for node in self.session.get_outputs()]
        self.device_memory_size_v2 = 512
        self.num_io_tensors = len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return (*self.inputs, *self.outputs)[index]

    def get_tensor_mode(self, name: str) -> int:
        return 1 if name in self.inputs else 2

    def get_tensor_dtype(self, name: str) -> Any:
        return self.inputs.get(name, np.dtype(np.float32))

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.profile[name]

    def create_execution_context(self, strategy: str) -> StandInContext:
        assert strategy == "user managed"
        return StandInContext(self)


class Level(enum.Enum):
    """Of a message."""

    INTERNAL_ERROR = 0
    ERROR = 1


class StandInLogger:
    """What ``trt.Logger`` and ``trt.ILogger`` are to us."""

    Severity = Level
    ERROR = Level.ERROR

    def __init__(self, level: Level | None = None) -> None:
        self.level = level


class StandInConfig:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.progress_monitor: Any = None
        self.told: list[Any] = []
        self.profile: dict[str, Any] = {}

    def set_flag(self, flag: str) -> None:
        self.told.append(("set", flag))

    def clear_flag(self, flag: str) -> None:
        self.told.append(("clear", flag))

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.told.append((pool, size))

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.told.append(("timings", cache))
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"learnt")

    def add_optimization_profile(self, profile: Any) -> int:
        self.profile = profile.shapes
        return 0


class StandInParser:
    """Takes any graph but one with ``refuse`` in it."""

    def __init__(self, network: Any, logger: Any) -> None:
        self.network, self.num_errors = network, 0

    def parse(self, graph: bytes) -> bool:
        self.network.model = graph
        inputs = session(graph).get_inputs()
        self.network.num_inputs, self.network.get_input = len(inputs), inputs.__getitem__
        self.num_errors = int(b"refuse" in graph)
        return not self.num_errors

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(
            desc=lambda: "not\nknown", node_name=lambda: "node_7", node_operator=lambda: "MatMulInteger"
        )


class StandInProfile:
    """Shapes by name."""

    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, smallest: Any, usual: Any, largest: Any) -> None:
        self.shapes[name] = [smallest, usual, largest]


class TensorRt(ModuleType):
    """``tensorrt``."""

    __version__ = "10.3.0"
    ILogger = Logger = StandInLogger
    IProgressMonitor = object
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1, PREFER_AOT_PYTHON_PLUGINS=3)
    BuilderFlag = SimpleNamespace(TF32="tf32", VERSION_COMPATIBLE="compatible")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    OnnxParser = StandInParser
    Dims: Any = list
    nptype = staticmethod(lambda dtype: dtype)

    def __init__(self, cuda: Cuda) -> None:
        super().__init__("tensorrt")
        self.cuda = cuda
        self.configs: list[StandInConfig] = []

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(
            deserialize_cuda_engine=lambda data: None if b"\n" not in data else StandInEngine(data, self.cuda)
        )

    def Builder(self, logger: Any) -> Any:
        def config() -> StandInConfig:
            self.configs.append(StandInConfig())
            return self.configs[-1]

        def build(network: Any, config: StandInConfig) -> bytes:
            holds_plugins = any(node.domain for node in onnx.load_from_string(network.model).graph.node)
            assert network.flags == (2 | 8 if holds_plugins else 2), "strongly typed, ahead of time"
            monitor = config.progress_monitor
            monitor.phase_start("Building", None, 2)
            assert monitor.step_complete("Building", 0)
            monitor.phase_finish("Building")
            return json.dumps(config.profile).encode() + b"\n" + bytes(network.model)

        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(flags=flags),
            create_builder_config=config,
            create_optimization_profile=StandInProfile,
            build_serialized_network=build,
        )
