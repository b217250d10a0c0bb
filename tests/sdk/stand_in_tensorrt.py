"""A stand-in for TensorRT and ``cuda-python``: the GPU's memory is the host's, an engine its ONNX graph.

ONNX Runtime runs the graph. It knows what affectrt calls, no more, and is strict where that finds faults:
memory that wasn't written is NaN, what is queued while recording doesn't run.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

DTYPES = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}


class Cuda(ModuleType):
    """``cuda.bindings.runtime`` on the host. Queued work runs at once, unless it is being recorded."""

    cudaStreamNonBlocking = 1
    cudaError_t = SimpleNamespace(cudaSuccess=0)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.memory: dict[int, Any] = {}
        self.recording: list[Callable[[], object]] | None = None
        self.alive: list[Any] = []
        self.launched = 0
        self.records = True
        self.gpu = SimpleNamespace(name=b"Stand-in 9000\0\0", major=8, minor=7)

    def queue(self, work: Callable[[], object]) -> None:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, 1

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:
        return 0, self.gpu

    def cudaDriverGetVersion(self) -> tuple[int, int]:
        return 0, 12060

    def cudaSetDevice(self, device: int) -> tuple[int]:
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return 0, 77

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        buffer = ctypes.create_string_buffer(b"\xff" * size, size)  # floats of it are NaN
        self.memory[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address: int) -> tuple[int]:
        del self.memory[address]
        return (0,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        self.queue(lambda: ctypes.memmove(to, source, size))
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert self.recording is None
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        graph, self.recording = self.recording, None
        return (0, graph) if self.records else (901, None)

    def cudaGetLastError(self) -> tuple[int]:
        return (0,)

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        return 0, b"operation not permitted"

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:
        self.alive.append(graph)
        return 0, graph

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[int]:
        assert any(graph is one for one in self.alive)
        self.launched += 1
        for work in graph:
            work()
        return (0,)

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        return (0,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[int]:
        self.alive = [one for one in self.alive if one is not graph]
        return (0,)

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        return (0,)


class StandInContext:
    """Runs the graph on whatever lies at the addresses that it was given."""

    def __init__(self, engine: StandInEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

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
        assert stream == 77
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
        self.session = onnxruntime.InferenceSession(self.model, providers=["CPUExecutionProvider"])
        self.inputs: dict[str, Any] = {node.name: DTYPES[node.type] for node in self.session.get_inputs()}
        self.outputs: list[str] = [node.name for node in self.session.get_outputs()]
        self.num_io_tensors = len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return (*self.inputs, *self.outputs)[index]

    def get_tensor_mode(self, name: str) -> int:
        return 1 if name in self.inputs else 2

    def get_tensor_dtype(self, name: str) -> Any:
        return self.inputs.get(name, np.dtype(np.float32))

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.profile[name]

    def create_execution_context(self) -> StandInContext:
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
        inputs = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).get_inputs()
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
    TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
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
            assert network.flags == 2, "strongly typed"
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
