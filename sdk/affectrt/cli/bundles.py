"""Which bundle a command uses when none is named, and what runs it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import get_args

from affectrt.backends.choice import known_backends
from affectrt.errors import AffectError
from affectrt.streaming.mode import StreamMode

BUNDLE_VARIABLE = "AFFECTRT_BUNDLE"
"""Environment variable that names the default bundle."""


def add_bundle_option(parser: argparse.ArgumentParser) -> None:
    """Give a command ``--bundle``."""
    parser.add_argument(
        "--bundle",
        metavar="FILE.affect",
        type=Path,
        help=f"the model (default: ${BUNDLE_VARIABLE}, else starter.affect here, in runs/, or in the user's "
        f"data folder)",
    )


def add_backend_option(parser: argparse.ArgumentParser) -> None:
    """Give a command that loads a bundle ``--backend``, for :func:`affectrt.load`."""
    parser.add_argument(
        "--backend",
        choices=known_backends(),
        help="what runs the model: tensorrt, the engines that 'affectrt build-engine' built here; native, "
        "the C++ that comes with affectrt, which knows fusion of the family ghrnn-cma; onnxruntime, which "
        "runs any model on the CPU but takes affectrt[cpu] and for fusion several times as long; torch, "
        "PyTorch on a workstation; the others are ONNX Runtime on a GPU (default: the first of tensorrt, "
        "native and onnxruntime that can; 'affectrt info BUNDLE' tells)",
    )


def add_mode_option(parser: argparse.ArgumentParser) -> None:
    """Give a command that opens streams ``--mode``, for :meth:`affectrt.model.Model.stream`."""
    parser.add_argument(
        "--mode",
        choices=get_args(StreamMode),
        default="window",
        help="window: every result is computed anew from the last seconds; incremental: the bundle's causal "
        "model carries its state along, which costs less when results come often (default: window)",
    )


def bundle_candidates() -> list[Path]:
    """Where a default bundle may lie, most wanted first."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return [Path("starter.affect"), Path("runs/starter.affect"), data / "affectrt" / "starter.affect"]


def find_bundle(named: Path | None) -> Path:
    """The bundle to use. Raises ``bundle.none`` when none is named and none lies where one could."""
    if named is not None:
        return named
    from_environment = os.environ.get(BUNDLE_VARIABLE)
    if from_environment:
        return Path(from_environment)
    candidates = bundle_candidates()
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise AffectError(
        "bundle.none",
        f"no model: --bundle isn't given, ${BUNDLE_VARIABLE} isn't set, and none of "
        f"{', '.join(map(str, candidates))} exists; make one with: affectrt export starter -o starter.affect",
    )
