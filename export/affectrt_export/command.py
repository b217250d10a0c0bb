"""``affectrt export``: trained weights → a model bundle, or a reason why not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from affectrt.cli import Command
from affectrt.errors import AffectError, require

if TYPE_CHECKING:
    from affectrt_export.package import ExportReport


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", choices=["starter"], help="what to export")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("starter.affect"),
        metavar="FILE",
        help="the bundle (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="other weights than those that come with AffectRT (.safetensors)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="measure what int8 costs on CMU-MOSI's validation split in this folder, instead of verifying "
        "that the recorded measurement is of this very encoder; docs/training.md says what lies in it",
    )
    parser.add_argument(
        "--record-gate",
        action="store_true",
        help="write that measurement into the weights' sidecar (with --data)",
    )


def _run(args: argparse.Namespace) -> int:
    if args.record_gate and args.data is None:
        raise AffectError("cli.usage", "--record-gate records a measurement, which needs --data DIR")
    for module in ("torch", "transformers", "peft", "onnx", "onnxscript", "onnxruntime"):
        require(module, "export")
    from affectrt_export.gate import META_KEY
    from affectrt_export.package import export_starter
    from affectrt_export.progress import shown
    from affectrt_training.recipes.starter.weights import COMMITTED, load_starter, write_meta

    stages = shown()
    with stages("weights → PyTorch"):
        starter = load_starter(args.weights)
    report = export_starter(starter, args.output, data=args.data, stages=stages)
    _print(report)
    if args.record_gate:
        path = args.weights or COMMITTED
        write_meta({**starter.meta, META_KEY: report.gate.to_dict()}, path)
        print(f"recorded the int8 gate in {path.with_suffix('.json')}")
    return 0


def _print(report: ExportReport) -> None:
    size = report.path.stat().st_size
    print(f"{report.path}  {size / 1e6:.1f} MB")
    for graph, difference in report.largest_difference.items():
        size = report.manifest.members[f"{graph}.onnx"].bytes
        precision = report.manifest.precision[graph]
        print(
            f"  {graph:<7} {precision}  {size / 1e6:5.1f} MB  fp32 graph within {difference:.1e} of PyTorch"
        )
    gate = report.gate
    how = (
        "measured now"
        if report.probe_difference is None
        else f"recorded; same encoder within {report.probe_difference:.4f} on the probe sentences"
    )
    print(
        f"  int8    MAE on CMU-MOSI valid {gate.mosi_valid_mae_fp32:.4f} → {gate.mosi_valid_mae_int8:.4f} "
        f"({gate.cost:+.2%}; {how}), token cosine {report.token_cosine:.4f}"
    )


COMMAND = Command(
    summary="turn trained weights into a model bundle, or say why they can't be trusted",
    add_arguments=_add_arguments,
    run=_run,
    examples="""examples:
  affectrt export starter -o starter.affect
  affectrt export starter --data ~/affect-data --record-gate     # after training
""",
)
