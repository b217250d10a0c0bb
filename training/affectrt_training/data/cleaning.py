"""What happens to values as they are read: the same in every format.

* A feature value that is NaN or infinite becomes 0, and the data set says how many did: ``-inf`` occurs in
  the audio of CMU-MOSI (a logarithm of 0), and 0 is what every toolkit of the field makes of it.
* A sentiment label that is NaN or infinite is an error that names its ids: training on a guess helps nobody.
* Padding is all-zero rows at either end: MultiBench pads in front, MMSA-FET behind. Lengths that a file gives
  win. A modality whose every row is zero is absent.
* Sentiment is mapped linearly from its own range to [-3, 3]; a range is never guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil, floor, isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from affectrt.affect import MODALITIES, SENTIMENT_LIMIT, Modality
from affectrt.errors import AffectError
from affectrt_training.data.dataset import Dataset, Example, FloatMatrix

Range = tuple[float, float]

SLACK = 1e-4
"""Share of the range by which a float32 label may lie outside of it."""

_NAMED = 5


def some(names: Sequence[str]) -> str:
    """The first few of many names, for messages."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def finite_rows(values: npt.NDArray[Any]) -> tuple[FloatMatrix, int]:
    """Rows (T, D) of any float type → float32 of its own or shared memory, and how many values became 0."""
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(values, np.float32)
    wrong = ~np.isfinite(rows)
    count = int(wrong.sum())
    if count or not rows.flags.writeable:  # torch warns of memory that it could not write to
        rows = np.where(wrong, np.float32(0.0), rows)
    return rows, count


def span(rows: FloatMatrix) -> tuple[int, int]:
    """Begin and end of rows (T, D) without the all-zero ones in front and behind; (0, 0): nothing is left."""
    used = np.flatnonzero(rows.any(axis=1))
    return (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)


def groups_of(ids: Sequence[str]) -> list[str]:
    """The videos that utterance ids of the field name: ``video$_$3``, ``video[3]`` or ``video_3``.

    Empty for all when the ids name no video or all name the same one, as with running numbers.
    """
    found = [re.fullmatch(r"(.+?)(?:\$_\$\w+|\[\d+\]|_\d+)", name) for name in ids]
    videos = [match[1] if match else "" for match in found]
    return videos if len(set(videos)) > 1 and all(videos) else [""] * len(ids)


def unique_ids(ids: Iterable[str], seen: Counter[str]) -> list[str]:
    """The ids, with a number behind those that ``seen`` has; it counts these, too."""
    named = []
    for name in ids:
        seen[name] += 1
        named.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return named


def cleared_notes(cleared: Mapping[Modality, int]) -> list[str]:
    """One line for every modality of which values were cleared."""
    return [
        f"{cleared[m]} {m} values were NaN or infinite and became 0" for m in MODALITIES if cleared.get(m)
    ]


def sentiments(dataset: Dataset) -> npt.NDArray[np.float64]:
    """Every sentiment label of every split."""
    return np.array([e.sentiment for s in dataset.splits.values() for e in s if e.sentiment is not None])


def suggested_range(values: npt.NDArray[np.float64]) -> Range:
    """The whole numbers around finite labels: what to suggest, never what to assume."""
    return float(floor(values.min())), float(ceil(values.max()))


def to_sentiment_scale(dataset: Dataset, label_range: Range | None) -> Dataset:
    """The data set with its labels mapped from ``label_range`` to [-3, 3]; None: they are on that scale.

    Raises ``data.label`` for labels that are not finite, naming the ids, and ``data.label_range`` for a range
    that is none or that labels lie outside of.
    """
    for split in dataset.splits.values():
        broken = [e.id for e in split if e.sentiment is not None and not isfinite(e.sentiment)]
        if broken:
            raise AffectError(
                "data.label",
                f"{dataset.name}: expected finite sentiment labels, got NaN or infinity for {some(broken)}; "
                f"mend or remove these examples",
            )
    low, high = (-SENTIMENT_LIMIT, SENTIMENT_LIMIT) if label_range is None else label_range
    if not (isfinite(low) and isfinite(high) and low < high):
        raise AffectError(
            "data.label_range", f"expected a label range of two rising numbers, got {low:g} to {high:g}"
        )
    values = sentiments(dataset)
    slack = SLACK * (high - low)
    if len(values) and (values.min() < low - slack or values.max() > high + slack):
        first, last = suggested_range(values)
        raise AffectError(
            "data.label_range",
            f"{dataset.name}: expected labels from {low:g} to {high:g}, got {values.min():g} to "
            f"{values.max():g}; pass the range of their own scale, such as --label-range {first:g} {last:g}",
        )
    if label_range is None:
        return dataset

    def mapped(example: Example) -> Example:
        if example.sentiment is None:
            return example
        share = min(max((example.sentiment - low) / (high - low), 0.0), 1.0)
        return replace(example, sentiment=(2.0 * share - 1.0) * SENTIMENT_LIMIT)

    splits = {name: [mapped(e) for e in split] for name, split in dataset.splits.items()}
    return replace(dataset, splits=splits, label_range=(low, high))
