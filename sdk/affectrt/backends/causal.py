"""Runs causal GHRNN-CMAs with the C++ kernels, tick by tick: what incremental streams do.

Source of the model: ghrnn_cma §3.2, equations 9–12, with every stage that sees the future replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from affectrt.backends import FloatArray
from affectrt.backends.native import NO_WORD, pack, read_weights, setting, weights_of
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence, check_dim

if TYPE_CHECKING:
    from affectrt.bundle import Bundle
    from affectrt.manifest import Manifest


class CausalFusion:
    """The causal model of a bundle. Immutable; share it between threads and people."""

    def __init__(self, bundle: Bundle) -> None:
        """Read and pack the weights.

        Raises ``model.not_causal`` when the bundle has no such model, ``bundle.weights`` when its weights
        aren't one's, ``bundle.manifest`` for settings that make no sense, and ``backend.missing``.
        """
        manifest = bundle.manifest
        if manifest.causal is None:
            raise AffectError(
                "model.not_causal",
                f"model {manifest.name}: knows windows only, no incremental streams; leave mode out, or take "
                f"a bundle whose manifest has 'causal'",
            )
        self._manifest = manifest
        self.spec = manifest.causal
        """What the manifest says of it."""
        config, member = self.spec.config, self.spec.weights
        self.window_s: float = setting(manifest, config, "causal.config.window_s", float)
        """How far back a tick attends, in seconds. Its recurrences remember more."""
        heads: int = setting(manifest, config, "causal.config.heads", int)
        weights = read_weights(bundle, member)
        no_word = weights.pop(NO_WORD, None)
        if no_word is None:
            raise AffectError(
                "bundle.weights",
                f"bundle {manifest.name}: {member}: expected '{NO_WORD}' among the weights; export the model "
                f"again",
            )
        self._no_word = no_word
        self._model = pack(bundle, weights, heads, member)
        with weights_of(manifest, member):
            self._model.stream(no_word, 1.0)
        self.start()

    def start(self) -> CausalState:
        """One person before the first tick. Raises ``bundle.manifest``."""
        try:
            state = self._model.stream(self._no_word, self.window_s)
        except ValueError as error:
            raise AffectError(
                "bundle.manifest", f"bundle {self._manifest.name}: causal.config: {error}"
            ) from error
        return CausalState(self._manifest, state.step)


class CausalState:
    """One person's stream through a causal model: one answer a tick, at a cost that doesn't grow with time.

    It remembers the keys and values of the window's rows and the recurrences' states. Threads take turns.
    """

    def __init__(self, manifest: Manifest, step: Callable[..., tuple[float, FloatArray]]) -> None:
        """Use :meth:`CausalFusion.start`."""
        self._manifest = manifest
        self._step = step

    def step(
        self,
        time_s: float,
        text: FloatArray | None = None,
        audio: FeatureSequence | None = None,
        vision: FeatureSequence | None = None,
    ) -> tuple[float, FloatArray]:
        """The answer at ``time_s``, a tick after all before: sentiment and emotion logits (7,).

        ``text`` (D,): the mean of the words that ended since the last tick, None without one. ``audio`` and
        ``vision``: the rows since the last tick, none later than this one.

        Raises ``features.modality``, ``features.dim`` and, for whatever else doesn't fit, ``stream.input``. A
        refused step changes nothing.
        """
        rows: list[Any] = []
        for modality, sequence in (("audio", audio), ("vision", vision)):
            if sequence is None or not len(sequence):
                rows += [None, None]
                continue
            if sequence.modality != modality:
                raise AffectError(
                    "features.modality", f"step: expected {modality} rows, got {sequence.modality} rows"
                )
            check_dim(sequence, self._manifest.dim(sequence.modality))
            rows += [
                np.ascontiguousarray(sequence.values),
                np.ascontiguousarray(sequence.times_s, np.float64),
            ]
        try:
            sentiment, logits = self._step(time_s, text, *rows)
        except ValueError as error:
            raise AffectError("stream.input", f"model {self._manifest.name}: {error}") from error
        return sentiment, logits
