"""``affectrt compare``: which system is best on these data, and by more than luck?"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from affectrt.cli import Command
from affectrt.errors import AffectError, require
from affectrt_training.commands.data_options import add_data_options, load_dataset, read_data
from affectrt_training.config import build, read_settings

if TYPE_CHECKING:
    from affectrt.affect import Modality
    from affectrt_training.data.dataset import Dataset
    from affectrt_training.evaluation.plan import Entry
    from affectrt_training.fit.settings import RunConfig

BUDGET = {"epochs": 24, "patience": 6}
"""Of each training where neither --config nor --set says otherwise: many small trainings, not a long one."""

STRESSED = ("ghrnn-cma", "mulg")
"""Whose answers to missing and noisy modalities are measured where --robustness doesn't say."""

DATA_VARIABLE = "AFFECTRT_DATA"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_options(parser)
    parser.add_argument(
        "--models",
        default="all",
        metavar="A,B,…",
        help="which systems, by name; 'affectrt systems' lists them (default: all)",
    )
    parser.add_argument(
        "--seeds", type=_positive, default=5, metavar="N", help="trainings of each on each fold (default: 5)"
    )
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="settings of all rows")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings of all rows"
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="'SYSTEM …: KEY=VALUE …'",
        help="one more row, of that system with other settings; its name is what stands before the colon",
    )
    parser.add_argument(
        "--robustness",
        nargs="*",
        metavar="SYSTEM",
        help=f"measure these with modalities missing and noisy (default: {' '.join(STRESSED)})",
    )
    parser.add_argument(
        "--trained-without",
        action="store_true",
        help="one more row for each of those and each modality, trained without it",
    )
    parser.add_argument(
        "--jobs",
        type=_positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="trainings at a time, each on one core (default: one per core)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the report"
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="where finished trainings are kept, so that a run that was stopped goes on (default: DIR/work)",
    )


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got '{text}'")
    return number


def entries_of(args: argparse.Namespace, dataset: Dataset) -> list[Entry]:
    """The rows that were asked for: systems, their variants, and those trained without a modality.

    Raises ``model.unknown``, ``compare.variant``, ``compare.models`` and what wrong settings raise.
    """
    from affectrt_training.evaluation.plan import Entry, without_each
    from affectrt_training.models.registry import SYSTEMS, find_system

    names = list(SYSTEMS) if args.models == "all" else args.models.replace(",", " ").split()
    systems = {name: find_system(name) for name in names}
    stressed = STRESSED if args.robustness is None else tuple(args.robustness)
    if args.robustness and (absent := [name for name in stressed if name not in systems]):
        raise AffectError(
            "compare.models", f"--robustness: expected some of --models ({', '.join(names)}), got {absent[0]}"
        )
    rows = [
        Entry(
            name,
            _config(args, name, []),
            system.kind,
            stressed=name in stressed,
        )
        for name, system in systems.items()
    ]
    by_name = {row.label: row for row in rows}
    for text in args.variant:
        label, system_name, changes = parse_variant(text)
        kept = [change for change in changes if change.startswith("modalities=")]
        row = Entry(
            label,
            _config(args, system_name, [c for c in changes if c not in kept]),
            "variant",
            base=system_name,
        )
        rows.append(replace(row, modalities=_modalities(kept[-1])) if kept else row)
    if args.trained_without:
        for name in stressed:
            if name in by_name:
                rows += without_each(by_name[name], dataset)
    return rows


def parse_variant(text: str) -> tuple[str, str, list[str]]:
    """``"mulg no attention: model.attention=none"`` → its name, its system, its changes.

    Raises ``compare.variant``, ``model.unknown``.
    """
    from affectrt_training.models.registry import find_system

    label, colon, changes = (part.strip() for part in text.partition(":"))
    if not colon or not changes or len(label.split()) < 2:
        raise AffectError(
            "compare.variant",
            "--variant: expected a system, what is other about it, a colon and settings, such as "
            f"'mulg no attention: model.attention=none', got '{text}'",
        )
    return label, find_system(label.split()[0]).name, changes.split()


def _config(args: argparse.Namespace, system: str, changes: Sequence[str]) -> RunConfig:
    from affectrt_training.fit.settings import RunConfig

    settings = read_settings(args.config, [*args.set, *changes])
    training = settings.get("training", {})
    if isinstance(training, Mapping):
        settings["training"] = {**BUDGET, **training}
    return build(RunConfig, {**settings, "system": system}, where="settings")


def _modalities(change: str) -> tuple[Modality, ...]:
    from affectrt.affect import MODALITIES

    wanted = change.partition("=")[2].split("+")
    if not set(wanted) <= set(MODALITIES):
        raise AffectError(
            "compare.variant",
            f"--variant: expected modalities= some of {', '.join(MODALITIES)} joined by +, got '{change}'",
        )
    return tuple(m for m in MODALITIES if m in wanted)


def _run(args: argparse.Namespace) -> int:
    for module in ("torch", "lightning", "safetensors", "scipy"):
        require(module, "train")
    require("matplotlib", "plot")
    if args.fold is not None:
        raise AffectError("cli.usage", "--fold: a comparison holds out every fold in turn; leave it out")
    from affectrt_training.evaluation.compare import Protocol, compare
    from affectrt_training.evaluation.report import write_report
    from affectrt_training.evaluation.sections import results

    dataset = load_dataset(args) if args.folds is None else read_data(args)
    entries = entries_of(args, dataset)
    protocol = Protocol(args.folds, range(args.seeds), args.jobs, args.cache)
    args.output.mkdir(parents=True, exist_ok=True)
    comparison = compare(dataset, entries, protocol, args.work or args.output / "work")
    command = shlex.join(["affectrt", *sys.argv[1:]])
    comparison = replace(comparison, about={**comparison.about, "command": command})
    files = write_report(comparison, args.output, without_paths)
    print(results(comparison))
    print("\n" + "\n".join(map(str, files)))
    return 0


def without_paths(text: str) -> str:
    """What a report says of data, without where they lie on this machine."""
    for path, name in ((os.environ.get(DATA_VARIABLE), f"${DATA_VARIABLE}"), (str(Path.home()), "~")):
        if path and len(path) > 1:
            text = text.replace(path.rstrip("/"), name)
    return text


COMMAND = Command(
    summary="Train systems side by side on the same data, and report which is best beyond luck.",
    add_arguments=_add_arguments,
    run=_run,
    examples="""\
Every row sees the same folds, features and seeds. Finished trainings are kept: the same command again goes
on where it stopped, and more --models or --seeds train only what is new. The folder of the report then
holds report.md, report.json and pictures.

examples:
  affectrt compare --data pom_trimodal.npz --label-range 1 7 --folds 5 --set text.rows=window -o results/pom
  affectrt compare --data mosi.pkl --models ghrnn-cma,mulg,mult --seeds 3 --trained-without -o results/mosi
  affectrt compare --data mosi.pkl --models mulg --variant 'mulg no attention: model.attention=none' \\
      --variant 'mulg text alone: modalities=text' -o results/mulg
""",
)
