"""``affectrt train``: any system on any data set, or a recipe from data to weights."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from affectrt.cli import Command
from affectrt.errors import AffectError, require
from affectrt_training.commands.data_options import add_data_options, load_dataset
from affectrt_training.commands.runs import RUNS, text_cache
from affectrt_training.commands.scores import report
from affectrt_training.models.registry import SYSTEMS, find_system
from affectrt_training.recipes.starter import STAGES

DATA_VARIABLE = "AFFECTRT_DATA"
"""Environment variable: the folder of the data sets that recipes read, unless ``--data`` names it."""

Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Recipe:
    """A fixed way from data sets to weights."""

    summary: str
    run: Callable[[argparse.Namespace, Path], None]
    """Called with the options and the folder of the data sets."""


def _starter(args: argparse.Namespace, data: Path) -> None:
    from affectrt_training.recipes.starter.recipe import StarterRecipe, train_starter

    runs = args.runs or RUNS / "starter"
    weights = args.output or RUNS / "starter" / "starter.safetensors"
    recipe = StarterRecipe(seed=args.seed or 0)
    _print_scores(train_starter(data, runs, weights, recipe, restart=args.restart, keep=args.keep))
    print(f"weights: {weights}")
    print(f"next: affectrt export starter --weights {weights} --data {data} --record-gate -o starter.affect")


def _mosi_text(args: argparse.Namespace, data: Path) -> None:
    from affectrt_training.recipes.mosi_text.recipe import train_mosi_text

    folder = args.output or RUNS / "mosi-text"
    _print_scores(train_mosi_text(data, folder, args.seed or 0))
    print(f"run: {folder}")
    print(f"next: affectrt evaluate {folder} --manifest test.csv")


RECIPES: Mapping[str, Recipe] = {
    "starter": Recipe("the three encoders and the two fusion models of starter.affect", _starter),
    "mosi-text": Recipe("CMU-MOSI's sentiment from words alone", _mosi_text),
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("system", nargs="?", metavar="NAME", help=f"the system to train: {', '.join(SYSTEMS)}")
    what.add_argument(
        "--recipe",
        choices=RECIPES,
        help="or what to train by recipe; --data is then the folder of the data sets "
        f"(default: ${DATA_VARIABLE}), docs/starter.md says what lies in it",
    )
    add_data_options(parser, required=False)
    parser.add_argument("--config", type=Path, metavar="run.yaml", help="settings of the run")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings on top of that, such as training.lr=3e-4 model.hidden_dim=40 text.tuning=lora",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="same as --set training.seed=N (default: 0)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PATH", help=f"the run's folder (default: {RUNS}/NAME)"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with a run that was interrupted")
    again.add_argument("--overwrite", action="store_true", help="replace a run that is already there")
    starter = parser.add_argument_group("of the recipe starter")
    starter.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        help="where stages keep their best weights; those found are not trained again "
        f"(default: {RUNS / 'starter'})",
    )
    starter.add_argument(
        "--restart",
        nargs="+",
        choices=STAGES,
        default=[],
        metavar="STAGE",
        help=f"train these stages again: {', '.join(STAGES)}",
    )
    starter.add_argument(
        "--keep",
        type=Path,
        metavar="WEIGHTS",
        help="weights.safetensors of an earlier run, or the shipped ones: every stage that they hold is "
        "taken from them, unless --restart names it",
    )


def _run(args: argparse.Namespace) -> int:
    if args.recipe is not None:
        _train_recipe(args)
    else:
        _train_system(args)
    return 0


def _train_recipe(args: argparse.Namespace) -> None:
    if args.config or args.set or args.resume or args.overwrite:
        raise AffectError(
            "cli.usage",
            "--config, --set, --resume and --overwrite go with NAME: a recipe has its settings and resumes "
            "by itself",
        )
    given = args.data[0] if args.data else os.environ.get(DATA_VARIABLE)
    if given is None or len(args.data or [given]) != 1:
        raise AffectError(
            "train.no_data",
            f"recipes need the folder of their data sets: pass --data DIR or set {DATA_VARIABLE}; see "
            f"docs/starter.md",
        )
    _require_libraries()
    RECIPES[args.recipe].run(args, Path(given))


def _train_system(args: argparse.Namespace) -> None:
    if args.restart or args.runs or args.keep:
        raise AffectError("cli.usage", "--restart, --runs and --keep go with --recipe starter")
    from affectrt_training.config import build, read_settings

    settings = read_settings(args.config, args.set)
    if args.system is not None and settings.setdefault("system", args.system) != args.system:
        raise AffectError(
            "cli.usage", f"NAME is {args.system}, the settings say system: {settings['system']}; give one"
        )
    if "system" not in settings:
        raise AffectError(
            "cli.usage",
            f"expected NAME or --recipe; systems: {', '.join(SYSTEMS)}; recipes: {', '.join(RECIPES)}",
        )
    if args.seed is not None:
        training = settings.setdefault("training", {})
        if isinstance(training, dict):
            training["seed"] = args.seed
    name = str(settings["system"])
    find_system(name)
    if not args.data:
        raise AffectError("train.no_data", "training needs data: pass --data PATH")
    _require_libraries()
    from affectrt_training.fit.run import fit_run, is_main
    from affectrt_training.fit.settings import RunConfig

    config = build(RunConfig, settings, where="settings")
    # What it lacks in widths comes from the data; all else can be refused before these are read.
    build(find_system(name).load().Config, config.model, where="settings.model")
    folder: Path = args.output or RUNS / name
    if is_main():
        _check_folder(folder, replaced=args.resume or args.overwrite)
    dataset = load_dataset(args)
    fitted = fit_run(config, dataset, folder, resume=args.resume, cache=text_cache(args.cache))
    if not is_main():
        return
    epochs = f"epoch {fitted.best_epoch} of {len(fitted.history)}"
    print(report(fitted.metrics, f"{name} on {dataset.name}, split valid, {epochs}"))
    print(f"run: {folder}")
    print(f"next: affectrt evaluate {folder} --data {' '.join(args.data)}")
    print(f"      affectrt export {folder} --data {' '.join(args.data)}")


def _check_folder(folder: Path, *, replaced: bool) -> None:
    from affectrt_training.fit.checkpoint import CONFIG, is_finished

    if not replaced and (folder / CONFIG).exists():
        done = is_finished(folder)
        raise AffectError(
            "train.exists",
            f"{folder}: there is {'a finished' if done else 'an interrupted'} run; "
            + ("" if done else "--resume goes on with it, ")
            + "--overwrite replaces it, -o names another folder",
        )


def _require_libraries() -> None:
    for module in ("torch", "lightning", "peft", "transformers", "safetensors"):
        require(module, "train")


def _print_scores(scores: Scores) -> None:
    width = max(map(len, scores), default=0)
    for name, found in scores.items():
        print(f"{name:<{width}}  " + "  ".join(f"{metric} {value:.3f}" for metric, value in found.items()))


_RECIPE_TABLE = "\n".join(f"  {name:<12} {recipe.summary}" for name, recipe in RECIPES.items())

COMMAND = Command(
    summary="Train a system on data, or a model by recipe.",
    add_arguments=_add_arguments,
    run=_run,
    examples=f"""\
A run's folder holds config.json, model.safetensors (the best epoch's weights), calibration.json, metrics.json
and metrics.csv.
'affectrt systems' says what NAME can be, 'affectrt describe' what a file of data holds. Recipes:
{_RECIPE_TABLE}

examples:
  affectrt train ghrnn-cma --data mosi.pkl
  affectrt train mulg --data pom.npz --label-range 1 7 --set training.lr=3e-4 model.layers=1 -o runs/small
  affectrt train mulg --data pom.npz --label-range 1 7 --resume          # after a power cut
  affectrt train --recipe starter --data ~/affect-data  # an hour or two on two cores; resumes by itself
  affectrt train --recipe starter --restart fusion      # again, and what learns from it
  affectrt train --recipe starter --keep old.safetensors --restart causal -o new.safetensors
""",
)
