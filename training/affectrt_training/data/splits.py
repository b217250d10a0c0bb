"""Splits for data sets that have none: blocks of rows in file order, groups kept whole.

Neighbouring rows of a file often share a speaker or a video: blocks leak less between splits than rows drawn
at random, and are the same everywhere. Rows of one group (speaker, video) never part. A test split comes from
the source alone; none is ever made here, and none is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain, pairwise

from affectrt.errors import AffectError
from affectrt_training.data.dataset import Dataset, Example


def row_blocks(examples: Sequence[Example], k: int) -> list[list[Example]]:
    """``k`` blocks of about equal size, in the examples' order; a group lies where its first row does.

    Raises ``data.folds`` for k below 2 or above the number of groups.
    """
    units = _units(examples)
    if not 2 <= k <= len(units):
        raise AffectError(
            "data.folds",
            f"expected from 2 to {len(units)} folds, as many as groups that stay together, got {k}",
        )
    return _cut(units, [len(examples) * i / k for i in range(1, k)])


def cut_last(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """All but the last ``share`` of the examples, and these; groups stay whole, neither part is empty.

    Raises ``data.share`` for a share that isn't between 0 and 1, or when there is one group only.
    """
    units = _units(examples)
    if not 0.0 < share < 1.0 or len(units) < 2:
        raise AffectError(
            "data.share",
            f"expected a share between 0 and 1 of two or more groups, got {share:g} of {len(units)}",
        )
    first, last = _cut(units, [len(examples) * (1.0 - share)])
    return first, last


def k_folds(dataset: Dataset, k: int) -> list[Dataset]:
    """One data set a fold: its block is ``valid``, the others are ``train``; all splits but test are pooled.

    Raises ``data.folds``.
    """
    blocks = row_blocks(_pool(dataset), k)
    return [
        _with(dataset, list(chain(*blocks[:i], *blocks[i + 1 :])), block, f"fold {i + 1} of {k} is valid")
        for i, block in enumerate(blocks)
    ]


def hold_out(dataset: Dataset, share: float) -> Dataset:
    """The last ``share`` of the rows becomes ``valid``, the rest ``train``; all splits but test are pooled.

    Raises ``data.share``.
    """
    train, valid = cut_last(_pool(dataset), share)
    return _with(dataset, train, valid, f"the last {share:.0%} of the rows are valid")


def _pool(dataset: Dataset) -> list[Example]:
    return [e for name, examples in dataset.splits.items() if name != "test" for e in examples]


def _with(dataset: Dataset, train: list[Example], valid: list[Example], note: str) -> Dataset:
    test = {name: examples for name, examples in dataset.splits.items() if name == "test"}
    return replace(dataset, splits={"train": train, "valid": valid, **test}, notes=(*dataset.notes, note))


def _units(examples: Sequence[Example]) -> list[list[Example]]:
    """Groups by first appearance; an example without one stands alone."""
    units: dict[object, list[Example]] = {}
    for position, example in enumerate(examples):
        units.setdefault(example.group or position, []).append(example)
    return list(units.values())


def _cut(units: Sequence[list[Example]], wanted: Sequence[float]) -> list[list[Example]]:
    """Cut between units, as near as can be to the wanted numbers of rows, no part empty."""
    ends = list(accumulate(map(len, units)))
    cuts = [0]
    for i, rows in enumerate(wanted):
        # As many units as cuts to come are left over.
        choices = range(cuts[-1] + 1, len(units) - len(wanted) + i + 1)
        cuts.append(min(choices, key=lambda cut: abs(ends[cut - 1] - rows)))
    return [list(chain(*units[a:b])) for a, b in pairwise([*cuts, len(units)])]
