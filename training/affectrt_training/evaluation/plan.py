"""What a comparison trains: rows of the table, and the parts of the data that each is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from affectrt.affect import MODALITIES, Modality
from affectrt.errors import AffectError
from affectrt_training.data.dataset import Dataset, Example
from affectrt_training.data.splits import cut_last, row_blocks
from affectrt_training.evaluation.robustness import keep
from affectrt_training.fit.prepare import fingerprint
from affectrt_training.fit.settings import RunConfig

VALID_SHARE = 0.2
"""Of a fold's training rows: the validation part that stops training and chooses the epoch."""

Kind = Literal["paper", "peer", "baseline", "variant", "trivial"]
"""A paper's system, a peer, a simple system that all should beat, a variation of another row, no system."""

SYSTEMS_THEMSELVES = frozenset({"paper", "peer", "baseline"})
"""Kinds of rows that are systems as they come."""


@dataclass(frozen=True)
class Entry:
    """One row of the table: a system with its settings."""

    label: str
    """What the row is called."""
    config: RunConfig
    """Its seed is replaced by each seed of the comparison."""
    kind: Kind
    """What stands behind the row; never ``trivial``."""
    base: str = ""
    """Variants: the row they vary."""
    modalities: tuple[Modality, ...] = MODALITIES
    """What it is trained and judged with; the others are taken out of the data."""
    stressed: bool = False
    """Also judged with modalities missing and noisy."""


@dataclass(frozen=True)
class Part:
    """One way to cut the data: trained on, selected by, judged on."""

    name: str
    train: Sequence[Example]
    valid: Sequence[Example]
    held: Sequence[Example] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """Changes with any example, and with which part of the data it is in."""
        return fingerprint([self.train, self.valid, self.held])


def parts_of(dataset: Dataset, folds: int | None) -> list[Part]:
    """The parts of a comparison; examples without any label are left out.

    Without folds there is one: train, selected by valid and judged on it as well. With folds, rows are cut
    into blocks, each held out once. Of the other rows, taken from the block after it round to the one before
    it, the last :data:`VALID_SHARE` select: no held-out row ever decides when its model stops training. A
    split ``test`` is never touched. Raises ``data.no_split``, ``data.folds``, ``data.share`` and
    ``data.label`` where nothing is labelled.
    """
    splits = {
        name: [e for e in examples if e.sentiment is not None or e.emotion is not None]
        for name, examples in dataset.splits.items()
        if name != "test"
    }
    labelled = replace(dataset, splits=splits)
    if folds is None:
        train, valid = labelled.split("train"), labelled.split("valid")
        if not train or not valid:
            raise AffectError(
                "data.label", f"{dataset.name}: expected labelled examples in the splits train and valid"
            )
        return [Part("valid", train, valid, valid)]
    blocks = row_blocks([e for examples in splits.values() for e in examples], folds)
    parts = []
    for i, held in enumerate(blocks):
        others = [example for block in (*blocks[i + 1 :], *blocks[:i]) for example in block]
        train, valid = cut_last(others, VALID_SHARE)
        parts.append(Part(f"fold{i + 1}", train, valid, held))
    return parts


def only(part: Part, modalities: Sequence[Modality]) -> Part:
    """The part with these modalities alone; the same object when that is all."""
    if set(modalities) == set(MODALITIES):
        return part
    return Part(part.name, *(keep(examples, modalities) for examples in (part.train, part.valid, part.held)))


def without(label: str, modality: str) -> str:
    """What the row is called that is trained without a modality."""
    return f"{label} without {modality}"


def without_each(entry: Entry, dataset: Dataset) -> list[Entry]:
    """The same system trained without one modality, for each that the data have, where two remain."""
    there = [m for m in dataset.modalities if m in entry.modalities]
    if len(there) < 2:
        return []
    return [
        Entry(
            without(entry.label, modality),
            entry.config,
            "variant",
            base=entry.label,
            modalities=tuple(m for m in there if m != modality),
        )
        for modality in there
    ]
