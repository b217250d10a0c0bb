"""A loaded model: features in, :class:`~affectrt.affect.Affect` out. Immutable; share it between threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from math import ceil, inf
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from affectrt.affect import EMOTIONS, MODALITIES, Affect, Modality
from affectrt.backends import BoolArray
from affectrt.backends.causal import CausalFusion
from affectrt.backends.choice import choose_backend, load_fusion
from affectrt.bundle import Bundle
from affectrt.encoders import Encoders
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Word
from affectrt.manifest import Manifest
from affectrt.once import Once
from affectrt.timeline import Sequences

if TYPE_CHECKING:
    from affectrt.stream import Stream
    from affectrt.streaming.mode import StreamMode

PathLike = str | os.PathLike[str]
Sound = tuple[npt.ArrayLike, int]
"""Samples and their rate in Hz."""


def _leave_one_out(present: tuple[Modality, ...]) -> BoolArray:
    """(1 + n, 3): all that are present, then without the first of them, without the second …"""
    rows = [present, *(tuple(m for m in present if m != left) for left in present)]
    return np.array([[m in row for m in MODALITIES] for row in rows])


_SUBSETS = {present: _leave_one_out(present) for n in range(4) for present in combinations(MODALITIES, n)}

DEFAULT_HOP_S = 1.0
"""Distance of live results: people read a changing mood, not a flickering one."""


def load(
    path: PathLike, *, backend: str | None = None, device: str = "auto", threads: int | None = None
) -> Model:
    """Open and verify a bundle and make its model ready to run.

    ``device``: ``"cpu"``, ``"cuda"`` or ``"auto"``, which takes the GPU once ``affectrt build-engine`` has
    built its engines here and they start; :attr:`Model.backend` and :attr:`Model.backend_reason` tell. Who
    asks for a GPU gets it or an error with the reason. ``backend`` names one of
    :func:`affectrt.backends.choice.known_backends` instead of the first of its device that can; ``torch``,
    which comes with the extra ``train``, only runs when it is named. ``threads`` per graph run, None for one
    per core; native uses one.

    The encoders of text, sound and faces take the extras ``cpu`` and ``media``. Those that can be are loaded
    here, so that a broken bundle fails at once and the first result waits for nothing; the others raise
    ``extra.missing`` when they are used. With numpy alone, ``predict(features=...)`` works on native.

    Raises as :meth:`Bundle.open`; ``backend.unknown``, ``backend.unsupported``, ``backend.missing``,
    ``backend.unavailable``, ``backend.device``, ``extra.missing``, ``engine.missing``, ``engine.invalid``,
    ``gpu.missing`` and ``gpu.failed`` when the backend can't run here; ``graph.invalid``,
    ``graph.signature``, ``tokenizer.invalid``, ``bundle.weights`` and ``bundle.manifest`` when a part
    isn't what the manifest promises; ``graph.threads``.
    """
    return Model(Bundle.open(path), backend=backend, device=device, threads=threads)


class Model:
    """A model and its encoders. Holds no state of any person, so one object serves any number of streams."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str | None = None,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        """Use :func:`load`."""
        self._bundle = bundle

        def start(backend: str) -> None:
            self._fusion = load_fusion(bundle, backend, threads, device)
            self._encoders = Encoders(bundle, backend=backend, threads=threads)

        self._causal = Once(lambda: CausalFusion(bundle))
        if bundle.manifest.causal is not None:
            try:
                self._causal()
            except AffectError as error:
                if error.code != "backend.missing":  # who wants windows alone needs no kernels
                    raise
        self._choice = choose_backend(bundle, backend, device, start)

    def __repr__(self) -> str:
        return f"<affectrt.Model {self.manifest.name}: {self.manifest.family}>"

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself: extractors, calibration, metrics, licence, model card."""
        return self._bundle.manifest

    @property
    def bundle(self) -> Bundle:
        """The verified bundle that the model came from."""
        return self._bundle

    @property
    def backend(self) -> str:
        """What runs the model, one of :func:`affectrt.backends.choice.known_backends`."""
        return self._choice.backend

    @property
    def backend_reason(self) -> str:
        """Why that one, and what stands in the way of those that would be wanted more; for people."""
        return self._choice.reason

    @property
    def causal(self) -> CausalFusion:
        """What incremental streams run. Raises ``model.not_causal``, ``backend.missing``."""
        return self._causal()

    @property
    def encoders(self) -> Encoders:
        """The feature encoders, for those who build their own pipeline."""
        return self._encoders

    def stream(
        self,
        window_s: float | None = None,
        hop_s: float = DEFAULT_HOP_S,
        *,
        mode: StreamMode = "window",
        on_result: Callable[[Affect], object] | None = None,
    ) -> Stream:
        """A live stream of one person: a result every ``hop_s``.

        ``mode`` ``"window"``: computed anew from the last ``window_s`` seconds, by default what the model was
        trained for. ``"incremental"``: by the bundle's causal model, which carries its state along, so that
        results cost little however often they come; ``window_s`` is its own. ``on_result`` is called with
        each result, in the stream's own thread, instead of keeping it to be read.

        Raises ``stream.config`` when a length is not a number above 0 or doesn't go with the mode, and as
        :attr:`causal`.
        """
        from affectrt.stream import Stream

        return Stream(self, window_s, hop_s, mode=mode, on_result=on_result)

    def predict(
        self,
        *,
        video: PathLike | None = None,
        audio: PathLike | Sound | None = None,
        image: PathLike | npt.NDArray[np.uint8] | None = None,
        text: str | Sequence[Word] | None = None,
        features: Mapping[Modality, FeatureSequence] | None = None,
    ) -> Affect:
        """One result for a whole clip, from whatever of it there is.

        ``video`` gives sound and faces unless ``audio`` replaces its sound; ``image`` is a still instead of a
        video, BGR or grey; ``text`` without times spreads over the clip. ``features`` go straight to fusion.
        Up to 20 s of media are one window, more are the mean over windows of equal length; features and text
        without media are one window as long as the text encoder takes in all words. Silence, no face and no
        words are absent modalities, not errors.

        Raises ``predict.no_input`` when nothing is given, ``predict.conflict`` when two inputs claim one
        modality, ``model.no_extractor`` for an input that the bundle can't make features of,
        ``model.no_modality`` for one that the model never had, and whatever reading the media raises.
        """
        from affectrt.clip import read_clip

        captured_at = perf_counter()
        clip = read_clip(self._encoders, video=video, audio=audio, image=image, text=text, features=features)
        count = max(1, ceil(clip.duration_s / clip.longest_window_s))
        edges = [clip.duration_s * k / count for k in range(count + 1)]
        edges[0] = -inf  # what is stamped 0.0 belongs to the first window
        windows = [self.fuse(clip.window(start, end), end, captured_at) for start, end in pairwise(edges)]
        return _mean(windows)

    def fuse(self, sequences: Sequences, time_s: float, captured_at: float) -> Affect:
        """Features of one window → the result at ``time_s``.

        Modalities that are left out or have no rows are absent. ``captured_at`` is when the newest input
        arrived, as :func:`time.perf_counter` tells it. Raises ``features.dim`` for rows of another width,
        ``model.no_modality`` for rows of a modality that the model never had and ``model.not_finite`` when
        the graph yields NaN.

        One call computes all: what everything present says, and what is left without each of them.
        """
        present = tuple(m for m in MODALITIES if m in sequences and len(sequences[m]))
        for modality in present:
            self._encoders.check_rows(sequences[modality])
        features = {m: sequences[m].values for m in present}
        sentiments, logits = self._fusion(features, _SUBSETS[present])
        return self.manifest.calibration.affect(sentiments.tolist(), logits[0], present, time_s, captured_at)


def _mean(windows: Sequence[Affect]) -> Affect:
    """One result for consecutive windows; those in which nothing was sensed have no say, unless all are."""
    last = windows[-1]
    if len(windows) == 1:
        return last
    told = [affect for affect in windows if affect.present] or list(windows)
    share = 1.0 / len(told)
    present = frozenset[Modality]().union(*(affect.present for affect in told))
    return Affect(
        time_s=last.time_s,
        sentiment=share * sum(affect.sentiment for affect in told),
        interval=(
            share * sum(affect.interval[0] for affect in told),
            share * sum(affect.interval[1] for affect in told),
        ),
        emotions={name: share * sum(affect.emotions[name] for affect in told) for name in EMOTIONS},
        contributions={
            m: share * sum(affect.contributions.get(m, 0.0) for affect in told)
            for m in MODALITIES
            if m in present
        },
        present=present,
        latency_ms=last.latency_ms,
    )
