"""What commands do with run folders: where they lie, which data to score them on. Loads torch on use."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectrt.affect import MODALITIES
from affectrt.cli.output import warn
from affectrt.errors import AffectError, require
from affectrt_training.commands.data_options import load_dataset, read_data
from affectrt_training.commands.scores import Judged

if TYPE_CHECKING:
    from affectrt_training.data.dataset import Dataset, Example
    from affectrt_training.fit.checkpoint import Fitted

RUNS = Path("runs")
"""Where runs are kept unless told otherwise."""

ALL = "all"
"""The one split of a source that has none, and how to ask for all rows."""


def text_cache(cache: Path | None) -> Path:
    """Where rows of frozen text encoders are kept, in the folder of ``--cache`` or in the user's cache."""
    from affectrt_training.data.raw import default_cache

    return (cache or default_cache().parent) / "text"


@dataclass(frozen=True)
class Chosen:
    """Examples to score a run on."""

    examples: Sequence[Example]
    title: str
    """For people: which data, which split."""


def choose(args: argparse.Namespace, fitted: Fitted) -> Chosen:
    """The rows that ``--manifest``, or ``--data`` with ``--split``, name.

    Without ``--split``: test, else valid, else all; and of the data set that the run was trained on the rows
    that it was not trained on. A label range that isn't given is that of the training data, but for
    manifests, whose sentiments are in [-3, 3]. Raises ``data.no_split`` and what reading raises.
    """
    if args.manifest is not None:
        args.data = [str(args.manifest)]
        dataset = read_data(args)
        return Chosen([e for part in dataset.splits.values() for e in part], str(args.manifest))
    low, high = fitted.data.get("label_range", (-3.0, 3.0))
    if args.label_range is None and (low, high) != (-3.0, 3.0):
        args.label_range = [low, high]
    name, dataset = _split(args, fitted)
    examples = dataset.split(name) if name != ALL else [e for part in dataset.splits.values() for e in part]
    if _was_trained_on(fitted, examples):
        warn(f"split '{name}' of {dataset.name} is what the run was trained on: these are no test results")
    return Chosen(examples, f"{dataset.name}, split {name}")


def _split(args: argparse.Namespace, fitted: Fitted) -> tuple[str, Dataset]:
    """The split's name, and the data set as it is split."""
    if args.folds is not None or args.valid_share is not None:
        return args.split or "valid", load_dataset(args)
    dataset = read_data(args)
    if args.split is None:
        for usual in ("test", "valid"):
            if usual in dataset.splits:
                return usual, dataset
    if args.split in (None, "train", "valid") and (again := _as_trained(fitted, dataset)):
        return args.split or "valid", again
    return args.split or ALL, dataset


def _as_trained(fitted: Fitted, dataset: Dataset) -> Dataset | None:
    """The data set split as for the run's training; None: it was not trained on this."""
    from affectrt_training.data.splits import hold_out, k_folds

    sizes: Mapping[str, int] = fitted.data.get("splits", {})
    valid, total = sizes.get("valid", 0), sum(sizes.values())
    if not 0 < valid < total:
        return None
    try:
        ways = [hold_out(dataset, valid / total), *k_folds(dataset, max(2, round(total / valid)))]
    except AffectError:
        return None
    return next((way for way in ways if _was_trained_on(fitted, way.split("train"))), None)


def _was_trained_on(fitted: Fitted, examples: Sequence[Example]) -> bool:
    from affectrt_training.fit.prepare import fingerprint

    trained: str | None = fitted.data.get("sha256", {}).get("train")
    return trained == fingerprint([examples])


def judge(args: argparse.Namespace) -> tuple[list[Judged], str]:
    """Run a run folder's model over the rows that were chosen.

    Raises ``evaluate.no_labels`` where there is nothing to score, ``evaluate.no_input`` where the run reads
    nothing of what the data hold, and what loading and reading raise.
    """
    for module in ("torch", "lightning", "safetensors"):
        require(module, "train")
    import torch

    from affectrt_training.fit.checkpoint import load_run
    from affectrt_training.fit.predict import predict

    fitted = load_run(args.model)
    chosen = choose(args, fitted)
    examples = list(chosen.examples)
    labelled = [e for e in examples if e.sentiment is not None or e.emotion is not None]
    if not labelled:
        raise AffectError(
            "evaluate.no_labels", f"{chosen.title}: no row has a sentiment or an emotion to score"
        )
    if len(labelled) < len(examples):
        warn(f"{chosen.title}: {len(examples) - len(labelled)} rows have no label and are not scored")
    examples = (examples if args.output is not None else labelled)[: args.limit]
    seen = [_seen(fitted, example) for example in examples]
    if not any(seen):
        raise AffectError(
            "evaluate.no_input",
            f"{chosen.title}: the run reads {_reads(fitted)}; no row has any of it",
        )
    if empty := sum(not modalities for modalities in seen):
        warn(f"{chosen.title}: {empty} rows have nothing that the run reads; its prior stands for them")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fitted.model.to(device)
    if fitted.encoder is not None:
        fitted.encoder.to(device)
    found = predict(fitted, examples, cache=text_cache(args.cache), progress=True)
    rows = zip(examples, seen, found.sentiment.tolist(), found.probabilities, strict=True)
    judged = [
        Judged(e.id, e.sentiment, e.emotion, sentiment, None, probabilities, modalities)
        for e, modalities, sentiment, probabilities in rows
    ]
    return judged, f"{args.model} on {chosen.title}"


def _seen(fitted: Fitted, example: Example) -> frozenset[Any]:
    """The modalities of an example that the run reads."""
    seen = {m for m in MODALITIES if m in example.rows and (m != "text" or not fitted.reader.tunes)}
    return frozenset(seen | ({"text"} if fitted.text_from == "words" and example.words else set()))


def _reads(fitted: Fitted) -> str:
    text = {"words": "words", "rows": f"text rows of {fitted.dims['text']} features", "none": "no text"}
    others = [f"{m} rows of {fitted.dims[m]} features" for m in ("audio", "vision") if fitted.dims[m] > 1]
    return ", ".join([text[fitted.text_from], *others])
