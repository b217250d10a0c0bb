"""Which backends can run a bundle on this machine, and which one does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from affectrt.affect import Modality
from affectrt.backends import Graph
from affectrt.backends.declared import declared, find_backend
from affectrt.backends.native import check_native
from affectrt.backends.onnx_runtime import CPU, OnnxFusion, check_provider, member_graph
from affectrt.engines import EngineCache
from affectrt.errors import AffectError

if TYPE_CHECKING:
    from affectrt.backends import Fusion
    from affectrt.bundle import Bundle

PROVIDERS: Mapping[str, str] = {
    "onnxruntime": CPU,
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
    "onnxruntime-rtx": "NvTensorRTRTXExecutionProvider",
}
"""Backend → what ONNX Runtime calls it."""

BACKENDS = ("tensorrt", "native", *PROVIDERS)
"""Those of this package; other packages :mod:`declare <affectrt.backends.declared>` more."""

DEVICES: Mapping[str, tuple[str, ...]] = {
    "auto": ("tensorrt", "native", "onnxruntime"),
    "cpu": ("native", "onnxruntime"),
    "cuda": ("tensorrt", "onnxruntime-cuda"),
}
"""Device → what may run a bundle on it when no backend is named, most wanted first.

``native`` is several times faster than ONNX Runtime on a CPU and needs nothing but affectrt itself;
``tensorrt`` is taken once its engines were built here."""

_FAULTS_OF_THE_MACHINE = ("backend.", "engine.", "extra.", "gpu.")


def known_backends() -> tuple[str, ...]:
    """All that can be named."""
    return (*BACKENDS, *(name for name in declared() if name not in BACKENDS))


def obstacle(backend: str, bundle: Bundle) -> AffectError | None:
    """Why a backend can't run a bundle here; None: as far as can be told without starting it, it can.

    ``backend.unknown``; ``backend.unsupported`` when it doesn't know such models, ``backend.missing`` without
    the C++ extension, ``extra.missing`` without a library, ``backend.unavailable`` when ONNX Runtime was
    built without it, ``engine.missing`` and ``gpu.missing`` from TensorRT; what a declared backend raises.
    """
    try:
        if backend == "native":
            check_native(bundle.manifest)
        elif backend == "tensorrt":
            _check_engines(bundle)
        elif backend in PROVIDERS:
            check_provider(PROVIDERS[backend])
        elif (other := find_backend(backend)) is not None:
            other.check(bundle)
        else:
            raise AffectError(
                "backend.unknown",
                f"backend: expected one of {', '.join(known_backends())} or None, got '{backend}'",
            )
    except AffectError as error:
        return error
    return None


@dataclass(frozen=True)
class Choice:
    """What runs a bundle here."""

    backend: str
    """One of :data:`BACKENDS`."""
    reason: str
    """Why this one; for people."""


def choose_backend(
    bundle: Bundle,
    named: str | None = None,
    device: str = "auto",
    start: Callable[[str], object] = lambda backend: None,
) -> Choice:
    """The backend that was named, or else the first that can on this device.

    ``start`` is called with what seems able to: who turns out not to start here is passed over like one that
    can't. A broken bundle is nobody's excuse.

    Raises what stands in the named one's way: who names a backend gets that one or an error. Without a name,
    when none can, raises what stands in the way of each. ``backend.device`` when the device is unknown or
    isn't the named backend's.
    """
    if device not in DEVICES:
        raise AffectError("backend.device", f"device: expected {', '.join(DEVICES)}, got '{device}'")
    if named is not None:
        found = obstacle(named, bundle)
        if found is not None:
            raise found
        runs_on = _devices(named)
        if device not in ("auto", *runs_on):
            raise AffectError(
                "backend.device",
                f"device: expected {' or '.join(runs_on)}, which the backend {named} uses, got '{device}'; "
                f"leave out one",
            )
        start(named)
        return Choice(named, "asked for by name")
    obstacles: dict[str, AffectError] = {}
    for backend in DEVICES[device]:
        found = obstacle(backend, bundle)
        if found is None:
            try:
                start(backend)
            except AffectError as error:
                if not error.code.startswith(_FAULTS_OF_THE_MACHINE):
                    raise
                found = error
            else:
                told = "".join(f"; not {other}: {error.message}" for other, error in obstacles.items())
                return Choice(backend, f"the first of {', '.join(DEVICES[device])} that can{told}")
        obstacles[backend] = found
    if device == "cuda":
        told = "; ".join(error.message for error in obstacles.values())
        raise AffectError("backend.unavailable", f"device cuda: nothing can run on it here: {told}")
    raise obstacles[DEVICES[device][-1]]  # ONNX Runtime, which knows every model


def load_fusion(bundle: Bundle, backend: str, threads: int | None, device: str = "auto") -> Fusion:
    """The bundle's fusion model, ready to run; ``device`` matters to backends that know more than one.

    Raises ``bundle.weights`` and ``bundle.manifest`` from the native backend, ``graph.invalid``,
    ``graph.signature`` and ``engine.invalid`` from the others, when the model isn't what the manifest
    promises; ``backend.unavailable`` and ``gpu.failed`` when the GPU doesn't start.
    """
    if backend == "native":
        from affectrt.backends.native import NativeFusion

        return NativeFusion(bundle)
    if backend == "tensorrt":
        from affectrt.backends.fusion import FUSION_INPUTS, FUSION_OUTPUTS, GraphFusion
        from affectrt.backends.tensorrt import member_engine

        engine = member_engine(bundle, "fusion", FUSION_INPUTS, FUSION_OUTPUTS)
        return GraphFusion(engine, bundle.manifest)
    if backend not in PROVIDERS and (other := find_backend(backend)) is not None:
        return other.load(bundle, device, threads)
    return OnnxFusion(bundle, threads=threads, provider=PROVIDERS[backend])


def load_encoder(
    bundle: Bundle, modality: Modality, inputs: Sequence[str], backend: str, threads: int | None
) -> Graph:
    """The graph of a bundle's encoder: on the GPU where the backend is, else in ONNX Runtime on the CPU."""
    if backend == "tensorrt":
        from affectrt.backends.tensorrt import member_engine

        return member_engine(bundle, modality, inputs, ["states"])
    member = bundle.manifest.graphs[modality]
    provider = PROVIDERS.get(backend, CPU)
    return member_graph(bundle, member, inputs, ["states"], threads=threads, provider=provider)


def _devices(backend: str) -> tuple[str, ...]:
    """Where a backend runs."""
    if backend in BACKENDS:
        return ("cpu",) if backend in DEVICES["cpu"] else ("cuda",)
    other = find_backend(backend)
    return () if other is None else other.devices


def _check_engines(bundle: Bundle) -> None:
    if not EngineCache().holds(bundle.sha256):
        raise AffectError(
            "engine.missing",
            f"model {bundle.manifest.name}: no TensorRT engines of it are here; where there is an NVIDIA "
            f"GPU, 'affectrt build-engine' builds them",
        )
    from affectrt.backends.tensorrt import find_engine

    for graph in bundle.manifest.graphs:
        find_engine(bundle, graph)
