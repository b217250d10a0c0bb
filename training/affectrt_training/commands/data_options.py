"""Which data a command works on: options shared by all that read data sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from affectrt.errors import AffectError

if TYPE_CHECKING:
    from affectrt_training.data.dataset import Dataset

VALID_SHARE = 0.2
"""What is held out of a data set that has no split ``valid``."""


def add_data_options(
    parser: argparse.ArgumentParser, *, required: bool = True, splitting: bool = True, alias: str = "--data"
) -> None:
    """``--data``, by another name too, and how to read it; with ``splitting`` also how to split it."""
    parser.add_argument(
        *dict.fromkeys(["--data", alias]),
        metavar="PATH",
        nargs="+",
        required=required,
        help="MMSA or MulT pickle, .csd files or their folder, .npz file, or CSV of sentences or raw clips; "
        "several files are put together, SPLIT=PATH puts one into a split",
    )
    add_label_options(parser)
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where computed features are kept (default: the user's cache)",
    )
    if not splitting:
        return
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--folds", type=_from_two, metavar="K", help="cut the rows into K blocks, for cross-validation"
    )
    ways.add_argument(
        "--valid-share",
        type=_share,
        metavar="S",
        help=f"hold out the last S of the rows as valid (default: {VALID_SHARE:g} where there is none)",
    )
    parser.add_argument("--fold", type=int, metavar="I", help="which block is valid, from 1 to K")


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """``--label-range`` and ``--label``."""
    parser.add_argument(
        "--label-range",
        nargs=2,
        type=float,
        metavar=("LO", "HI"),
        help="scale of the sentiment labels, mapped to [-3, 3] (default: they are on it)",
    )
    parser.add_argument(
        "--label", metavar="NAME|INDEX", help="name or column of the sentiment label, where there are several"
    )


def read_data(args: argparse.Namespace) -> Dataset:
    """The data set as its source splits it. Raises as :func:`affectrt_training.data.readers.read_dataset`."""
    from affectrt.errors import require

    require("torch", "train")
    from affectrt_training.data.readers import read_dataset

    return read_dataset(
        args.data,
        label_range=tuple(args.label_range) if args.label_range else None,
        label=args.label,
        cache=args.cache,
    )


def load_dataset(args: argparse.Namespace) -> Dataset:
    """The data set with splits ``train`` and ``valid``, made as asked where the source has none.

    Raises as :func:`read_data`, ``cli.usage``, ``data.folds`` and ``data.share``.
    """
    if (args.folds is None) != (args.fold is None):
        raise AffectError("cli.usage", "--folds K and --fold I go together: expected both or none")
    if args.folds is not None and not 1 <= args.fold <= args.folds:
        raise AffectError("cli.usage", f"--fold: expected a number from 1 to {args.folds}, got {args.fold}")
    dataset = read_data(args)
    from affectrt_training.data.splits import hold_out, k_folds

    if args.folds is not None:
        valid: int = args.fold - 1
        return k_folds(dataset, args.folds)[valid]
    if args.valid_share is not None:
        return hold_out(dataset, args.valid_share)
    return dataset if {"train", "valid"} <= set(dataset.splits) else hold_out(dataset, VALID_SHARE)


def _from_two(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 2:
        raise argparse.ArgumentTypeError(f"expected a number from 2, got '{text}'")
    return number


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, got '{text}'")
    return value
