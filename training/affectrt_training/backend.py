"""The backend ``torch``: a bundle's fusion in PyTorch, on a workstation's GPU with the Triton kernels.

Declared under ``affectrt.backends``. It only runs when it is named, and imports PyTorch when it does.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, NoReturn

from affectrt.backends.declared import Backend
from affectrt.errors import AffectError
from affectrt_training.models.registry import SYSTEMS

if TYPE_CHECKING:
    from affectrt.backends import Fusion
    from affectrt.bundle import Bundle
    from affectrt.manifest import Manifest


def check(bundle: Bundle) -> None:
    """Raise ``backend.unsupported`` for models that torch can't build again, ``extra.missing`` without it."""
    weights_member(bundle.manifest)
    if find_spec("torch") is None:
        raise AffectError(
            "extra.missing",
            "backend torch: PyTorch is not installed; install it with: pip install 'affectrt[train]'",
        )


def weights_member(manifest: Manifest) -> str:
    """The member with a model's weights. Raises ``backend.unsupported``."""
    if manifest.family not in SYSTEMS:
        _unsupported(manifest, f"knows the families {', '.join(SYSTEMS)}, not '{manifest.family}'")
    if manifest.config.get("causal"):
        _unsupported(manifest, "runs models over windows, not causal ones tick by tick")
    if manifest.fusion.weights is None:
        _unsupported(manifest, "reads the fusion's weights, which the bundle doesn't hold")
    return manifest.fusion.weights


def _load(bundle: Bundle, device: str, threads: int | None) -> Fusion:
    from affectrt_training.torch_fusion import load_fusion

    return load_fusion(bundle, device, threads)


def _unsupported(manifest: Manifest, reason: str) -> NoReturn:
    raise AffectError(
        "backend.unsupported",
        f"model {manifest.name}: the backend torch {reason}; the backend onnxruntime runs any bundle's graph",
    )


BACKEND = Backend(devices=("cpu", "cuda"), check=check, load=_load)
