"""``affectrt doctor``: does every backend really run here, and what is missing?

Faults (exit status 1) are what keeps the installed parts from working; a missing extra is a note.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from affectrt import __version__
from affectrt.affect import MODALITIES
from affectrt.backends.native import extension
from affectrt.cli import Command
from affectrt.cli.bundles import BUNDLE_VARIABLE, add_backend_option, bundle_candidates
from affectrt.cli.doctor_bundle import check_bundle
from affectrt.cli.doctor_gpu import check_gpu, check_providers
from affectrt.cli.equations import ghrnn_cma, random_weights
from affectrt.cli.finding import Finding, foreign_architecture, remedy
from affectrt.errors import AffectError
from affectrt.machine import machine

DEVICE_EXTRAS = ("cpu", "gpu", "media", "tensorrt", "plot", "asr")
"""Their libraries are imported to see whether they run; the workstation's are only looked up, for speed."""

FAULT_STATUS = 1

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)[^;]*;.*extra == ['\"]([^'\"]+)['\"]")
_SHADOWED_MODULES = ("onnxruntime", "cv2", "tensorrt_bindings")
_NATIVE_TOLERANCE = 1e-5


def diagnose(bundle: Path | None, backend: str | None = None) -> Iterator[Finding]:
    """Look at everything; with a bundle, run it too, on that backend or on all that can."""
    yield Finding("ok", "machine", machine())
    yield Finding(
        "ok", "affectrt", f"{__version__}, Python {platform.python_version()}, numpy {np.__version__}"
    )
    yield check_native()
    owners = metadata.packages_distributions()
    yield from check_shadowing(owners)
    yield from check_extras(owners)
    yield from check_gpu()
    if bundle is not None:
        yield from check_bundle(bundle, backend)


def check_native() -> Finding:
    """Run a small GHRNN-CMA on every instruction set of the C++ kernels and compare it with the equations."""
    subject = "native kernels"
    fix = "build them from the source tree with: pip install --force-reinstall --no-deps ."
    try:
        kernels = extension()
        sets: list[str] = kernels.instruction_sets()
        off = {name: native_error(kernels.GhrnnCma, name) for name in sets}
    except AffectError as error:
        return Finding("FAULT", subject, error.message, fix)
    except (AttributeError, TypeError, ValueError) as error:
        return Finding("FAULT", subject, f"are of another version than affectrt: {error}", fix)
    wrong = [f"{name} by {error:.2g}" for name, error in off.items() if not error < _NATIVE_TOLERANCE]
    if wrong:
        return Finding("FAULT", subject, f"GHRNN-CMA is off from its equations: {', '.join(wrong)}", fix)
    largest = f"{max(off.values()):.1g}"
    return Finding("ok", subject, f"GHRNN-CMA within {largest} of its equations on {', '.join(sets)}")


def native_error(model: Callable[..., Any], instruction_set: str) -> float:
    """Largest difference of ``model``, the kernels' GhrnnCma, from the equations on a small made-up one."""
    weights, heads, lengths = random_weights(0), 3, (4, 9, 6)
    random = np.random.default_rng(1)
    widths = [weights[f"{m}.norm.weight"].size for m in MODALITIES]
    rows = [random.standard_normal(size).astype(np.float32) for size in zip(lengths, widths, strict=True)]
    subsets = np.array([[True, True, True], [True, False, True], [False, True, False]])
    fusion = model(weights, heads=heads, instruction_set=instruction_set)
    errors = []
    for subset, sentiment, logits in zip(subsets, *fusion(*rows, subsets), strict=True):
        kept = [part if counts else part[:0] for part, counts in zip(rows, subset, strict=True)]
        expected, expected_logits = ghrnn_cma(weights, heads, kept)
        errors += [abs(float(sentiment) - expected), float(np.abs(logits - expected_logits).max())]
    return float(np.max(errors))


