"""Runs GHRNN-CMA with the C++ kernels: no runtime, no graph, only the weights.

Source of the model: ghrnn_cma §3.2, equations 9–12. It computes what the bundle's graph does, up to
rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt.backends import BoolArray, FloatArray
from affectrt.errors import AffectError
from affectrt.schema import EXACT
from affectrt.weights import read_safetensors

if TYPE_CHECKING:
    from types import ModuleType

    from affectrt.bundle import Bundle
    from affectrt.manifest import Manifest

FAMILY = "ghrnn-cma"
"""The one family that the kernels know."""

STRUCTURE: Mapping[str, tuple[object, ...]] = {
    "pairs": (["at", "vt"], ["vt", "at"]),
    "attention": (True,),
    "joint": (True,),
    "cell": ("ghrnn",),
    "causal": (False,),
}
"""Settings that change what is computed, with the values that the kernels know; the first where absent."""

NO_WORD = "no_word"
"""A weight of causal models, (text.dim,): the text row of a tick in which no word ended."""


def extension() -> ModuleType:
    """``affectrt_kernels._native``. Raises ``backend.missing`` when it isn't there or of another version."""
    try:
        from affectrt_kernels import _native
    except ImportError as error:
        _missing(str(error))
    if not hasattr(_native, "GhrnnCma"):
        _missing("it is of another version than affectrt")
    return _native


def check_native(manifest: Manifest) -> None:
    """Raise unless the kernels can run this fusion model over windows.

    ``backend.unsupported`` for other models, ``backend.missing`` without the extension, ``bundle.manifest``
    for settings that make no sense.
    """
    check_model(manifest)
    extension()


class NativeFusion:
    """The fusion model of a ``ghrnn-cma`` bundle. Immutable; share it between threads and people.

    It computes on the thread that calls it, without the interpreter's lock.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Read and pack the weights.

        Raises ``bundle.weights`` when they aren't such a model's, ``backend.unsupported`` for other models,
        ``backend.missing`` and ``bundle.manifest``.
        """
        manifest = bundle.manifest
        self._manifest = manifest
        member = check_model(manifest)
        heads = setting(manifest, manifest.config, "config.heads", int)
        weights = read_weights(bundle, member)
        if NO_WORD in weights:
            raise AffectError(
                "bundle.weights",
                f"bundle {manifest.name}: {member}: expected '{NO_WORD}' not among the weights, they are a "
                f"causal model's; export the model again",
            )
        self._model = pack(bundle, weights, heads, member)
        self._absent = {m: np.zeros((0, manifest.dim(m)), np.float32) for m in MODALITIES}

    def __call__(
        self, features: Mapping[Modality, FloatArray], subsets: BoolArray
    ) -> tuple[FloatArray, FloatArray]:
        """As :class:`affectrt.backends.Fusion`. Raises ``features.shape``."""
        given = {m: values for m, values in features.items() if len(values)}
        rows = [np.ascontiguousarray(given.get(m, self._absent[m])) for m in MODALITIES]
        try:
            sentiment, logits = self._model(*rows, subsets)
        except ValueError as error:
            raise AffectError("features.shape", f"model {self._manifest.name}: {error}") from error
        return sentiment, logits


def check_model(manifest: Manifest) -> str:
    """The member with a model's weights. Raises ``backend.unsupported`` when the kernels don't know it."""
    if manifest.family != FAMILY:
        _unsupported(manifest, f"knows the family '{FAMILY}' only, not '{manifest.family}'")
    for name, known in STRUCTURE.items():
        value = manifest.config.get(name, known[0])
        if value not in known:
            _unsupported(manifest, f"knows {name} = {known[0]!r} only, not {value!r}")
    if manifest.fusion.weights is None:
        _unsupported(manifest, "reads the fusion's weights, which the bundle doesn't hold")
    return manifest.fusion.weights


def read_weights(bundle: Bundle, member: str) -> dict[str, FloatArray]:
    """The tensors of a member. Raises ``bundle.weights``."""
    return dict(read_safetensors(bundle.read(member), f"bundle {bundle.manifest.name}: {member}"))


def pack(bundle: Bundle, weights: Mapping[str, FloatArray], heads: int, member: str) -> Any:
    """The kernels' model of these weights. Raises ``bundle.weights`` when they aren't such a model's."""
    manifest = bundle.manifest
    with weights_of(manifest, member):
        model = extension().GhrnnCma(weights, heads=heads)
    expected = ([manifest.dim(m) for m in MODALITIES], len(EMOTIONS))
    got = (model.dims, len(weights["emotion.weight"]))
    if expected != got:
        raise AffectError(
            "bundle.weights",
            f"bundle {manifest.name}: {member}: expected {expected[0]} features and {expected[1]} emotions, "
            f"got {got[0]} and {got[1]}; export the model again",
        )
    return model


@contextmanager
def weights_of(manifest: Manifest, member: str) -> Iterator[None]:
    """What the kernels say of a member's tensors is a fault of the bundle's."""
    try:
        yield
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]  # names in it are the file's
        raise AffectError(
            "bundle.weights", f"bundle {manifest.name}: {member}: {reason}; export the model again"
        ) from error


def setting(manifest: Manifest, config: Mapping[str, Any], name: str, kind: type) -> Any:
    """A setting of a model's, which the manifest keeps unchecked. Raises ``bundle.manifest``.

    ``name``: its path in the manifest; the last part is its name in ``config``.
    """
    value: Any = config.get(name.rpartition(".")[2])
    if kind is float and type(value) is int and abs(value) < EXACT:
        value = float(value)
    fits = type(value) is kind
    if fits and kind is int:
        fits = 1 <= value < EXACT
    if not fits:
        wanted = "a whole number from 1" if kind is int else kind.__name__
        raise AffectError(
            "bundle.manifest",
            f"bundle {manifest.name}: {name}: expected {wanted}, got {value!r}; export the model again",
        )
    return value


def _missing(reason: str) -> NoReturn:
    raise AffectError(
        "backend.missing",
        f"backend native: the C++ extension affectrt_kernels._native can't be used ({reason}); install "
        f"affectrt again (from source it takes a C++17 compiler) or use the backend onnxruntime",
    )


def _unsupported(manifest: Manifest, reason: str) -> NoReturn:
    raise AffectError(
        "backend.unsupported",
        f"model {manifest.name}: the backend native {reason}; the backend onnxruntime runs any bundle's "
        f"graph",
    )
