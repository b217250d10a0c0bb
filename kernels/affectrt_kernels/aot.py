"""``python -m affectrt_kernels.aot``: the Triton kernels as binaries, made where there is no GPU."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affectrt_kernels.triton_jobs import Job, Shapes

KIB = 1024
PORTABLE_BYTES = 99 * KIB
"""Shared memory that a block may have on every GPU here."""
REGISTERS_PER_BLOCK = 65536
SPILL_FREE_HIDDEN = 128
"""Up to this state size the kernels are built not to spill, so a spill is a fault."""


@dataclass(frozen=True)
class Architecture:
    """What a compute capability allows."""

    shared_bytes: int
    """Per block."""
    ptx_version: int
    """Times ten: the oldest that knows the target, but not below that of CUDA 12.6, which JetPack 6 has."""


ARCHITECTURES = {
    87: Architecture(99 * KIB, 85),  # Jetson Orin
    89: Architecture(99 * KIB, 85),
    90: Architecture(227 * KIB, 85),
    120: Architecture(99 * KIB, 87),
}

EPILOG = """\
Without --bundle the shapes are those of the starter model (recurrences of 64 units, 4 attention heads of 16,
text attending to voice and to face) and of one twice as wide. Kernels come in float32 and float16, forwards
and backwards.

DIR gets sm_NN/KERNEL.cubin, sm_NN/KERNEL.ptx and manifest.json, which says for every kernel what it takes in
which order, how to launch it and what it costs. docs/kernels.md explains its fields.

Exit status: 0 all is well; 1 a kernel exceeds what its architecture allows, one line for each fault; 2 the
call is wrong.

examples:
  python -m affectrt_kernels.aot --arch 87 --out build/orin --bundle starter.affect
  python -m affectrt_kernels.aot --arch 87 89 90 120 --out build/kernels
"""


class Refused(Exception):
    """What the user can mend: says what was expected, what came and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m affectrt_kernels.aot",
        description="Compile the Triton kernels of a model ahead of time. No GPU is needed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--arch",
        type=int,
        nargs="+",
        required=True,
        choices=ARCHITECTURES,
        metavar="NN",
        help=f"compute capabilities, of {', '.join(map(str, ARCHITECTURES))} (87: Jetson Orin, 90: Hopper)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where to write; made if missing"
    )
    parser.add_argument("--bundle", type=Path, metavar="FILE", help="take the shapes of this .affect model")
    args = parser.parse_args(argv)
    try:
        return _run(list(dict.fromkeys(args.arch)), args.out, args.bundle)
    except Refused as error:
        print(f"aot: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\naot: interrupted", file=sys.stderr)
        return 130


def _run(architectures: Sequence[int], out: Path, bundle: Path | None) -> int:
    try:
        import triton

        from affectrt_kernels import triton_jobs
    except ImportError as error:
        raise Refused(
            f"needs torch and triton, got: {error}; pip install 'affectrt[kernels,train]'"
        ) from error
    if triton.knobs.runtime.interpret:
        raise Refused("expected a compiler, got Triton's interpreter; unset TRITON_INTERPRET")
    shapes = _default_shapes() if bundle is None else [bundle_shapes(bundle)]
    jobs = triton_jobs.jobs(shapes)
    try:
        for architecture in architectures:
            (out / f"sm_{architecture}").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(
            f"--out {out}: expected a folder to write to, got: {error.strerror}; name another"
        ) from error

    start = monotonic()
    entries = []
    with _compiler(), _progress(len(jobs) * len(architectures)) as show:
        for architecture in architectures:
            for job in jobs:
                show(f"sm_{architecture} {job.name}")
                entries.append(build(job, architecture, out))
    manifest = {
        "schema": 1,
        "triton": triton.__version__,
        "shapes": [asdict(one) for one in shapes],
        "kernels": entries,
    }
    path = out / "manifest.json"
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for architecture in architectures:
        print(_summary(architecture, [entry for entry in entries if entry["arch"] == architecture]))
    print(f"{path}  {len(entries)} kernels, {monotonic() - start:.0f} s")
    found = [problem for entry in entries for problem in violations(entry)]
    for problem in found:
        print(f"aot: {problem}", file=sys.stderr)
    return 1 if found else 0


