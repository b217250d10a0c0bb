"""Runs GHRNN-CMA with the C++ kernels: no runtime, no graph, only the weights.

Source of the model: ghrnn_cma §3.2, equations 9–12. It computes what the bundle's graph does, up to
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt.backends import BoolArray, FloatArray
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence, check_dim
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
    if is_causal(manifest):
        _unsupported(manifest, "runs causal models tick by tick, not over windows")
    extension()


def is_causal(manifest: Manifest) -> bool:
    """Whether a ``ghrnn-cma`` answers at every tick from the past alone. Raises ``bundle.manifest``."""
    return bool(_setting(manifest, "causal", bool, default=False))


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
        member = check_model(manifest)
        self._manifest = manifest
        self._causal = is_causal(manifest)
        where = f"bundle {manifest.name}: {member}"
        weights = read_safetensors(bundle.read(member), where)
        self._no_word = weights.pop(NO_WORD, None)
        if (self._no_word is not None) != self._causal:
            told = f"'{NO_WORD}' {'among' if self._causal else 'not among'} the weights"
            raise AffectError(
                "bundle.weights",
                f"{where}: expected {told} when causal is {self._causal}; export the model again",
            )
        heads = _setting(manifest, "heads", int)
        try:
            self._model = extension().GhrnnCma(weights, heads=heads)
            if self._causal:
                self._model.stream(self._no_word, 1.0)  # refuses what is wrong with no_word
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]  # names in it are the file's
            raise AffectError("bundle.weights", f"{where}: {reason}; export the model again") from error
        expected = ([manifest.dim(m) for m in MODALITIES], len(EMOTIONS))
        got = (self._model.dims, len(weights["emotion.weight"]))
        if expected != got:
            raise AffectError(
                "bundle.weights",
                f"{where}: expected {expected[0]} features and {expected[1]} emotions, got {got[0]} and "
                f"{got[1]}; export the model again",
            )
        self._absent = {m: np.zeros((0, manifest.dim(m)), np.float32) for m in MODALITIES}

    def __call__(
        self, features: Mapping[Modality, FloatArray], subsets: BoolArray
    ) -> tuple[FloatArray, FloatArray]:
        """As :class:`affectrt.backends.Fusion`. Raises ``features.shape``, ``backend.unsupported``."""
        if self._causal:
            _unsupported(self._manifest, "runs causal models tick by tick, not over windows")
        given = {m: values for m, values in features.items() if len(values)}
        rows = [np.ascontiguousarray(given.get(m, self._absent[m])) for m in MODALITIES]
        try:
            sentiment, logits = self._model(*rows, subsets)
        except ValueError as error:
            raise AffectError("features.shape", f"model {self._manifest.name}: {error}") from error
        return sentiment, logits

    def incremental(self, window_s: float | None = None) -> IncrementalFusion:
        """The state of one person, for causal models, before the first tick.

        ``window_s``: how far back a tick attends; None: as far as in training. Raises ``backend.unsupported``
        when the model isn't causal, ``stream.config`` and ``bundle.manifest``.
        """
        if not self._causal:
            _unsupported(self._manifest, "steps through causal models only; run this one over windows")
        if window_s is None:
            window_s = _setting(self._manifest, "window_s", float)
        try:
            state = self._model.stream(self._no_word, window_s)
        except ValueError as error:
            raise AffectError("stream.config", f"model {self._manifest.name}: {error}") from error
        return IncrementalFusion(self._manifest, state.step)


class IncrementalFusion:
    """One person's stream through a causal model: one result a tick, at a cost that doesn't grow with time.

    It remembers the keys and values of the window's frames and the recurrences' states. Threads take turns.
    """

    def __init__(self, manifest: Manifest, step: Callable[..., tuple[float, FloatArray]]) -> None:
        """Use :meth:`NativeFusion.incremental`."""
        self._manifest = manifest
        self._step = step

    def step(
        self,
        time_s: float,
        text: FloatArray | None = None,
        audio: FeatureSequence | None = None,
        vision: FeatureSequence | None = None,
    ) -> tuple[float, FloatArray]:
        """The result at ``time_s``, a tick after all before: sentiment and emotion logits (7,).

        ``text`` (D,): the mean of the words that ended since the last tick, None without one. ``audio`` and
        ``vision``: the rows since the last tick, none later than this one.

        Raises ``features.modality``, ``features.dim`` and, for whatever else doesn't fit, ``stream.input``. A
        refused step changes nothing.
        """
        frames: list[Any] = []
        for modality, sequence in (("audio", audio), ("vision", vision)):
            if sequence is None or not len(sequence):
                frames += [None, None]
                continue
            if sequence.modality != modality:
                raise AffectError(
                    "features.modality", f"step: expected {modality} rows, got {sequence.modality} rows"
                )
            check_dim(sequence, self._manifest.dim(sequence.modality))
            frames += [
                np.ascontiguousarray(sequence.values),
                np.ascontiguousarray(sequence.times_s, np.float64),
            ]
        try:
            sentiment, logits = self._step(time_s, text, *frames)
        except ValueError as error:
            raise AffectError("stream.input", f"model {self._manifest.name}: {error}") from error
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


def _setting(manifest: Manifest, name: str, kind: type, *, default: object = None) -> Any:
    """A setting of the model's, which the manifest keeps unchecked. Raises ``bundle.manifest``."""
    value: Any = manifest.config.get(name, default)
    if kind is float and type(value) is int and abs(value) < EXACT:
        value = float(value)
    fits = type(value) is kind
    if fits and kind is int:
        fits = 1 <= value < EXACT
    if not fits:
        wanted = "a whole number from 1" if kind is int else kind.__name__
        raise AffectError(
            "bundle.manifest",
            f"bundle {manifest.name}: config.{name}: expected {wanted}, got {value!r}; export the model "
            f"again",
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
