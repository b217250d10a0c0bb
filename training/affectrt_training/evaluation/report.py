"""A comparison as Markdown that a paper could print, with its pictures and its figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from affectrt_training.evaluation.conclusion import Comparison
from affectrt_training.evaluation.plan import SYSTEMS_THEMSELVES
from affectrt_training.evaluation.plots import (
    attention_png,
    confusion_png,
    curves_png,
    scores_png,
    subsets_png,
)
from affectrt_training.evaluation.sections import (
    best_row,
    confidence,
    costs,
    results,
    robustness,
    significance,
    variants,
    verdicts,
)
from affectrt_training.fit.storage import write_bytes


def write_report(comparison: Comparison, folder: Path, clean: Callable[[str], str] = str) -> list[Path]:
    """Write ``report.md``, ``report.json`` and pictures; returns their paths.

    ``clean`` takes what is one machine's alone, its paths, out of the texts.
    """
    pictures: dict[str, bytes] = {"scores.png": scores_png(comparison)}
    main = {row.label: row for row in comparison.rows if row.kind in SYSTEMS_THEMSELVES}
    shown = dict.fromkeys([best_row(comparison).label, comparison.reference])
    pictures["confusion.png"] = confusion_png([main[label] for label in shown])
    for kind in dict.fromkeys(curve.kind for curve in comparison.curves):
        pictures[f"{kind}.png"] = curves_png(comparison, kind)
    if comparison.subsets:
        pictures["modalities.png"] = subsets_png(comparison)
    for label, attention in comparison.attention.items():
        title = f"{label}, example {attention.example}"
        pictures[f"attention-{label}.png"] = attention_png(attention, title)
    text = markdown(comparison, list(pictures))
    everything = asdict(comparison)
    for attention_json in everything["attention"].values():
        attention_json["weights"] = [w.round(4).tolist() for w in attention_json["weights"]]
    figures = json.dumps(everything, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    files = {
        "report.md": clean(text).encode(),
        "report.json": clean(figures).encode(),
        **pictures,
    }
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [folder / name for name in files]


def markdown(comparison: Comparison, pictures: Sequence[str]) -> str:
    """The whole report."""
    sections = [
        _head(comparison),
        results(comparison),
        "![scores](scores.png)",
        verdicts(comparison),
        significance(comparison),
        variants(comparison),
        *robustness(comparison, pictures),
        confidence(comparison),
        "## Confusion\n\nShares of each true class in %, over all seeds.\n\n![confusion](confusion.png)",
        *(
            f"## Attention\n\nMean over the heads of the last layer, in one held-out example.\n\n![{p}]({p})"
            for p in pictures
            if p.startswith("attention-")
        ),
        costs(comparison),
        _reproduce(comparison),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(comparison: Comparison) -> str:
    about, protocol = comparison.about, comparison.about["protocol"]
    data = about["data"]
    if protocol["folds"]:
        how = (
            f"{protocol['folds']}-fold by row blocks: each block is held out once; of the other rows the "
            "last fifth, counted round from the held-out block, chooses the epoch. Held-out answers are "
            f"pooled over folds: {protocol['held']} examples a seed."
        )
    else:
        how = (
            f"Trained on train, the epoch chosen on valid, and judged on **the same** valid split "
            f"({protocol['held']} examples): scores flatter a little, all rows alike. No test split was used."
        )
    dims = ", ".join(f"{m} {d}" for m, d in data["dims"].items())
    seeds = len(protocol["seeds"])
    return (
        f"# Comparison on {data['name']}\n\n{how}\n\n"
        f"{seeds} seed{'s' * (seeds != 1)}; mean ± standard deviation over them. All rows see the same "
        f"folds, features (widths: {dims}), seeds and budget. Labels from {data['label_range'][0]:g} to "
        f"{data['label_range'][1]:g} are mapped to −3 to 3, and errors are on that scale."
        + ("\n" if data["notes"] else "")
        + "".join(f"\n- {note}" for note in data["notes"])
    )


def _reproduce(comparison: Comparison) -> str:
    about = comparison.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    hashes = ", ".join(f"`{digest[:16]}`" for digest in about["data"]["sha256"])
    settings = [
        f"- `{row.label}`: `{json.dumps(row.settings['model'])}`"
        for row in comparison.rows
        if row.settings.get("model")
    ]
    shared = next(row.settings for row in comparison.rows)
    common = json.dumps({key: shared[key] for key in ("training", "loss", "text")})
    return (
        f"## Reproduce\n\n```console\n$ {about.get('command', 'affectrt compare')}\n```\n\n"
        f"- {about['date']}, {about['machine']}; {versions}\n"
        f"- SHA-256 of each part's examples, labels and features: {hashes}\n"
        f"- Settings of the first row, seeds replaced: `{common}`\n"
        + "".join(f"{line}\n" for line in settings)
        + "- Everything, every seed's scores too: [report.json](report.json)"
    )
