"""``affectrt train``: recipes that turn data into weights."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from affectrt.cli import Command
from affectrt.errors import AffectError, require
from affectrt_training.recipes.starter import STAGES

DATA_VARIABLE = "AFFECTRT_DATA"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", choices=["starter"], help="what to train")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help=f"folder of the data sets (default: ${DATA_VARIABLE}); docs/training.md says what lies in it",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/starter"),
        metavar="DIR",
        help="where stages keep their best weights; those found are not trained again (default: %(default)s)",
    )
    parser.add_argument(
        "--restart",
        nargs="+",
        choices=STAGES,
        default=[],
        metavar="STAGE",
        help=f"train these stages again: {', '.join(STAGES)}",
    )
    parser.add_argument("--seed", type=int, default=0, help="seeds every stage (default: %(default)s)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("runs/starter/starter.safetensors"),
        metavar="FILE",
        help="the weights, with a .json sidecar (default: %(default)s)",
    )


def _run(args: argparse.Namespace) -> int:
    data = args.data or (Path(os.environ[DATA_VARIABLE]) if DATA_VARIABLE in os.environ else None)
    if data is None:
        raise AffectError(
            "train.no_data",
            f"training needs data: pass --data DIR or set {DATA_VARIABLE}; see docs/training.md",
        )
    for module in ("torch", "lightning", "peft", "transformers", "safetensors"):
        require(module, "train")
    from affectrt_training.recipes.starter.recipe import StarterRecipe, train_starter

    scores = train_starter(data, args.runs, args.output, StarterRecipe(seed=args.seed), restart=args.restart)
    width = max(map(len, scores))
    for name, found in scores.items():
        print(f"{name:<{width}}  " + "  ".join(f"{metric} {value:.3f}" for metric, value in found.items()))
    print(f"weights: {args.output}")
    print(
        f"next: affectrt export starter --weights {args.output} --data {data} --record-gate -o starter.affect"
    )
    return 0


COMMAND = Command(
    summary="Train a model from data.",
    add_arguments=_add_arguments,
    run=_run,
    examples="""examples:
  affectrt train starter --data ~/affect-data          # an hour or two on two cores; resumes by itself
  affectrt train starter --restart fusion              # only the last stage again
""",
)
