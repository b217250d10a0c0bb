"""``affectrt describe``: what does a data set hold, and how is it to be trained on?

Labels are shown on the source's own scale unless ``--label-range`` maps them; raw clips are counted, not
read. Keys of the JSON: ``name``, ``format``, ``splits``, ``modalities``, ``words``, ``sentiment`` and
``emotions`` (null without such labels), ``notes`` (what reading changed) and ``hints`` (what to pass).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from affectrt.affect import EMOTIONS, MODALITIES, SENTIMENT_LIMIT
from affectrt.cli import Command
from affectrt.errors import AffectError, require
from affectrt_training.commands.data_options import VALID_SHARE, add_label_options

if TYPE_CHECKING:
    from affectrt_training.data.dataset import Dataset, Example

BAR_WIDTH = 32
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_WHOLE_STEPS = (4, 12)
"""Label ranges so wide are counted by whole numbers, as acc-7 rounds them; others in equal parts."""
_PARTS = 8
_EXAMPLE_WORDS = 12


def summarise(dataset: Dataset) -> dict[str, Any]:
    """The JSON but for its hints."""
    examples = [e for split in dataset.splits.values() for e in split]
    return {
        "name": dataset.name,
        "format": dataset.format,
        "splits": {name: _split(split) for name, split in dataset.splits.items()},
        "modalities": {m: _modality(dataset, examples, m) for m in MODALITIES if m in dataset.dims},
        "words": _words(examples),
        "sentiment": _sentiment([e.sentiment for e in examples if e.sentiment is not None]),
        "emotions": _emotions(examples),
        "notes": list(dataset.notes),
    }


def _split(examples: Sequence[Example]) -> dict[str, int]:
    return {
        "examples": len(examples),
        "sentiment": sum(e.sentiment is not None for e in examples),
        "emotion": sum(e.emotion is not None for e in examples),
        "groups": len({e.group for e in examples if e.group}),
    }


def _modality(dataset: Dataset, examples: Sequence[Example], modality: Any) -> dict[str, Any]:
    steps = [len(e.rows[modality]) for e in examples if modality in e.rows]
    return {
        "features": dataset.dims[modality],
        "steps": _spread(steps),
        "absent": 1.0 - len(steps) / len(examples),
        "cleared": dataset.cleared.get(modality, 0),
    }


def _words(examples: Sequence[Example]) -> dict[str, Any] | None:
    spoken = [e.words for e in examples if e.words]
    if not spoken:
        return None
    return {
        "examples": len(spoken),
        "count": _spread([len(words) for words in spoken]),
        "first": " ".join(spoken[0][:_EXAMPLE_WORDS]) + (" …" if len(spoken[0]) > _EXAMPLE_WORDS else ""),
    }


def _spread(counts: Sequence[int]) -> dict[str, float] | None:
    if not counts:
        return None
    return {"min": min(counts), "median": float(np.median(counts)), "max": max(counts)}


def _sentiment(labels: Sequence[float]) -> dict[str, Any] | None:
    values = np.array(labels)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {"examples": len(values), "not_finite": len(values)} if len(values) else None
    low, high = np.floor(finite.min()), np.ceil(finite.max())
    if _WHOLE_STEPS[0] <= high - low <= _WHOLE_STEPS[1]:
        edges = np.arange(low, high + 2) - 0.5
        # As the metrics round: half to even.
        counts = np.histogram(np.round(finite), edges)[0]
    else:
        counts, edges = np.histogram(finite, _PARTS, (low, max(high, low + 1.0)))
    return {
        "examples": len(values),
        "not_finite": int(len(values) - len(finite)),
        "min": float(finite.min()),
        "max": float(finite.max()),
        "mean": float(finite.mean()),
        "histogram": [
            {"from": float(a), "to": float(b), "examples": int(n)}
            for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
        ],
    }


def _emotions(examples: Sequence[Example]) -> dict[str, int] | None:
    counts = Counter(e.emotion for e in examples if e.emotion is not None)
    return {name: counts[i] for i, name in enumerate(EMOTIONS)} if counts else None


def hints(summary: dict[str, Any]) -> list[str]:
    """What somebody who wants to train on it should know."""
    found = []
    labels = summary["sentiment"]
    if labels and labels["not_finite"]:
        found.append(
            f"{labels['not_finite']} labels are NaN or infinite: training refuses them; mend or remove them"
        )
    if labels and "min" in labels:
        low, high = labels["min"], labels["max"]
        limit = SENTIMENT_LIMIT
        if low < -limit or high > limit:
            found.append(
                f"labels are not on [{-limit:g}, {limit:g}]: pass the range of their scale to train, such as "
                f"--label-range {np.floor(low):g} {np.ceil(high):g}"
            )
        elif low >= -1.0 and high <= 1.0 and low < high:
            found.append(
                f"labels stay within [-1, 1]: if their scale ends there, pass --label-range "
                f"{np.floor(low):g} 1"
            )
    if not labels and not summary["emotions"]:
        found.append("there are no labels: nothing can be learnt from it")
    if not {"train", "valid"} <= set(summary["splits"]):
        found.append(
            f"there are no splits train and valid: the last {VALID_SHARE:.0%} of the rows will be held out; "
            f"--valid-share and --folds do it otherwise"
        )
    if summary["words"] and "text" not in summary["modalities"]:
        found.append("text is words: a text encoder makes rows of them in training")
    return found


def report(summary: dict[str, Any]) -> str:
    """For people."""
    total = sum(split["examples"] for split in summary["splits"].values())
    lines = [f"{summary['name']}: {summary['format']}, {total} examples", ""]
    lines += [f"{'split':<10}{'examples':>10}{'sentiment':>11}{'emotion':>9}{'groups':>8}"]
    for name, split in summary["splits"].items():
        lines.append(
            f"{name:<10}{split['examples']:>10}{_dash(split['sentiment']):>11}"
            f"{_dash(split['emotion']):>9}{_dash(split['groups']):>8}"
        )
    if summary["modalities"]:
        lines += ["", f"{'modality':<10}{'features':>10}   steps: min  median  max    absent  made 0"]
        for name, found in summary["modalities"].items():
            lines.append(
                f"{name:<10}{found['features']:>10}{_triple(found['steps'], 13, 8, 5)}"
                f"{found['absent']:>10.1%}{_dash(found['cleared']):>8}"
            )
    if words := summary["words"]:
        lines += ["", f"words     {words['examples']} examples have them;{_triple(words['count'], 4, 6, 6)}"]
        lines.append(f"          “{words['first']}”")
    if labels := summary["sentiment"]:
        lines += ["", *_label_lines(labels)]
    if emotions := summary["emotions"]:
        lines += ["", "emotion", *_bars(list(emotions), list(emotions.values()))]
    lines += [""] if summary["notes"] or summary["hints"] else []
    lines += [f"note: {note}" for note in summary["notes"]]
    lines += [f"hint: {hint}" for hint in summary["hints"]]
    return "\n".join(lines) + "\n"


def _label_lines(labels: dict[str, Any]) -> list[str]:
    if "min" not in labels:
        return [f"sentiment  all {labels['examples']} labels are NaN or infinite"]
    bins = labels["histogram"]
    whole = bins[0]["to"] - bins[0]["from"] == 1.0 and bins[0]["from"] % 1.0 == 0.5
    names = [f"{b['from'] + 0.5:g}" if whole else f"{b['from']:.2f} to {b['to']:.2f}" for b in bins]
    return [
        f"sentiment  {labels['min']:g} to {labels['max']:g}, mean {round(labels['mean'], 3) + 0.0:.3f}",
        *_bars(names, [b["examples"] for b in bins]),
    ]


def _bars(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    width, most = max(map(len, names)), max(*counts, 1)
    lines = []
    for name, count in zip(names, counts, strict=True):
        eighths = round(count / most * BAR_WIDTH * 8)
        bar = _EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        lines.append(f"  {name:>{width}}  {bar:<{BAR_WIDTH}} {count}")
    return lines


def _dash(count: int) -> str:
    return str(count) if count else "–"


def _triple(spread: dict[str, float] | None, *columns: int) -> str:
    shown = ("–",) * 3 if spread is None else tuple(f"{v:g}" for v in spread.values())
    return "".join(f"{value:>{width}}" for value, width in zip(shown, columns, strict=True))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        metavar="PATH",
        nargs="+",
        help="MMSA or MulT pickle, .csd files or their folder, .npz file, or CSV of sentences or raw clips",
    )
    add_label_options(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def _run(args: argparse.Namespace) -> int:
    require("torch", "train")
    from affectrt_training.data.assemble import Reading
    from affectrt_training.data.cleaning import to_sentiment_scale
    from affectrt_training.data.readers import read_as_is

    unchosen = []
    try:
        dataset = read_as_is(args.data, Reading(args.label, media=False))
    except AffectError as error:
        if error.code not in ("data.label_column", "data.keys") or args.label is not None:
            raise
        # What is wrong with the labels alone shouldn't hide the rest.
        dataset = read_as_is(args.data, Reading(strict=False, media=False))
        unchosen.append(error.message)
    if args.label_range:
        dataset = to_sentiment_scale(dataset, (args.label_range[0], args.label_range[1]))
    summary = summarise(dataset)
    summary["hints"] = unchosen or []
    summary["hints"] += [hint for hint in hints(summary) if not (unchosen and "no labels" in hint)]
    if args.json:
        json.dump(summary, sys.stdout, indent=1, ensure_ascii=False, allow_nan=False)
        print()
    else:
        print(report(summary), end="")
    return 0


COMMAND = Command(
    summary="Tell what a data set holds: splits, features, lengths, labels.",
    add_arguments=_add_arguments,
    run=_run,
    examples="""\
examples:
  affectrt describe unaligned_50.pkl
  affectrt describe reviews.npz --label-range 1 7
  affectrt describe train=part1.npz valid=part2.npz --json
""",
)
