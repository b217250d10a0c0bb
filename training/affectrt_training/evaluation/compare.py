"""Many systems on the same data, folds and seeds: train what isn't there yet, then say what came out."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from affectrt.cli.output import progress
from affectrt.errors import AffectError
from affectrt_training.data.dataset import Dataset
from affectrt_training.data.text_rows import with_text_rows
from affectrt_training.encoders.text import TextSettings
from affectrt_training.evaluation.conclusion import Comparison, conclude
from affectrt_training.evaluation.fits import Fit, Fitted, path_of, run_all
from affectrt_training.evaluation.plan import Entry, Part, parts_of
from affectrt_training.evaluation.summary import BASELINE


@dataclass(frozen=True)
class Protocol:
    """How a comparison is run."""

    folds: int | None
    """Row blocks, each held out once; None: the data set's own train and valid."""
    seeds: Sequence[int]
    """Every row is trained with each, on every part."""
    jobs: int = 1
    """Processes that train at the same time."""
    cache: Path | None = None
    """Where a frozen text encoder keeps its rows; None: with the fits."""


def compare(dataset: Dataset, entries: Sequence[Entry], protocol: Protocol, work: Path) -> Comparison:
    """Train every entry on every part with every seed, and compare.

    ``work``: where finished fits are kept; those found there, of the same settings, data and versions, aren't
    trained again. Raises ``compare.rows`` for labels that occur twice, ``compare.worker_died``, and what
    reading, splitting and training raise.
    """
    labels = [entry.label for entry in entries]
    if twice := {label for label in [*labels, BASELINE] if [*labels, BASELINE].count(label) > 1}:
        raise AffectError(
            "compare.rows", f"expected rows of different names, got {', '.join(sorted(twice))} more than once"
        )
    work.mkdir(parents=True, exist_ok=True)
    (work / ".gitignore").write_text("*\n")
    prepared = _prepared(dataset, entries, protocol.folds, protocol.cache or work / "text")
    fits = []
    # Seed by seed, so that what a killed run leaves behind covers all rows.
    for seed in protocol.seeds:
        for part in range(protocol.folds or 1):
            for entry in entries:
                data, parts = prepared[entry.config.text]
                path = path_of(work, entry.label, parts[part].name, seed)
                fits.append(Fit(entry, data, parts[part], seed, path))
    with progress("training", len(fits), "fits") as tell:
        fitted = run_all(fits, protocol.jobs, tell)
    by_entry: dict[str, list[list[Fitted]]] = {label: [] for label in labels}
    found = iter(fitted)
    for _ in protocol.seeds:
        of_seed: list[dict[str, Fitted]] = [
            {label: next(found) for label in labels} for _ in range(protocol.folds or 1)
        ]
        for label in labels:
            by_entry[label].append([of_part[label] for of_part in of_seed])
    data, parts = prepared[entries[0].config.text]
    about = {"data": _about(data, parts), "protocol": _protocol(protocol, parts), **_machine()}
    return conclude(entries, parts, by_entry, {text: d for text, (d, _) in prepared.items()}, about)


def _prepared(
    dataset: Dataset, entries: Sequence[Entry], folds: int | None, cache: Path
) -> dict[TextSettings, tuple[Dataset, list[Part]]]:
    """Text rows once for all fits that read the same; examples that rows share are the same objects."""
    prepared: dict[TextSettings, tuple[Dataset, list[Part]]] = {}
    for entry in entries:
        text = entry.config.text
        if text not in prepared:
            ready = dataset if text.tuning != "frozen" else with_text_rows(dataset, text, cache)
            prepared[text] = ready, parts_of(ready, folds)
    return prepared


def _about(dataset: Dataset, parts: Sequence[Part]) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "sha256": [part.digest for part in parts],
        "dims": dict(dataset.dims),
        "label_range": list(dataset.label_range),
        "notes": list(dataset.notes),
    }


def _protocol(protocol: Protocol, parts: Sequence[Part]) -> dict[str, Any]:
    return {
        "folds": protocol.folds,
        "seeds": list(protocol.seeds),
        "parts": {p.name: [len(p.train), len(p.valid), len(p.held)] for p in parts},
        "held": sum(len(part.held) for part in parts),
    }


def _machine() -> dict[str, Any]:
    names = ("affectrt", "torch", "lightning", "transformers", "numpy", "scipy")
    return {
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in names}},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
