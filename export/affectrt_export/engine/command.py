"""``affectrt build-engine``: a bundle → TensorRT engines for the GPU of this very machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from affectrt.affect import Modality
from affectrt.cli import Command
from affectrt.errors import AffectError, require


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the model, a .affect file")
    parser.add_argument(
        "--precision",
        choices=["fp32", "tf32"],
        default="fp32",
        help="how products of 32-bit numbers are computed: exactly, or faster from their leading 19 bits "
        "(default: %(default)s). Whether numbers have 32, 16 or 8 bits is the bundle's: affectrt export",
    )
    parser.add_argument(
        "--max-text",
        type=float,
        metavar="N",
        help="longest text: tokens (default: all that its encoder takes), or words where the bundle's rows "
        "are made of words (default: those of 500 rows)",
    )
    parser.add_argument(
        "--max-audio", type=float, metavar="N", help="longest window of sound: seconds (default: 20)"
    )
    parser.add_argument(
        "--max-vision",
        type=float,
        metavar="N",
        help="most faces in a window (default: those of 20 s). Where an application makes the features "
        "itself, N of these three is a number of rows (default: 500)",
    )
    parser.add_argument(
        "--workspace", type=int, metavar="MIB", help="scratch memory per operator (default: what the GPU has)"
    )
    parser.add_argument(
        "--version-compatible",
        action="store_true",
        help="engines that later versions of TensorRT read, too; larger, and they bring code",
    )
    parser.add_argument(
        "--kernels",
        type=Path,
        metavar="DIR",
        help="run the fusion model's recurrence as the kernel that 'python -m affectrt_kernels.aot' compiled "
        "into DIR, instead of TensorRT's loop (TensorRT 10.9 or later, models ghrnn-cma)",
    )
    parser.add_argument("--rebuild", action="store_true", help="build what is in the cache, too")


def _run(args: argparse.Namespace) -> int:
    if args.workspace is not None and not 1 <= args.workspace <= 1 << 20:
        raise AffectError("cli.usage", f"--workspace: expected 1 to {1 << 20} MiB, got {args.workspace}")
    from affectrt.bundle import Bundle
    from affectrt_export.engine.profile import profiles

    bundle = Bundle.open(args.bundle)
    most: dict[Modality, float | None] = {
        "text": args.max_text,
        "audio": args.max_audio,
        "vision": args.max_vision,
    }
    shapes = profiles(bundle.manifest, most)
    for library in ("tensorrt", "cuda.bindings.runtime", "rich.progress"):
        require(library, "tensorrt")
    from affectrt.backends.gpu import find_gpu
    from affectrt_export.engine.build import Options
    from affectrt_export.engine.engines import bars, build_engines
    from affectrt_export.engine.kernels import read_kernels

    kernels = {} if args.kernels is None else read_kernels(args.kernels, find_gpu().compute_capability)
    options = Options(args.precision, args.workspace, args.version_compatible)
    for built in build_engines(bundle, shapes, options, kernels, rebuild=args.rebuild, show=bars):
        took = "was there" if built.seconds is None else f"{built.seconds:.1f} s ({built.reason})"
        print(f"{built.graph:<7} {built.bytes / 1e6:7.1f} MB  {took}")
    print(f"in {built.path.parent}; compare them with the other backends: affectrt doctor {args.bundle}")
    return 0


COMMAND = Command(
    summary="Build TensorRT engines of a bundle for the GPU of this machine.",
    add_arguments=_add_arguments,
    run=_run,
    examples="""\
Engines are kept in the user's cache folder. They run only with the bundle, GPU, driver and TensorRT that they
were built with; after a change of any, this command builds them again. A timing cache beside them makes
that faster. docs/tensorrt.md has more.

examples:
  affectrt build-engine mosi.affect
  affectrt build-engine mosi.affect --max-text 64 --max-audio 10 --workspace 512     # a small Jetson
  affectrt build-engine mosi.affect --precision tf32 --rebuild
  affectrt build-engine mosi.affect --kernels build/orin
""",
)
