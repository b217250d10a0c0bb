"""``affectrt evaluate``: how well does a model do on labelled data?

A bundle runs as on the device, which needs no torch; a run folder of ``affectrt train`` as in training. Keys
of the JSON: ``n`` (rows scored), then for each kind of label that occurs its number of rows and its metrics.
Metrics of a kind of label that doesn't occur are absent; a metric that the data leave undefined is null.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from affectrt.affect import EMOTIONS, Affect
from affectrt.cli import Command
from affectrt.cli.bundles import add_backend_option
from affectrt.cli.output import output_file, progress, warn
from affectrt.errors import AffectError
from affectrt_training.commands.data_options import add_data_options
from affectrt_training.commands.manifest import Row, read_manifest
from affectrt_training.commands.runs import judge
from affectrt_training.commands.scores import Judged, predictions_csv, report
from affectrt_training.fit.score import Truth
from affectrt_training.fit.score import score as metrics
from affectrt_training.labels import ALIASES
from affectrt_training.recipes import mosi_text

if TYPE_CHECKING:
    from affectrt.model import Model


def predict_row(model: Model, row: Row) -> Affect:
    """The model's result for one row, its prior when the row has no input. A fault names the row."""
    if not row.has_input:
        return model.fuse({}, 0.0, perf_counter())
    try:
        return model.predict(text=row.text, audio=row.audio, video=row.video, image=row.image)
    except AffectError as error:
        raise AffectError(
            error.code, f"manifest row {row.number} (line {row.line}): {error.message}"
        ) from error


def predict(model: Model, rows: Sequence[Row], *, jobs: int) -> list[Affect]:
    """One result a row, in order, ``jobs`` rows at a time."""
    predictions = []
    with ExitStack() as stack:
        # What is wrong with a file but doesn't stop its reading: told once each, as lines of ours.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: warn(str(message))
        update = stack.enter_context(progress("scoring", len(rows), "rows"))
        pool = ThreadPoolExecutor(jobs)
        # Rows not yet begun are dropped on a fault or Ctrl-C, rather than worked off first.
        stack.callback(pool.shutdown, cancel_futures=True)
        for affect in pool.map(lambda row: predict_row(model, row), rows):
            predictions.append(affect)
            update(len(predictions))
    return predictions


def judge_bundle(args: argparse.Namespace) -> tuple[list[Judged], str]:
    """Run a bundle over the rows of its manifest."""
    from affectrt.model import load

    rows = read_manifest(args.manifest)[: args.limit]
    unlabelled = sum(not row.has_label for row in rows)
    if unlabelled == len(rows):
        raise AffectError(
            "manifest.no_labels", f"{args.manifest}: no row has a sentiment or an emotion to score"
        )
    if args.output is None:
        rows = [row for row in rows if row.has_label]
    if unlabelled:
        warn(f"{args.manifest}: {unlabelled} rows have no label and are not scored")
    empty = sum(not row.has_input for row in rows)
    if empty:
        warn(f"{args.manifest}: {empty} rows have no input; the model's prior stands for them")
    model = load(args.model, backend=args.backend, threads=1)
    predictions = predict(model, rows, jobs=args.jobs)
    return _judged(rows, predictions), f"{args.model.name} on {args.manifest}"


def _judged(rows: Sequence[Row], predictions: Sequence[Affect]) -> list[Judged]:
    return [
        Judged(
            str(row.number),
            row.sentiment,
            row.emotion,
            affect.sentiment,
            affect.interval,
            np.array([affect.emotions[name] for name in EMOTIONS]),
            frozenset(affect.present),
        )
        for row, affect in zip(rows, predictions, strict=True)
    ]


def score(rows: Sequence[Row], predictions: Sequence[Affect]) -> dict[str, object]:
    """Metrics of ``predictions``, one for each of ``rows``, as the JSON holds them."""
    return metrics_of(_judged(rows, predictions))


def metrics_of(judged: Sequence[Judged]) -> dict[str, object]:
    """Metrics of what was judged, as the JSON holds them."""
    intervals = [row.interval for row in judged if row.interval is not None]
    return metrics(
        Truth([row.sentiment for row in judged], [row.emotion for row in judged]),
        [row.predicted_sentiment for row in judged],
        np.stack([row.probabilities for row in judged]),
        intervals if len(intervals) == len(judged) else None,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=_model,
        help=f"a bundle (.affect), a run folder of 'affectrt train', or {mosi_text.NAME}: the run that comes "
        "with affectrt",
    )
    add_backend_option(parser)
    parser.add_argument(
        "--manifest",
        metavar="M.csv",
        type=Path,
        help="CSV with inputs (text, audio, video, image) and labels (sentiment, emotion)",
    )
    add_data_options(parser, required=False)
    parser.add_argument(
        "--split", metavar="NAME", help="of a run's --data (default: test, else valid, else all rows)"
    )
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    parser.add_argument(
        "--output", metavar="predictions.csv", type=Path, help="also write every row's prediction there"
    )
    parser.add_argument("--limit", metavar="N", type=_positive, help="use the first N rows only")
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=_positive,
        default=os.cpu_count() or 1,
        help="rows to work on at a time (default: one per core)",
    )


def _model(text: str) -> Path:
    """Where the model lies; a file or folder of that name comes first."""
    path = Path(text)
    return mosi_text.WEIGHTS if text == mosi_text.NAME and not path.exists() else path


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got '{text}'")
    return number


def _check(args: argparse.Namespace) -> bool:
    """Whether the model is a run folder. Raises ``cli.usage`` for options that don't go with it."""
    is_run = args.model.is_dir()
    if is_run and (args.data is None) == (args.manifest is None):
        raise AffectError(
            "cli.usage",
            f"{args.model} is a run folder: expected --data PATH or --manifest M.csv, and one only",
        )
    if not is_run and (args.manifest is None or args.data is not None):
        raise AffectError(
            "cli.usage", f"{args.model} is a bundle, which runs on raw input: expected --manifest M.csv"
        )
    return bool(is_run)


def _run(args: argparse.Namespace) -> int:
    is_run = _check(args)
    with ExitStack() as stack:
        write = stack.enter_context(output_file(args.output)) if args.output else None
        judged, title = judge(args) if is_run else judge_bundle(args)
        if write is not None:
            write(predictions_csv(judged).encode())
    result = metrics_of(judged)
    if args.json:
        print(json.dumps(result, indent=1, allow_nan=False))
    else:
        print(report(result, title), end="")
    return 0


_ALIAS_TABLE = "\n".join(f"  {alias:<12} {name}" for alias, name in sorted(ALIASES.items()))

COMMAND = Command(
    summary="Score a bundle or a run on labelled data.",
    add_arguments=_add_arguments,
    run=_run,
    examples=f"""\
The manifest has any of the columns text (the words themselves), audio, video, image (paths relative
to the manifest) and at least one of the labels sentiment (-3 to 3) and emotion, which is one of
{", ".join(EMOTIONS)}.
An empty cell is an absent modality or label. Emotion names of other corpora are understood:
{_ALIAS_TABLE}

A run folder also takes whatever it was trained on (--data), in the split that --split names.

The JSON holds n and, for each kind of label that occurs, its metrics. An undefined metric is null.

examples:
  affectrt evaluate starter.affect --manifest test.csv
  affectrt evaluate starter.affect --manifest test.csv --json --output predictions.csv
  affectrt evaluate runs/mulg --data mosi.pkl --split test
  affectrt evaluate mosi-text --manifest test.csv          # columns text and sentiment
""",
)
