"""From a data set to what a model can read: checked, with text rows or token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from affectrt.affect import EMOTIONS, MODALITIES, SENTIMENT_LIMIT, Modality
from affectrt.errors import AffectError
from affectrt_training.data.dataset import Dataset, Example
from affectrt_training.data.text_rows import tokens, with_text_rows
from affectrt_training.encoders.text import TextSettings
from affectrt_training.fit.batches import Examples

TextFrom = Literal["rows", "words", "none"]
"""Where a run's text rows come from: the data, the text encoder, or there is no text."""

NO_FEATURES = 1
"""Width of a modality that a data set doesn't have: its null slot stands for it all the time."""


def text_from(dataset: Dataset, settings: TextSettings) -> TextFrom:
    """Rows that the data bring count before words, unless the encoder is to be tuned: it needs the words."""
    examples = [example for part in dataset.splits.values() for example in part]
    rows = any("text" in example.rows for example in examples)
    words = any(example.words for example in examples)
    if settings.tuning != "frozen" and not words:
        raise AffectError(
            "data.no_words",
            f"{dataset.name}: text.tuning '{settings.tuning}' tunes an encoder of words, but the data have "
            f"none; set text.tuning=frozen",
        )
    if words and (settings.tuning != "frozen" or not rows):
        return "words"
    return "rows" if rows else "none"


def check_labels(dataset: Dataset, split: str) -> None:
    """Raises ``data.empty_split``, ``data.label`` and ``data.shape`` naming examples, ``data.no_split``."""
    examples = dataset.split(split)
    where = f"{dataset.name}, split '{split}'"
    if not examples:
        raise AffectError("data.empty_split", f"{where}: expected examples, got none; split the data anew")
    wrong = [e.id for e in examples if not _has_sound_labels(e)]
    if wrong:
        raise AffectError(
            "data.label",
            f"{where}: expected sentiments in [-{SENTIMENT_LIMIT:g}, {SENTIMENT_LIMIT:g}] and emotions 0 to "
            f"{len(EMOTIONS) - 1}, not so in {len(wrong)} examples ({_some(wrong)}); correct or drop them",
        )
    if all(e.sentiment is None and e.emotion is None for e in examples):
        raise AffectError("data.label", f"{where}: expected a sentiment or an emotion label, found none")
    check_rows(examples, dataset.dims, where)


def check_rows(examples: Sequence[Example], dims: Mapping[Modality, int], where: str) -> None:
    """Raises ``data.shape`` for rows that are not (T, dims), ``data.values`` for NaN and infinity in them."""
    for example in examples:
        for modality, rows in example.rows.items():
            width = dims.get(modality)
            if rows.ndim != 2 or rows.shape[1] != width:
                raise AffectError(
                    "data.shape",
                    f"{where}: {modality} of example '{example.id}': expected rows of {width} features, got "
                    f"shape {rows.shape}; all examples need the features that the model reads",
                )
            if not np.isfinite(rows).all():
                raise AffectError(
                    "data.values",
                    f"{where}: {modality} of example '{example.id}': expected finite features, got NaN or "
                    f"infinity; set them to 0 or drop the rows",
                )


def _has_sound_labels(example: Example) -> bool:
    sentiment, emotion = example.sentiment, example.emotion
    return (sentiment is None or -SENTIMENT_LIMIT <= sentiment <= SENTIMENT_LIMIT) and (
        emotion is None or 0 <= emotion < len(EMOTIONS)
    )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")


@dataclass(frozen=True)
class Reader:
    """How a run reads examples."""

    text_from: TextFrom
    settings: TextSettings
    dims: Mapping[Modality, int]
    """Of all three modalities, as the model was made for."""

    @property
    def tunes(self) -> bool:
        """Whether the text encoder is part of the network."""
        return self.text_from == "words" and self.settings.tuning != "frozen"

    def read(self, examples: Sequence[Example], cache: Path | None, progress: bool) -> Examples:
        """Batches of examples as the network takes them."""
        if self.text_from != "words":
            return Examples(examples, self.dims)
        if self.tunes:
            ids: list[Tensor] = [torch.from_numpy(tokens(example, self.settings)) for example in examples]
            plain = [replace(e, rows={m: r for m, r in e.rows.items() if m != "text"}) for e in examples]
            return Examples(plain, self.dims, ids)
        encoded = with_text_rows(Dataset("", {"": examples}, self.dims), self.settings, cache, progress)
        return Examples(encoded.split(""), self.dims)


def all_dims(dims: Mapping[Modality, int]) -> dict[Modality, int]:
    """Widths of all three modalities, where a data set may lack some."""
    return {modality: dims.get(modality, NO_FEATURES) for modality in MODALITIES}


def fingerprint(splits: Sequence[Sequence[Example]]) -> str:
    """Changes with the examples' ids, labels, words and features: a run is resumed on the same data only."""
    digest = hashlib.sha256()
    for examples in splits:
        for e in examples:
            digest.update(repr((e.id, e.sentiment, e.emotion, e.words)).encode())
            for modality in sorted(e.rows):
                digest.update(f"{modality} {e.rows[modality].shape}".encode())
                digest.update(np.ascontiguousarray(e.rows[modality]).data)
    return digest.hexdigest()
