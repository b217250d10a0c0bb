"""What the fits of a comparison say: every table and curve of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from affectrt.affect import MODALITIES
from affectrt_training.data.dataset import Dataset
from affectrt_training.encoders.text import TextSettings
from affectrt_training.evaluation.contrasts import (
    Contrast,
    Curve,
    Retrained,
    Subset,
    contrasts,
    curves,
    retrained,
    subsets,
)
from affectrt_training.evaluation.fits import Attention, Fitted
from affectrt_training.evaluation.measures import EMOTION, MEASURES, SENTIMENT, Measure
from affectrt_training.evaluation.plan import SYSTEMS_THEMSELVES, Entry, Part
from affectrt_training.evaluation.summary import (
    BASELINE,
    Answers,
    Row,
    Score,
    Truth,
    baseline,
    confusions_of,
    pool,
    scores_of,
    truth_of,
)
from affectrt_training.fit.prepare import all_dims
from affectrt_training.models.cost import forward_flops
from affectrt_training.models.registry import create, find_system


@dataclass(frozen=True)
class Comparison:
    """All that a report says; JSON-ready by ``dataclasses.asdict``."""

    about: Mapping[str, Any]
    """Data, protocol, versions, date."""
    primary: str
    """The measure that chose the reference, and that training selected by."""
    reference: str
    """The best peer, which every row is held against; the best other row where there is no peer."""
    rows: Sequence[Row]
    """The trivial baseline last, variants before it."""
    against_reference: Sequence[Contrast]
    """Every paper and peer, in every measure."""
    against_baseline: Sequence[Contrast]
    """Every paper and peer against no skill, in the primary measure."""
    against_base: Sequence[Contrast]
    """Every variant against the row it varies, in the primary measure."""
    curves: Sequence[Curve] = field(default_factory=tuple)
    subsets: Sequence[Subset] = field(default_factory=tuple)
    retrained: Sequence[Retrained] = field(default_factory=tuple)
    attention: Mapping[str, Attention] = field(default_factory=dict)
    """Of stressed rows that attend: from their first fit."""


def conclude(
    entries: Sequence[Entry],
    parts: Sequence[Part],
    by_entry: Mapping[str, Sequence[Sequence[Fitted]]],
    datasets: Mapping[TextSettings, Dataset],
    about: Mapping[str, Any],
) -> Comparison:
    """The comparison from its fits, ``by_entry[label][seed][part]``."""
    truth = truth_of(example for part in parts for example in part.held)
    answers = {entry.label: pool(parts, by_entry[entry.label]) for entry in entries}
    answers[BASELINE] = baseline(parts)
    rows = [
        _row(entry, answers[entry.label], truth, by_entry[entry.label], datasets[entry.config.text])
        for entry in entries
    ]
    floor = scores_of(answers[BASELINE], truth)
    if "r" in floor:
        # Constants don't correlate. Over folds their medians do, against the held-out rows that they lack.
        floor["r"] = Score(None, None, [None])
    confusion = confusions_of(answers[BASELINE], truth)
    rows.append(Row(BASELINE, "trivial", "", "no model", MODALITIES, floor, confusion))
    measures = [m for m in (*SENTIMENT, *EMOTION) if truth.known(m.kind).any()]
    primary = MEASURES["mae" if truth.known("sentiment").any() else "weighted_f1"]
    main = [row.label for row in rows if row.kind in SYSTEMS_THEMSELVES]
    reference = _best([row for row in rows if row.label in main], primary)

    def against(labels: Sequence[str], other: str, measure: Measure) -> list[Contrast]:
        return contrasts(labels, other, measure, answers, truth, parts)

    bases = dict.fromkeys(entry.base for entry in entries if entry.base in answers)
    stressed = [entry.label for entry in entries if entry.stressed]
    return Comparison(
        about=about,
        primary=primary.name,
        reference=reference,
        rows=rows,
        against_reference=[c for m in measures for c in against(main, reference, m)],
        against_baseline=against(main, BASELINE, primary),
        against_base=[
            contrast
            for base in bases
            for contrast in against([e.label for e in entries if e.base == base], base, primary)
        ],
        curves=[c for label in stressed for c in curves(label, primary, answers[label], truth)],
        subsets=[s for label in stressed for s in subsets(label, primary, answers[label], truth)],
        attention={
            label: attention
            for label in stressed
            if (attention := by_entry[label][0][0].attention) is not None
        },
        retrained=retrained(stressed, primary, answers, truth),
    )


def _row(
    entry: Entry, answers: Answers, truth: Truth, by_seed: Sequence[Sequence[Fitted]], dataset: Dataset
) -> Row:
    fits = [fit for seed in by_seed for fit in seed]
    return Row(
        label=entry.label,
        kind=entry.kind,
        base=entry.base,
        source=find_system(entry.config.system).source,
        modalities=[m for m in entry.modalities if m in dataset.dims],
        scores=scores_of(answers, truth),
        confusion=confusions_of(answers, truth),
        train_s=float(np.mean([fit.train_s for fit in fits])),
        parameters=fits[0].parameters,
        mflops=_mflops(entry, dataset),
        best_epoch=float(np.mean([fit.best_epoch for fit in fits])),
        settings=entry.config.to_dict(),
    )


def _best(rows: Sequence[Row], primary: Measure) -> str:
    """The best peer in the primary measure; the best row where there is no peer."""
    candidates = [row for row in rows if row.kind == "peer"] or list(rows)

    def worth(row: Row) -> float:
        mean = row.scores[primary.name].mean
        return -np.inf if mean is None else primary.sign * mean

    return max(candidates, key=worth).label


def _mflops(entry: Entry, dataset: Dataset) -> float | None:
    """Of one forward pass over an example of median lengths; None where a tuned encoder decides them."""
    if entry.config.text.tuning != "frozen":
        return None
    examples = [example for part in dataset.splits.values() for example in part]
    lengths = dict.fromkeys(MODALITIES, 0)
    for modality in entry.modalities:
        if rows := [len(e.rows[modality]) for e in examples if modality in e.rows]:
            lengths[modality] = int(np.median(rows))
    with torch.random.fork_rng(devices=[]):
        model = create(entry.config.system, all_dims(dataset.dims), entry.config.model)
    return forward_flops(model, lengths) / 1e6
