"""``affectrt export``: trained weights → a model bundle, or a reason why not."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from affectrt.cli import Command
from affectrt.errors import AffectError, require
from affectrt_training.commands.data_options import add_data_options

if TYPE_CHECKING:
    from affectrt.manifest import Manifest
    from affectrt_export.package import ExportReport
    from affectrt_export.run import RunReport

STARTER = "starter"
MAX_DROP = 0.01
DEFAULT_OPSET = 17


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar=f"RUN|{STARTER}",
        help=f"what to export: the folder of a finished run of 'affectrt train', or '{STARTER}'",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the bundle (default: NAME.affect, NAME being that of the run's folder)",
    )
    parser.add_argument(
        "--precision",
        choices=["fp32", "fp16", "int8"],
        help="of the graphs (default: fp32 for a run, int8 for the starter). fp16: products and convolutions "
        "in half precision, the rest in fp32; int8: weights, and activations where that is faster, of which "
        "--calibrate tells the ranges",
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=DEFAULT_OPSET,
        metavar="N",
        help="ONNX operator set of the graphs, 17 to 21 (default: %(default)s, which every runtime reads)",
    )
    parser.add_argument(
        "--max-drop",
        type=_share,
        default=MAX_DROP,
        metavar="SHARE",
        help="by how much the metric may get worse on --data, such as 0.01 or 1%% (default: 1%%)",
    )
    parser.add_argument(
        "--latency",
        action="store_true",
        help="time a window on this machine and write it, with the machine, into the manifest; without, the "
        "same weights and data give the same bytes",
    )
    parser.add_argument(
        "--licence",
        default="",
        metavar="TEXT",
        help="terms of use of a run's weights, given its training data",
    )
    add_data_options(parser, required=False, alias="--calibrate")
    starter = parser.add_argument_group("of the starter, whose --data is the folder of its data sets")
    starter.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="other weights than those that come with AffectRT (.safetensors)",
    )
    starter.add_argument(
        "--record-gate",
        action="store_true",
        help="write what --data measured of int8 into the weights' sidecar",
    )


def _share(text: str) -> float:
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a share such as 0.01 or 1%, got '{text}'")
    return value


def _run(args: argparse.Namespace) -> int:
    starter = args.model == STARTER
    if args.record_gate and args.data is None:
        raise AffectError("cli.usage", "--record-gate records a measurement, which needs --data DIR")
    if not starter and (args.weights or args.record_gate):
        raise AffectError("cli.usage", f"--weights and --record-gate go with '{STARTER}', not with a run")
    if not starter and not Path(args.model).is_dir():
        raise AffectError(
            "export.unknown",
            f"expected '{STARTER}' or the folder of a run, got '{args.model}', where there is none; "
            f"train one: affectrt train NAME --data PATH",
        )
    for module in ("torch", "transformers", "peft", "onnx", "onnxscript", "onnxruntime"):
        require(module, "export")
    if starter:
        _export_starter(args)
    else:
        _export_run(args)
    return 0


def _export_starter(args: argparse.Namespace) -> None:
    from affectrt_export.gate import META_KEY
    from affectrt_export.package import export_starter
    from affectrt_export.progress import shown
    from affectrt_training.recipes.starter.weights import COMMITTED, load_starter, write_meta

    if args.data is not None and len(args.data) != 1:
        raise AffectError("cli.usage", f"'{STARTER}' takes one --data DIR, the folder of its data sets")
    precision = args.precision or "int8"
    if args.data is not None and precision != "int8":
        raise AffectError("cli.usage", f"'{STARTER}' measures int8 on --data; leave it out at {precision}")
    stages = shown()
    with stages("weights → PyTorch"):
        starter = load_starter(args.weights)
    report = export_starter(
        starter,
        args.output or Path(f"{STARTER}.affect"),
        precision=precision,
        opset=args.opset,
        data=None if args.data is None else Path(args.data[0]),
        latency=args.latency,
        stages=stages,
    )
    _print_starter(report)
    if args.record_gate and report.gate is not None:
        path = args.weights or COMMITTED
        write_meta({**starter.meta, META_KEY: report.gate.to_dict()}, path)
        print(f"recorded the int8 gate in {path.with_suffix('.json')}")


def _export_run(args: argparse.Namespace) -> None:
    from affectrt_export.progress import shown
    from affectrt_export.run import export_run
    from affectrt_training.commands.data_options import load_dataset
    from affectrt_training.commands.runs import text_cache
    from affectrt_training.fit.checkpoint import CONFIG
    from affectrt_training.fit.storage import read_json

    folder, stages, dataset = Path(args.model), shown(), None
    if args.data is not None:
        if args.label_range is None:
            # That of the training, as in 'affectrt evaluate'.
            args.label_range = read_json(folder / CONFIG).get("data", {}).get("label_range")
        with stages("data"):
            dataset = load_dataset(args)
    report = export_run(
        folder,
        args.output or Path(f"{folder.resolve().name}.affect"),
        precision=args.precision or "fp32",
        opset=args.opset,
        dataset=dataset,
        max_drop=args.max_drop,
        licence=args.licence,
        cache=text_cache(args.cache),
        latency=args.latency,
        stages=stages,
    )
    _print_run(report)


def _print_run(report: RunReport) -> None:
    _print_graphs(report.path, report.manifest, report.largest_difference, report.half_difference)
    gate = report.gate
    if gate is None:
        print("  no --data: graphs were tried on made-up rows, the task was not measured")
    else:
        print(
            f"  {gate.metric} on {gate.dataset} ({gate.examples} examples): {gate.before:.4f} in PyTorch → "
            f"{gate.after:.4f} as a bundle ({gate.drop:+.2%} worse)"
        )
    if report.kept:
        print(f"  kept in fp32, as the task is sensitive to them: {', '.join(map(str, report.kept))}")


def _print_starter(report: ExportReport) -> None:
    _print_graphs(report.path, report.manifest, report.largest_difference, report.half_difference)
    gate = report.gate
    if gate is None or report.token_cosine is None:
        return
    how = (
        "measured now"
        if report.probe_difference is None
        else f"recorded; same encoder within {report.probe_difference:.4f} on the probe sentences"
    )
    print(
        f"  int8    MAE on CMU-MOSI valid {gate.mosi_valid_mae_fp32:.4f} → {gate.mosi_valid_mae_int8:.4f} "
        f"({gate.cost:+.2%}; {how}), token cosine {report.token_cosine:.4f}"
    )
    print(
        f"          accuracy on FER+ valid {gate.ferplus_valid_accuracy_fp32:.4f} → "
        f"{gate.ferplus_valid_accuracy_int8:.4f}"
    )


def _print_graphs(
    path: Path, manifest: Manifest, differences: Mapping[str, float], halves: Mapping[str, float]
) -> None:
    print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    for graph, difference in differences.items():
        if graph == "causal":  # no graph: its steps
            continue
        size = manifest.members[f"{graph}.onnx"].bytes
        told = f"fp32 graph within {difference:.1e} of PyTorch"
        if graph in halves:
            told += f", fp16 within {halves[graph]:.1e} of that"
        print(f"  {graph:<7} {manifest.precision[graph]}  {size / 1e6:7.3f} MB  {told}")
    if manifest.causal is not None:
        size = manifest.members[manifest.causal.weights].bytes
        print(f"  causal  fp32  {size / 1e6:7.3f} MB  steps within {differences['causal']:.1e} of PyTorch")
    for one in manifest.latency:
        print(f"  {one.window}: {one.p50_ms:.1f} ms (p95 {one.p95_ms:.1f}) on {one.backend}")


COMMAND = Command(
    summary="Turn trained weights into a model bundle, or say why they can't be trusted.",
    add_arguments=_add_arguments,
    run=_run,
    examples="""\
Every graph is compared with PyTorch, over lengths, batches and all patterns of missing modalities, before a
bundle is written; a refusal names the output, the case, the difference and the node where it first appears.
With --data the rows are real, and the metric (MAE, without sentiments weighted F1) is measured on the split
'valid' before and after. --calibrate is another name for it: int8 takes the ranges of activations from the
split 'train', and keeps layers in fp32 when the metric would drop by more than --max-drop. docs/export.md
says more.

examples:
  affectrt export runs/mulg -o mulg.affect
  affectrt export runs/mulg --data mosi.pkl --precision fp16 --max-drop 0.5%
  affectrt export runs/ghrnn-cma --precision int8 --calibrate mosi.pkl -o mosi.affect
  affectrt export runs/mosi-text --licence "research only" && affectrt info mosi-text.affect
  affectrt export starter -o starter.affect
  affectrt export starter --data ~/affect-data --record-gate     # after training
""",
)
