"""The NVIDIA GPU through ``cuda-python``: what it is, and a stream with buffers on both sides of the bus."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from affectrt.errors import AffectError, require

if TYPE_CHECKING:
    from types import ModuleType

Bytes = npt.NDArray[np.uint8]
_Call = Callable[[], object]


@dataclass(frozen=True)
class Gpu:
    """The first GPU that this process sees (``CUDA_VISIBLE_DEVICES`` chooses)."""

    name: str
    """As the driver names it."""
    compute_capability: str
    """``8.7``."""
    cuda: str
    """The newest CUDA that the driver knows, ``13.0``."""


def find_gpu() -> Gpu:
    """Ask the driver. Raises ``extra.missing`` without ``cuda-python``, ``gpu.missing`` without a GPU."""
    cuda = driver_cuda()
    from cuda.bindings import runtime as cudart

    try:
        (count,) = _checked("count the GPUs", cudart.cudaGetDeviceCount())
        if not count:
            raise AffectError("gpu.missing", "GPU: the driver sees none; check the card and nvidia-smi")
        (described,) = _checked("describe the GPU", cudart.cudaGetDeviceProperties(0))
    except AffectError as error:
        if error.code != "gpu.failed":
            raise
        raise AffectError("gpu.missing", error.message) from error
    properties: cudart.cudaDeviceProp = described
    name: bytes = properties.name
    return Gpu(
        name=name.split(b"\0")[0].decode("utf-8", "replace"),
        compute_capability=f"{properties.major}.{properties.minor}",
        cuda=cuda,
    )


def driver_cuda() -> str:
    """The newest CUDA that the driver knows, ``13.0``; it tells even one that is too old for our libraries.

    Raises ``extra.missing`` without ``cuda-python``, ``gpu.missing`` without a driver.
    """
    _cudart()
    from cuda.bindings import runtime as cudart

    version, reason = 0, "there is none"
    try:
        (version,) = _checked("ask the driver's version", cudart.cudaDriverGetVersion())
    except RuntimeError as error:  # cuda-python finds no libcuda.so
        reason = str(error)
    except AffectError as error:
        reason = error.message
    if not version:
        raise AffectError(
            "gpu.missing",
            f"GPU: no NVIDIA driver answers ({reason}); install the driver, and in a container pass the GPU "
            f"on (--gpus all, or --runtime nvidia on a Jetson)",
        )
    return f"{version // 1000}.{version % 1000 // 10}"


class Stream:
    """A CUDA stream and what was allocated for it; all is freed with the object."""

    def __init__(self) -> None:
        """Create it on the first GPU. Raises ``gpu.failed``, ``extra.missing``."""
        _cudart()
        from cuda.bindings import runtime as cudart

        self.use()
        # Not the default stream: that one can't be captured.
        flags = cudart.cudaStreamNonBlocking
        (self._stream,) = _checked("create a stream", cudart.cudaStreamCreateWithFlags(flags))
        self._buffers: list[_Call] = []
        self._recordings: dict[int, _Call] = {}
        # Calls, not names: when the interpreter ends, modules may be gone before the last stream.
        wait = partial(cudart.cudaStreamSynchronize, self._stream)
        destroy = partial(cudart.cudaStreamDestroy, self._stream)
        weakref.finalize(self, _release, wait, self._recordings, self._buffers, destroy)

    @property
    def handle(self) -> int:
        """As TensorRT takes it."""
        return int(self._stream)

    def use(self) -> None:
        """Make the first GPU that of the calling thread. Raises ``gpu.failed``."""
        from cuda.bindings import runtime as cudart

        _checked("use the GPU from this thread", cudart.cudaSetDevice(0))

    def device_buffer(self, size: int) -> int:
        """The address of ``size`` bytes on the GPU. Raises ``gpu.failed``."""
        from cuda.bindings import runtime as cudart

        what = f"allocate {size} bytes on the GPU"
        (address,) = _checked(what, cudart.cudaMalloc(max(size, 1)))
        self._buffers.append(partial(cudart.cudaFree, address))
        return int(address)

    def pinned_buffer(self, size: int) -> Bytes:
        """``size`` bytes (size,) that the GPU copies from and to by itself. Raises ``gpu.failed``."""
        from cuda.bindings import runtime as cudart

        what = f"allocate {size} pinned bytes"
        (address,) = _checked(what, cudart.cudaMallocHost(max(size, 1)))
        self._buffers.append(partial(cudart.cudaFreeHost, address))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))

    def copy_in(self, device: int, host: Bytes, size: int) -> None:
        """Queue a copy of the first ``size`` bytes to the GPU. Raises ``gpu.failed``."""
        from cuda.bindings import runtime as cudart

        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        done = cudart.cudaMemcpyAsync(device, host.ctypes.data, size, kind, self._stream)
        _checked("copy to the GPU", done)

    def copy_out(self, host: Bytes, device: int, size: int) -> None:
        """Queue a copy of ``size`` bytes from the GPU. Raises ``gpu.failed``."""
        from cuda.bindings import runtime as cudart

        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        done = cudart.cudaMemcpyAsync(host.ctypes.data, device, size, kind, self._stream)
        _checked("copy from the GPU", done)

    def wait(self) -> None:
        """Until all that was queued is done. Raises ``gpu.failed``."""
        from cuda.bindings import runtime as cudart

        _checked("run", cudart.cudaStreamSynchronize(self._stream))

    def begin_capture(self) -> None:
        """From here on, what is queued is recorded instead of run. Raises ``gpu.failed``."""
        from cuda.bindings import runtime as cudart

        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _checked("record", cudart.cudaStreamBeginCapture(self._stream, mode))

    def end_capture(self) -> Any:
        """What was recorded, for :meth:`replay`. Raises ``gpu.failed`` when it can't be recorded."""
        from cuda.bindings import runtime as cudart

        error, graph = cudart.cudaStreamEndCapture(self._stream)
        if error != cudart.cudaError_t.cudaSuccess:
            cudart.cudaGetLastError()  # or the next call would report this error once more
            _checked("record", (error,))
        try:
            (replay,) = _checked("prepare what was recorded", cudart.cudaGraphInstantiate(graph, 0))
        finally:
            cudart.cudaGraphDestroy(graph)
        self._recordings[id(replay)] = partial(cudart.cudaGraphExecDestroy, replay)
        return replay

    def replay(self, replay: Any) -> None:
        """Queue what was recorded. Raises ``gpu.failed``."""
        from cuda.bindings import runtime as cudart

        _checked("replay", cudart.cudaGraphLaunch(replay, self._stream))

    def forget(self, replay: Any) -> None:
        """Free a recording."""
        self._recordings.pop(id(replay))()


def _cudart() -> ModuleType:
    return require("cuda.bindings.runtime", "tensorrt")


def _checked(what: str, result: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a CUDA call returned behind its error code. Raises ``gpu.failed``."""
    from cuda.bindings import runtime as cudart

    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        _, text = cudart.cudaGetErrorString(error)
        reason = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(error)
        raise AffectError(
            "gpu.failed",
            f"GPU: could not {what}: {reason}; 'affectrt doctor' checks driver and libraries",
        )
    return tuple(values)


def _release(wait: _Call, recordings: dict[int, _Call], buffers: list[_Call], destroy: _Call) -> None:
    for call in (wait, *recordings.values(), *buffers, destroy):
        call()
