"""From a source's arrays to examples: cleaning, padding, shapes and labels, shared by all readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from affectrt.affect import MODALITIES, Modality
from affectrt.errors import AffectError
from affectrt_training.data.cleaning import cleared_notes, finite_rows, groups_of, span, unique_ids
from affectrt_training.data.dataset import Dataset, Example, FloatMatrix

Array = npt.NDArray[Any]

SPLIT_NAMES = {"training": "train", "val": "valid", "dev": "valid", "validation": "valid", "testing": "test"}
"""Other spellings of the splits → ours."""


def split_name(name: str) -> str:
    """Our spelling of a split's name."""
    key = name.strip().lower()
    return SPLIT_NAMES.get(key, key)


@dataclass(frozen=True)
class Reading:
    """How a source is to be read."""

    label: str | None = None
    """Name or column of the sentiment label; None: the usual one."""
    strict: bool = True
    """Whether labels that must be chosen first are an error; else such examples have none."""
    media: bool = True
    """Whether features of raw clips are computed; else such examples have words alone."""
    cache: Path | None = None
    """Folder of the features of raw clips; None: the user's cache folder."""


@dataclass(frozen=True)
class Stream:
    """One modality of N examples."""

    rows: Sequence[Array] | Array
    """(T, D) of each example."""
    padded: bool = True
    """Whether zero rows at the ends are padding."""
    lengths: Sequence[int] | None = None
    """Steps of each example, from the first row on, where the source gives them."""


@dataclass
class Assembly:
    """Collects examples split by split. Not thread-safe."""

    where: str
    """The source, for messages."""
    splits: dict[str, list[Example]] = field(default_factory=dict)
    dims: dict[Modality, int] = field(default_factory=dict)
    cleared: Counter[Modality] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    _seen: Counter[str] = field(default_factory=Counter)

    def add(
        self,
        split: str,
        ids: Sequence[str],
        streams: Mapping[Modality, Stream],
        *,
        words: Sequence[Sequence[str]] | None = None,
        sentiment: Sequence[float | None] | None = None,
        emotion: Sequence[int | None] | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        """Add N examples to a split. Raises ``data.shape`` when parts differ in number or in width.

        Where all modalities are padded to the same number of steps, rows of one index are one moment: then
        they share the span that any of them fills, and stay aligned.
        """
        parts: dict[str, Sequence[object] | Array | None] = {m: s.rows for m, s in streams.items()}
        parts |= {"words": words, "sentiment": sentiment, "emotion": emotion, "groups": groups}
        for name, part in parts.items():
            if part is not None and len(part) != len(ids):
                raise AffectError(
                    "data.shape",
                    f"{self.where}: expected {len(ids)} examples of {name} in {split}, got {len(part)}",
                )
        steps = {s.rows.shape[1] for s in streams.values() if isinstance(s.rows, np.ndarray)}
        aligned = len(steps) == 1 and all(isinstance(s.rows, np.ndarray) for s in streams.values())
        names = unique_ids(ids, self._seen)
        videos = groups_of(ids) if groups is None else groups
        self.splits.setdefault(split, []).extend(
            Example(
                id=names[i],
                rows=self._rows(names[i], {m: (s, i) for m, s in streams.items()}, aligned=aligned),
                words=tuple(words[i]) if words is not None else (),
                sentiment=None if sentiment is None else sentiment[i],
                emotion=None if emotion is None else emotion[i],
                group=videos[i],
            )
            for i in range(len(ids))
        )

    def _rows(
        self, name: str, streams: Mapping[Modality, tuple[Stream, int]], *, aligned: bool
    ) -> dict[Modality, FloatMatrix]:
        found: dict[Modality, FloatMatrix] = {}
        spans: dict[Modality, tuple[int, int]] = {}
        for modality, (stream, i) in streams.items():
            raw = np.asarray(stream.rows[i])
            if raw.ndim != 2 or raw.dtype.kind not in "fiu":
                raise AffectError(
                    "data.shape",
                    f"{self.where}: {name}: expected {modality} rows (T, D) of numbers, got {raw.shape} "
                    f"{raw.dtype}",
                )
            if raw.shape[1] != self.dims.setdefault(modality, raw.shape[1]):
                raise AffectError(
                    "data.shape",
                    f"{self.where}: {name}: expected {self.dims[modality]} {modality} features a row as in "
                    f"the examples before, got {raw.shape[1]}",
                )
            found[modality], count = finite_rows(raw)
            self.cleared[modality] += count
            spans[modality] = span(found[modality]) if stream.padded else (0, len(raw))
            if stream.lengths is not None and spans[modality] != (0, 0):
                spans[modality] = (0, min(int(stream.lengths[i]), len(raw)))
        filled = [spans[m] for m in spans if spans[m][1]]
        if aligned and filled:
            whole = min(begin for begin, _ in filled), max(end for _, end in filled)
            for modality, (stream, _) in streams.items():
                if stream.lengths is None and spans[modality][1]:
                    spans[modality] = whole
        return {m: found[m][slice(*spans[m])] for m in MODALITIES if m in spans and spans[m][1] > spans[m][0]}

    def dataset(self, name: str, kind: str) -> Dataset:
        """What was collected, labels as the source has them. Raises ``data.empty`` without an example."""
        splits = {split: examples for split, examples in self.splits.items() if examples}
        if not splits:
            raise AffectError(
                "data.empty", f"{self.where}: expected examples, got none; is it the right file?"
            )
        dims = {m: self.dims[m] for m in MODALITIES if m in self.dims}
        cleared = {m: self.cleared[m] for m in dims if self.cleared[m]}
        return Dataset(
            name, splits, dims, notes=(*cleared_notes(cleared), *self.notes), format=kind, cleared=cleared
        )


def label_vector(
    values: Array, reading: Reading, where: str, column: str | None = None
) -> list[float | None]:
    """Labels (N,), (N, 1 …) or (N, C) → one number an example; ``column`` chooses among several.

    Raises ``data.label_column`` when there are several and none or none such is chosen; unless ``reading`` is
    strict, nothing chosen gives labels that are all None.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "fiub":
        raise AffectError("data.label", f"{where}: expected labels that are numbers, got {values.dtype}")
    table = values.reshape(len(values), -1)
    columns = table.shape[1]
    if column is None and columns == 1:
        column = "0"
    if column is None and not reading.strict:
        return [None] * len(table)
    if column is None or not column.isdecimal() or int(column) >= columns:
        raise AffectError(
            "data.label_column",
            f"{where}: expected one label an example, got {columns} columns"
            + (f" and no column '{column}'" if column is not None else "")
            + f"; choose one with --label 0 … {columns - 1}",
        )
    return [float(value) for value in table[:, int(column)]]
