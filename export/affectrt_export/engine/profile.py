"""The shapes that engines are built for: the smallest, the usual and the largest of every input.

TensorRT is fastest at the usual shape and takes none beyond the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

from affectrt.affect import MODALITIES
from affectrt.clip import LONGEST_WINDOW_S
from affectrt.engines import Profile, Shape
from affectrt.errors import AffectError
from affectrt.manifest import Manifest

SUBSETS = 8
"""Rows of a fusion batch, at most: every subset of three modalities."""
LEAVE_ONE_OUT = 4
"""Rows of the usual fusion batch: everything that is present, then without each modality."""


@dataclass(frozen=True)
class Limits:
    """The largest inputs that engines take."""

    text: int
    """Tokens of an utterance, [CLS] and [SEP] included."""
    audio: int
    """Log-mel rows of a window."""
    vision: int
    """Faces of a window."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        *,
        text: int | None = None,
        audio_s: float | None = None,
        vision: int | None = None,
    ) -> Limits:
        """The bundle's own limits, but for those that are given. Raises ``engine.limits``."""
        most = manifest.text.max_tokens
        if text is not None and not 3 <= text <= most:
            raise AffectError(
                "engine.limits",
                f"--max-text: expected 3 to {most} tokens, the most that model {manifest.name} reads, got "
                f"{text}",
            )
        spec = manifest.audio
        seconds = LONGEST_WINDOW_S if audio_s is None else audio_s
        if not spec.rows_per_state * spec.hop_s <= seconds <= 60:
            raise AffectError(
                "engine.limits",
                f"--max-audio: expected {spec.rows_per_state * spec.hop_s:g} to 60 seconds, got {seconds:g}",
            )
        # One more each: times are floats, and a window may hold both of its ends.
        faces = round(LONGEST_WINDOW_S * manifest.vision.rate_hz) + 1 if vision is None else vision
        if not 1 <= faces <= 4096:
            raise AffectError("engine.limits", f"--max-vision: expected 1 to 4096 faces, got {faces}")
        return cls(most if text is None else text, round(seconds / spec.hop_s) + 1, faces)


def profiles(manifest: Manifest, limits: Limits) -> dict[str, Profile]:
    """Graph → its inputs' shapes. The usual ones are those of a live window of the bundle's length."""
    audio, vision = manifest.audio, manifest.vision
    usual_rows = {
        "text": min(24, limits.text),
        "audio": min(round(manifest.window_s / audio.hop_s), limits.audio),
        "vision": min(round(manifest.window_s * vision.rate_hz), limits.vision),
    }
    tokens = ((1, 1), (1, usual_rows["text"]), (1, limits.text))
    mels, side = audio.n_mels, vision.crop_px
    graphs: dict[str, Profile] = {
        "text": {"input_ids": tokens, "attention_mask": tokens},
        "audio": {
            "log_mel": ((1, 1, mels), (1, usual_rows["audio"], mels), (1, limits.audio, mels)),
        },
        # Live, one face comes at a time.
        "vision": {"faces": ((1, side, side), (1, side, side), (limits.vision, side, side))},
    }
    per_state = audio.rows_per_state
    usual = {**usual_rows, "audio": -(-usual_rows["audio"] // per_state)}
    largest = {"text": limits.text, "audio": -(-limits.audio // per_state), "vision": limits.vision}
    fusion: dict[str, tuple[Shape, Shape, Shape]] = {}
    for m in MODALITIES:
        dim = manifest.dim(m)
        fusion[m] = ((1, 1, dim), (LEAVE_ONE_OUT, max(usual[m], 1), dim), (SUBSETS, largest[m], dim))
        fusion[f"{m}_lengths"] = ((1,), (LEAVE_ONE_OUT,), (SUBSETS,))
    graphs["fusion"] = fusion
    return graphs
