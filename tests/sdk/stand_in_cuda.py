"""A stand-in for ``cuda-python``: the GPU's memory is the host's.

Strict where that finds faults: memory that wasn't written is NaN, what is queued while recording doesn't run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any


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