def build(job: Job, architecture: int, out: Path) -> dict[str, Any]:
    """Compile one kernel, write its binary and its PTX, and return its entry in the manifest."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = job.kernel.arg_names
    constants = {(names.index(name),): value for name, value in job.constants.items()}
    source = ASTSource(job.kernel, job.signature(), constants, job.attributes())
    options = {**job.options, "ptx_version": ARCHITECTURES[architecture].ptx_version}
    with contextlib.redirect_stdout(io.StringIO()) as log:  # what ptxas -v says
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    ptx: str = compiled.asm["ptx"]
    files = {ending: f"sm_{architecture}/{job.name}.{ending}" for ending in ("cubin", "ptx")}
    (out / files["cubin"]).write_bytes(compiled.asm["cubin"])
    (out / files["ptx"]).write_text(ptx, encoding="utf-8")

    metadata = compiled.metadata
    scratch = [
        {"name": f"{kind}_scratch", "bytes": getattr(metadata, f"{kind}_scratch_size")}
        for kind in ("global", "profile")
    ]
    arguments = job.arguments()
    widths = [".u64" if argument.type.startswith("*") else ".u32" for argument in arguments]
    _expect(ptx, rf"\.entry {metadata.name}\(", "the entry")
    got = re.findall(r"\.param (\.u\d+)", ptx[: ptx.index(".reqntid")])
    if got != [*widths, *[".u64"] * len(scratch)]:
        raise RuntimeError(f"{job.name}: Triton orders arguments in a way not known here: {got}")
    spills = _expect(
        log.getvalue(), r"(\d+) bytes spill stores, (\d+) bytes spill loads", "spills in ptxas' log"
    )
    return {
        "name": job.name,
        "arch": architecture,
        "target": _expect(ptx, r"\.target (\w+)", "the target")[1],
        "ptx_version": _expect(ptx, r"\.version ([\d.]+)", "the version")[1],
        **files,
        "entry": metadata.name,
        "block": [32 * metadata.num_warps, 1, 1],
        "grid": job.grid,
        "arguments": [argument._asdict() for argument in arguments],
        "scratch": scratch,
        "constants": {name: value for name, value in job.constants.items() if value is not None},
        "absent": [name for name, value in job.constants.items() if value is None],
        "registers": int(_expect(log.getvalue(), r"Used (\d+) registers", "registers in ptxas' log")[1]),
        "spill_stores_bytes": int(spills[1]),
        "spill_loads_bytes": int(spills[2]),
        "shared_bytes": metadata.shared,
        "portable": metadata.shared <= PORTABLE_BYTES,
        "may_spill": job.hidden > SPILL_FREE_HIDDEN,
    }


def violations(entry: dict[str, Any]) -> Iterator[str]:
    """What in one entry of the manifest is more than its architecture allows."""
    where = f"sm_{entry['arch']} {entry['name']}"
    allowed = ARCHITECTURES[entry["arch"]].shared_bytes
    if entry["shared_bytes"] > allowed:
        yield f"{where}: shared memory: expected at most {allowed} bytes a block, got {entry['shared_bytes']}"
    registers = -(-entry["registers"] // 8) * 8 * entry["block"][0]  # given out by eights
    if registers > REGISTERS_PER_BLOCK:
        yield f"{where}: registers: expected at most {REGISTERS_PER_BLOCK} a block, got {registers}"
    if not entry["may_spill"] and entry["spill_stores_bytes"] + entry["spill_loads_bytes"]:
        stored, loaded = entry["spill_stores_bytes"], entry["spill_loads_bytes"]
        yield f"{where}: spills: expected none, got {stored} bytes stored and {loaded} loaded"


def _default_shapes() -> list[Shapes]:
    return [_ghrnn_cma(64, 64, 4, windowed=False), _ghrnn_cma(128, 128, 4, windowed=False)]


def _ghrnn_cma(hidden: int, model: int, heads: int, *, windowed: bool) -> Shapes:
    from affectrt_kernels.triton_jobs import Shapes

    return Shapes(hidden, dim=model // heads, row=model, pairs=((0, 1), (0, 2)), windowed=windowed)


def bundle_shapes(path: Path) -> Shapes:
    """What of a bundle's ``manifest.json`` matters here.

    Raises:
        Refused: the file is no bundle, or holds a model that these kernels do not serve.
    """
    remedy = "name a .affect file, as 'affectrt export' writes it"
    try:
        with zipfile.ZipFile(path) as bundle:
            manifest = json.loads(bundle.read("manifest.json"))
        family, config = manifest["family"], manifest["config"]
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise Refused(f"--bundle {path}: expected a model bundle, got: {error}; {remedy}") from error
    if family != "ghrnn-cma":
        raise Refused(f"--bundle {path}: expected a model of the family ghrnn-cma, got {family!r}; {remedy}")
    sizes = {name: config.get(name) for name in ("hidden_dim", "model_dim", "heads")}
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise Refused(
                f"--bundle {path}: {name}: expected an integer of 1 or more, got {value!r}; {remedy}"
            )
    if sizes["model_dim"] % sizes["heads"]:
        raise Refused(f"--bundle {path}: heads: expected a divisor of model_dim, got {sizes}; {remedy}")
    return _ghrnn_cma(
        sizes["hidden_dim"], sizes["model_dim"], sizes["heads"], windowed=bool(config.get("causal", False))
    )


@contextlib.contextmanager
def _compiler() -> Iterator[None]:
    """Triton compiles everything anew, repeats what ptxas says and leaves the user's cache alone."""
    import triton

    knobs = triton.knobs
    with contextlib.ExitStack() as stack:
        for group in (knobs.cache, knobs.compilation, knobs.nvidia):
            stack.enter_context(group.scope())
        knobs.cache.dir = stack.enter_context(tempfile.TemporaryDirectory())
        knobs.compilation.always_compile = True
        knobs.compilation.disable_line_info = True  # it would name folders of this machine
        knobs.nvidia.dump_ptxas_log = True
        yield


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Yields a function to call with what comes next; a terminal shows it on one line, which then goes."""
    done = 0
    terminal = sys.stderr.isatty()

    def show(what: str) -> None:
        nonlocal done
        done += 1
        if terminal:
            print(f"\r\033[K[{done}/{total}] {what}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _summary(architecture: int, entries: Sequence[dict[str, Any]]) -> str:
    most = {name: max(entry[name] for entry in entries) for name in ("registers", "shared_bytes")}
    spilling = sum(bool(entry["spill_stores_bytes"] + entry["spill_loads_bytes"]) for entry in entries)
    portable = sum(entry["portable"] for entry in entries)
    return (
        f"sm_{architecture:<4} {len(entries)} kernels, {portable} portable, {spilling} spilling; at most "
        f"{most['registers']} registers a thread and {most['shared_bytes'] / KIB:.0f} KiB of shared memory"
    )


def _expect(text: str, pattern: str, what: str) -> re.Match[str]:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"Triton's output lacks {what}")
    return found


if __name__ == "__main__":
    sys.exit(main())
