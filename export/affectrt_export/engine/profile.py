"""The shapes that engines are built for: the smallest, the usual and the largest of every input.

TensorRT is fastest at the usual shape and takes none beyond the largest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from affectrt.affect import MODALITIES, Modality
from affectrt.clip import LONGEST_WINDOW_S
from affectrt.engines import Profile, Shape
from affectrt.errors import AffectError
from affectrt.features.passages import row_count
from affectrt.features.text import WORDS_PER_SECOND
from affectrt.manifest import AudioSpec, Manifest, RowsSpec, TextSpec, VisionSpec

SUBSETS = 8
"""Rows of a fusion batch, at most: every subset of three modalities."""
LEAVE_ONE_OUT = 4
"""Rows of the usual fusion batch: everything that is present, then without each modality."""
USUAL_TOKENS = 24
"""An utterance of some seventeen words."""
ROWS, USUAL_ROWS = 500, 50
"""Rows of what nothing else bounds: the longest of the field's unaligned data sets, and its aligned ones."""
MOST = 4096
"""Rows, words or faces that may be asked for: attention over more fills the memory of any GPU."""
LONGEST_AUDIO_S = 60.0


@dataclass(frozen=True)
class _Reach:
    """How much of one modality the engines take."""

    encoder: Profile
    """Inputs of its encoder; none where the application makes the rows."""
    usual: int
    """Rows in fusion."""
    largest: int
    """Rows in fusion."""


def profiles(manifest: Manifest, most: Mapping[Modality, float | None]) -> Mapping[str, Profile]:
    """Graph → its inputs' shapes. The usual ones are those of a live window of the bundle's length.

    ``most``: the largest input of each modality, where it isn't the default. That of text is in tokens, or in
    words where rows are made of words; of audio in seconds; of vision in faces; and in rows where the
    application makes them. Raises ``engine.limits``.
    """
    graphs: dict[str, Profile] = {}
    fusion: dict[str, tuple[Shape, Shape, Shape]] = {}
    for m in MODALITIES:
        reach, dim = _reach(manifest, m, most.get(m)), manifest.dim(m)
        if reach.encoder:
            graphs[m] = reach.encoder
        fusion[m] = (1, 1, dim), (LEAVE_ONE_OUT, reach.usual, dim), (SUBSETS, reach.largest, dim)
        fusion[f"{m}_lengths"] = (1,), (LEAVE_ONE_OUT,), (SUBSETS,)
    return {**graphs, "fusion": fusion}


def _reach(manifest: Manifest, modality: Modality, asked: float | None) -> _Reach:
    spec, window_s = manifest.specs[modality], manifest.window_s
    if isinstance(spec, TextSpec):
        return _text(spec, window_s, asked)
    if isinstance(spec, AudioSpec):
        return _audio(spec, window_s, asked)
    if isinstance(spec, VisionSpec):
        return _vision(spec, window_s, asked)
    if isinstance(spec, RowsSpec):
        largest = _whole(modality, asked, ROWS, 1, MOST, "rows")
        return _Reach({}, min(USUAL_ROWS, largest), largest)
    if asked is not None:
        raise AffectError(
            "engine.limits",
            f"--max-{modality}: model {manifest.name} knows no {modality}, got {asked:g}; leave it out",
        )
    return _Reach({}, 1, 1)  # the row of padding that stands for what is absent


def _text(spec: TextSpec, window_s: float, asked: float | None) -> _Reach:
    per_row = spec.words_per_row
    if per_row:
        # The encoder reads long texts in passages of all the tokens that it takes: words are the limit.
        words = _whole("text", asked, ROWS * per_row, 1, MOST, "words")
        tokens, largest = spec.max_tokens, row_count(words, per_row)
        usual = min(row_count(round(window_s * WORDS_PER_SECOND), per_row), largest)
    else:
        tokens = largest = _whole("text", asked, spec.max_tokens, 3, spec.max_tokens, "tokens")
        usual = min(USUAL_TOKENS, largest)
    shapes = (1, 1), (1, min(USUAL_TOKENS, tokens)), (1, tokens)
    return _Reach({"input_ids": shapes, "attention_mask": shapes}, max(usual, 1), largest)


def _audio(spec: AudioSpec, window_s: float, asked: float | None) -> _Reach:
    seconds = min(max(LONGEST_WINDOW_S, window_s), LONGEST_AUDIO_S) if asked is None else asked
    shortest = spec.rows_per_state * spec.hop_s
    if not shortest <= seconds <= LONGEST_AUDIO_S:
        _refuse("audio", shortest, LONGEST_AUDIO_S, "seconds", seconds)
    # One more: times are floats, and a window may hold both of its ends.
    largest = round(seconds / spec.hop_s) + 1
    usual = min(max(round(window_s / spec.hop_s), 1), largest)
    mels = spec.n_mels
    states = [-(-rows // spec.rows_per_state) for rows in (usual, largest)]
    return _Reach({"log_mel": ((1, 1, mels), (1, usual, mels), (1, largest, mels))}, *states)


def _vision(spec: VisionSpec, window_s: float, asked: float | None) -> _Reach:
    default = round(max(LONGEST_WINDOW_S, window_s) * spec.rate_hz) + 1  # one more: as above
    largest = _whole("vision", asked, default, 1, MOST, "faces")
    usual = min(max(round(window_s * spec.rate_hz), 1), largest)
    side = spec.crop_px
    # Live, one face comes at a time.
    return _Reach({"faces": ((1, side, side), (1, side, side), (largest, side, side))}, usual, largest)


def _whole(modality: Modality, asked: float | None, default: int, low: int, high: int, unit: str) -> int:
    if asked is None:
        return min(default, high)
    if not (low <= asked <= high and asked == int(asked)):
        _refuse(modality, low, high, unit, asked)
    return int(asked)


def _refuse(modality: Modality, low: float, high: float, unit: str, got: float) -> NoReturn:
    raise AffectError("engine.limits", f"--max-{modality}: expected {low:g} to {high:g} {unit}, got {got:g}")
