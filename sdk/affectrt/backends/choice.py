"""Which backends can run a bundle's fusion model on this machine, and which one does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from affectrt.backends.native import check_native
from affectrt.errors import AffectError, require

if TYPE_CHECKING:
    from affectrt.backends import Fusion
    from affectrt.bundle import Bundle
    from affectrt.manifest import Manifest

BACKENDS = ("native", "onnxruntime")
"""Most wanted first: ``native`` is several times faster and needs nothing but affectrt itself."""


def obstacle(backend: str, manifest: Manifest) -> AffectError | None:
    """Why a backend can't run a fusion model here; None: it can.

    ``backend.unknown``, ``backend.unsupported`` when it doesn't know such models, ``backend.missing`` without
    the C++ extension, ``extra.missing`` without ONNX Runtime.
    """
    try:
        if backend == "native":
            check_native(manifest)
        elif backend == "onnxruntime":
            require("onnxruntime", "cpu")
        else:
            raise AffectError(
                "backend.unknown", f"backend: expected one of {', '.join(BACKENDS)} or None, got '{backend}'"
            )
    except AffectError as error:
        return error
    return None


def choose_backend(manifest: Manifest, named: str | None) -> str:
    """The backend that was named, or else the first that can.

    Raises what stands in the named one's way: who names a backend gets that one or an error. Without a
    name, when none can, raises what stands in the way of ONNX Runtime, which knows every model.
    """
    found = None
    for backend in BACKENDS if named is None else (named,):
        found = obstacle(backend, manifest)
        if found is None:
            return backend
    assert found is not None
    raise found


def load_fusion(bundle: Bundle, backend: str, threads: int | None) -> Fusion:
    """The bundle's fusion model, ready to run.

    Raises ``bundle.weights`` and ``bundle.manifest`` from the native backend, ``graph.invalid`` and
    ``graph.signature`` from ONNX Runtime, when the model isn't what the manifest promises.
    """
    if backend == "native":
        from affectrt.backends.native import NativeFusion

        return NativeFusion(bundle)
    from affectrt.backends.onnx_runtime import OnnxFusion

    return OnnxFusion(bundle, threads=threads)
