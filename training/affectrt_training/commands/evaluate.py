"""``affectrt evaluate``: how well does a bundle do on labelled data?

Runs the bundle as the device does, so it needs no torch. Keys of the JSON: ``n`` (rows scored), then for each
kind of label that occurs its number of rows and its metrics. Metrics of a kind of label that doesn't occur
are absent; a metric that the data leave undefined is null.
"""

from __future__ import annotations

import argparse
import csv
import io
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

from affectrt.affect import EMOTIONS, MODALITIES, Affect
from affectrt.cli import Command
from affectrt.cli.bundles import add_backend_option
from affectrt.cli.output import output_file, progress, warn
from affectrt.errors import AffectError
from affectrt_training.commands.manifest import Row, read_manifest
from affectrt_training.labels import ALIASES
from affectrt_training.metrics import ECE_BINS, confusion_matrix, emotion_metrics, sentiment_metrics

if TYPE_CHECKING:
    from affectrt.model import Model

_SENTIMENT_NAMES = {
    "mae": "MAE",
    "r": "Pearson r",
    "acc2_has0": "acc-2, Has0 (y ≥ 0)",
    "acc2_non0": "acc-2, Non0 (y ≠ 0)",
    "f1_has0": "weighted F1, Has0",
    "f1_non0": "weighted F1, Non0",
    "acc5": "acc-5",
    "acc7": "acc-7",
    "interval_coverage": "90 % interval covers",
}
_EMOTION_NAMES = {
    "accuracy": "accuracy",
    "weighted_f1": "weighted F1",
    "uar": "unweighted recall",
    "ece": f"ECE ({ECE_BINS} bins)",
}

PREDICTION_COLUMNS = (
    "row",
    "sentiment",
    "emotion",
    "predicted_sentiment",
    "interval_low",
    "interval_high",
    "predicted_emotion",
    *EMOTIONS,
    "present",
)


def score(rows: Sequence[Row], predictions: Sequence[Affect]) -> dict[str, object]:
    """Metrics of ``predictions``, one for each of ``rows``, as the JSON holds them."""
    pairs = list(zip(rows, predictions, strict=True))
    result: dict[str, object] = {"n": sum(row.has_label for row in rows)}
    sentiments = [(row.sentiment, affect) for row, affect in pairs if row.sentiment is not None]
    if sentiments:
        result["n_sentiment"] = len(sentiments)
        result |= sentiment_metrics(
            [truth for truth, _ in sentiments],
            [affect.sentiment for _, affect in sentiments],
            [affect.interval for _, affect in sentiments],
        ).to_dict()
    emotions = [(row.emotion, affect) for row, affect in pairs if row.emotion is not None]
    if emotions:
        truth = np.array([emotion for emotion, _ in emotions], np.int64)
        probabilities = np.array([[affect.emotions[name] for name in EMOTIONS] for _, affect in emotions])
        result["n_emotion"] = len(emotions)
        result |= emotion_metrics(truth, probabilities).to_dict()
        matrix = confusion_matrix(truth, probabilities.argmax(axis=1).astype(np.int64), len(EMOTIONS))
        result["confusion"] = {
            name: dict(zip(EMOTIONS, map(int, counts), strict=True))
            for name, counts in zip(EMOTIONS, matrix, strict=True)
        }
    return result


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


def predictions_csv(rows: Sequence[Row], predictions: Sequence[Affect]) -> str:
    """One line a row: its number, the truth, and what the model said."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(PREDICTION_COLUMNS)
    for row, affect in zip(rows, predictions, strict=True):
        writer.writerow(
            [
                row.number,
                "" if row.sentiment is None else row.sentiment,
                "" if row.emotion is None else EMOTIONS[row.emotion],
                f"{affect.sentiment:.4f}",
                *(f"{bound:.4f}" for bound in affect.interval),
                affect.emotion,
                *(f"{affect.emotions[name]:.4f}" for name in EMOTIONS),
                "+".join(m for m in MODALITIES if m in affect.present),
            ]
        )
    return out.getvalue()


def report(result: dict[str, object], title: str) -> str:
    """The metrics for people, in at most 80 columns."""
    lines = [title, f"{result['n']} rows scored"]
    for kind, names in (("sentiment", _SENTIMENT_NAMES), ("emotion", _EMOTION_NAMES)):
        if f"n_{kind}" in result:
            lines += ["", f"{kind}, {result[f'n_{kind}']} rows"]
            lines += [f"  {name:<22} {_figure(result[key])}" for key, name in names.items()]
    confusion, recall = result.get("confusion"), result.get("recall")
    if isinstance(confusion, dict) and isinstance(recall, dict):
        lines += [
            "",
            "  truth \\ predicted",
            "           " + "".join(f"{n[:7]:>8}" for n in EMOTIONS) + "  recall",
        ]
        for name in EMOTIONS:
            counts = "".join(f"{confusion[name][predicted]:>8}" for predicted in EMOTIONS)
            lines.append(f"  {name:<9}{counts}  {_figure(recall[name])}")
    return "\n".join(lines) + "\n"


def _figure(value: object) -> str:
    return "–" if value is None else f"{value:.4f}"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the model, a .affect file")
    add_backend_option(parser)
    parser.add_argument(
        "--manifest",
        metavar="M.csv",
        type=Path,
        required=True,
        help="CSV with inputs (text, audio, video, image) and labels (sentiment, emotion)",
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


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got '{text}'")
    return number


def _run(args: argparse.Namespace) -> int:
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
    with ExitStack() as stack:
        write = stack.enter_context(output_file(args.output)) if args.output else None
        model = load(args.bundle, backend=args.backend, threads=1)
        predictions = predict(model, rows, jobs=args.jobs)
        if write is not None:
            write(predictions_csv(rows, predictions).encode())
    result = score(rows, predictions)
    if args.json:
        print(json.dumps(result, indent=1, allow_nan=False))
    else:
        print(report(result, f"{args.bundle.name} on {args.manifest}"), end="")
    return 0


_ALIAS_TABLE = "\n".join(f"  {alias:<12} {name}" for alias, name in sorted(ALIASES.items()))

COMMAND = Command(
    summary="Score a bundle on labelled text, audio, video or images.",
    add_arguments=_add_arguments,
    run=_run,
    examples=f"""\
The manifest has any of the columns text (the words themselves), audio, video, image (paths relative
to the manifest) and at least one of the labels sentiment (-3 to 3) and emotion, which is one of
{", ".join(EMOTIONS)}.
An empty cell is an absent modality or label. Emotion names of other corpora are understood:
{_ALIAS_TABLE}

The JSON holds n and, for each kind of label that occurs, its metrics. An undefined metric is null.

examples:
  affectrt evaluate starter.affect --manifest test.csv
  affectrt evaluate starter.affect --manifest test.csv --json --output predictions.csv
""",
)