def check_shadowing(owners: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Two distributions that install the same module overwrite each other's files."""
    for module in _SHADOWED_MODULES:
        names = sorted(set(owners.get(module, ())))
        if len(names) > 1:
            yield Finding(
                "FAULT",
                f"module {module}",
                f"{' and '.join(names)} are both installed and overwrite each other",
                f"pip uninstall -y {' '.join(names)}, then install the extra that you want again",
            )


def extras() -> dict[str, list[str]]:
    """Extra → the distributions it brings, as the installed package declares them."""
    found: dict[str, list[str]] = {}
    for requirement in metadata.requires("affectrt") or []:
        match = _REQUIREMENT.match(requirement)
        if match and match[1].lower() != "affectrt":
            found.setdefault(match[2], []).append(match[1])
    return found


def check_extras(owners: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """One finding an extra: its libraries with versions, or what is missing."""
    try:
        declared = extras()
    except metadata.PackageNotFoundError:
        yield Finding("FAULT", "package", "affectrt is not installed, only on the path", "pip install -e .")
        return
    for extra, names in declared.items():
        yield _check_extra(extra, names, owners)
    if "onnxruntime" in owners:
        yield from check_providers(gpu="onnxruntime-gpu" in owners["onnxruntime"])


def _check_extra(extra: str, names: Sequence[str], owners: Mapping[str, Sequence[str]]) -> Finding:
    versions, missing = [], []
    for name in names:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if extra in DEVICE_EXTRAS:
            foreign = foreign_architecture(name)
            fault = f"its wheel is for {foreign}" if foreign else _import_fault(name, owners)
            if fault:
                told = f"{name} {version} is installed, but {fault}"
                return Finding("FAULT", f"[{extra}]", told, remedy(fault, name))
        versions.append(f"{name} {version}")
    if missing:
        return Finding(
            "note", f"[{extra}]", f"not installed: {', '.join(missing)}", f"pip install 'affectrt[{extra}]'"
        )
    return Finding("ok", f"[{extra}]", ", ".join(versions))


def _import_fault(distribution: str, owners: Mapping[str, Sequence[str]]) -> str:
    modules = sorted(module for module, by in owners.items() if distribution in by and module[0] != "_")
    same = distribution.replace("-", "_")
    try:
        importlib.import_module(same if same in modules or not modules else modules[0])
    except Exception as error:  # whatever a foreign library raises when it can't start
        return f"importing it fails: {shorten(str(error), 200, placeholder='…')}"
    return ""


def report(findings: Sequence[Finding]) -> str:
    """The findings, one a line, each followed by its fix."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<5}  {finding.subject:<{width}}  {finding.detail}")
        if finding.fix:
            lines.append(f"{'':<5}  {'':<{width}}  → {finding.fix}")
    faults = sum(finding.state == "FAULT" for finding in findings)
    lines.append(f"{faults} fault{'s' * (faults > 1)}" if faults else "everything that is installed works")
    return "\n".join(lines) + "\n"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?", help="also run this model")
    add_backend_option(parser)


def _run(args: argparse.Namespace) -> int:
    bundle = args.bundle
    if bundle is None and os.environ.get(BUNDLE_VARIABLE):
        bundle = Path(os.environ[BUNDLE_VARIABLE])
    if bundle is None:
        bundle = next((path for path in bundle_candidates() if path.is_file()), None)
    findings = list(diagnose(bundle, args.backend))
    print(report(findings), end="")
    sys.stdout.flush()
    return FAULT_STATUS if any(finding.state == "FAULT" for finding in findings) else 0


COMMAND = Command(
    summary="Check that every part really runs here, and say what is missing and how to mend it.",
    add_arguments=_add_arguments,
    run=_run,
    examples="""\
Exit status 0: everything that is installed works; 1: something doesn't.

examples:
  affectrt doctor
  affectrt doctor starter.affect
  affectrt doctor starter.affect --backend onnxruntime
""",
)
