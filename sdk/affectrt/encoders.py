"""A model's feature encoders: what turns words, sound and faces into the rows that fusion reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from affectrt.affect import Modality
from affectrt.backends import Graph
from affectrt.backends.choice import load_encoder
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence, check_dim
from affectrt.features.text import TextFeatures, Tokenizer
from affectrt.manifest import AudioSpec, TextSpec, VisionSpec
from affectrt.once import Once

if TYPE_CHECKING:
    from affectrt.bundle import Bundle
    from affectrt.features.audio import AudioFeatures
    from affectrt.features.causal_audio import CausalAudioFeatures
    from affectrt.features.log_mel import AudioConfig
    from affectrt.features.vision import VisionConfig, VisionFeatures

Spec = TypeVar("Spec", TextSpec, AudioSpec, VisionSpec)


class Encoders:
    """Shared by everyone, and what makes the per-person extractors. Safe to share between threads.

    A bundle has encoders for all modalities, some or none. Who pushes features of their own needs none of the
    libraries behind them. So each encoder whose libraries are missing is left out until it is asked for, and
    then raises ``extra.missing``. All others are loaded at once: a broken bundle shows when it is loaded
    rather than in front of the camera, and the first picture waits for nothing.
    """

    def __init__(self, bundle: Bundle, *, backend: str = "onnxruntime", threads: int | None = None) -> None:
        """Load what can be. ``backend`` runs the graphs if it can, else ONNX Runtime on the CPU does;
        ``threads`` per graph run, None for one per core.

        Raises ``graph.invalid`` and ``graph.signature`` when a graph isn't what the manifest promises,
        ``graph.threads``, ``tokenizer.invalid`` and, for a GPU, what
        :func:`~affectrt.backends.choice.load_fusion` raises.
        """
        self.manifest = bundle.manifest
        """Parameters of the extractors."""

        def graph(modality: Modality, *inputs: str) -> Graph:
            return load_encoder(bundle, modality, inputs, backend, threads)

        def text_features() -> TextFeatures:
            spec = self._spec("text", TextSpec)
            tokenizer = Tokenizer.from_json(bundle.read(spec.tokenizer), spec.max_tokens)
            states = graph("text", "input_ids", "attention_mask")
            return TextFeatures(tokenizer, states, spec.dim, spec.words_per_row)

        def encoder(modality: Modality, kind: type[Spec], *inputs: str) -> Graph:
            self._spec(modality, kind)
            return graph(modality, *inputs)

        self._text = Once(text_features)
        self._audio_graph = Once(lambda: encoder("audio", AudioSpec, "log_mel"))
        self._vision_graph = Once(lambda: encoder("vision", VisionSpec, "faces"))
        made: tuple[Callable[[], object], ...] = (self._text, self._audio_graph, self._vision_graph)
        for make in made:
            try:
                make()
            except AffectError as error:
                if error.code not in ("extra.missing", "model.no_extractor", "model.no_modality"):
                    raise

    def _spec(self, modality: Modality, kind: type[Spec]) -> Spec:
        spec = self.manifest.specs[modality]
        if not isinstance(spec, kind):
            raise self.manifest.no_extractor(modality)
        return spec

    def check_extractor(self, modality: Modality) -> None:
        """Raise ``model.no_extractor`` or ``model.no_modality`` unless the bundle can make such rows."""
        if not self.manifest.extracts(modality):
            raise self.manifest.no_extractor(modality)

    def check_rows(self, sequence: FeatureSequence) -> None:
        """Raise ``features.dim`` or ``model.no_modality`` unless the model takes these rows; none always."""
        if len(sequence) and self.manifest.specs[sequence.modality] is None:
            raise self.manifest.no_extractor(sequence.modality)
        check_dim(sequence, self.manifest.dim(sequence.modality))

    @property
    def frame_rate_hz(self) -> float | None:
        """Pictures that the model looks at per second; None: it looks at none."""
        return self.manifest.vision.rate_hz if isinstance(self.manifest.vision, VisionSpec) else None

    @property
    def text(self) -> TextFeatures:
        """Words → rows. Raises ``extra.missing``; ``model.no_extractor`` and ``model.no_modality`` where the
        bundle has no encoder, as all below."""
        return self._text()

    @property
    def audio_graph(self) -> Graph:
        """Log-mel → states. Raises ``extra.missing``."""
        return self._audio_graph()

    @property
    def vision_graph(self) -> Graph:
        """Face crops → states. Raises ``extra.missing``."""
        return self._vision_graph()

    def dim(self, modality: Modality) -> int:
        """Features per row of a modality."""
        return self.manifest.dim(modality)

    def new_audio(self, keep_s: float) -> AudioFeatures:
        """An extractor for one person that remembers ``keep_s``. Raises ``extra.missing``."""
        from affectrt.features.audio import AudioFeatures

        config = self.audio_config()
        return AudioFeatures(config, self.audio_graph, self.dim("audio"), keep_s=keep_s)

    def new_causal_audio(self, context_rows: int) -> CausalAudioFeatures:
        """The same for incremental streams; ``context_rows`` as in the manifest. Raises ``extra.missing``."""
        from affectrt.features.causal_audio import CausalAudioFeatures

        return CausalAudioFeatures(self.audio_config(), self.audio_graph, self.dim("audio"), context_rows)

    def audio_config(self) -> AudioConfig:
        """How sound becomes log-mel rows."""
        from affectrt.features.log_mel import AudioConfig

        spec = self._spec("audio", AudioSpec)
        return AudioConfig(
            sample_rate_hz=spec.sample_rate_hz,
            frame_length_s=spec.frame_length_s,
            hop_s=spec.hop_s,
            n_mels=spec.n_mels,
            low_hz=spec.low_hz,
            high_hz=spec.high_hz,
            rows_per_state=spec.rows_per_state,
        )

    def new_vision(self, keep_s: float) -> VisionFeatures:
        """An extractor for one person that remembers ``keep_s``. Raises ``extra.missing``."""
        from affectrt.features.vision import VisionFeatures

        return VisionFeatures(self.vision_config(), self.vision_graph, self.dim("vision"), keep_s=keep_s)

    def vision_config(self) -> VisionConfig:
        """How faces are cropped."""
        from affectrt.features.vision import VisionConfig

        spec = self._spec("vision", VisionSpec)
        return VisionConfig(crop_px=spec.crop_px, rate_hz=spec.rate_hz, face_scale=spec.face_scale)
