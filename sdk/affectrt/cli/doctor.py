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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from affectrt import __version__
from affectrt.affect import MODALITIES
from affectrt.cli import Command
from affectrt.cli.bundles import BUNDLE_VARIABLE, bundle_candidates
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.profiling import StageTimer

DEVICE_EXTRAS = ("cpu", "gpu", "media", "plot", "asr")
"""Their libraries are imported to see whether they run; the workstation's are only looked up, for speed."""

FAULT_STATUS = 1

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)[^;]*;.*extra == ['\"]([^'\"]+)['\"]")
_SHADOWED_MODULES = ("onnxruntime", "cv2")
_NATIVE_TOLERANCE = 1e-5
_REPEATS = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    state: Literal["ok", "note", "FAULT"]
    """``note``: not here, not needed by everyone."""
    subject: str
    """What was looked at."""
    detail: str
    """What was found."""
    fix: str = ""
    """What to do about it; a command where one does it."""


def diagnose(bundle: Path | None) -> Iterator[Finding]:
    """Look at everything; with a bundle, run it too."""
    yield Finding("ok", "machine", machine())
    yield Finding(
        "ok", "affectrt", f"{__version__}, Python {platform.python_version()}, numpy {np.__version__}"
    )
    yield check_native()
    owners = metadata.packages_distributions()
    yield from check_shadowing(owners)
    yield from check_extras(owners)
    if bundle is not None:
        yield check_bundle(bundle)


def machine() -> str:
    """Processor, cores this process may use, system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores for this process, {platform.system()} {platform.machine()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or "unknown processor"


def check_native() -> Finding:
    """Run the C++ GHRNN on a small ragged batch and compare it with the equations."""
    fix = "build it from the source tree with: pip install --force-reinstall --no-deps ."
    try:
        from affectrt_kernels import _native
    except ImportError as error:
        return Finding("FAULT", "native extension", f"can't be imported: {error}", fix)
    rng = np.random.default_rng(0)
    shapes = ((1, 2, 5, 3), (1, 8, 3), (1, 8, 4), (1, 8))
    x, w_x, w_h, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    lengths = np.array([5, 3], np.int64)
    try:
        states, _ = _native.gated_rnn(x, w_x, w_h, bias, lengths)
    except (AttributeError, TypeError) as error:
        return Finding("FAULT", "native extension", f"is of another version than affectrt: {error}", fix)
    error_max = float(np.abs(states - ghrnn_by_equation(x, w_x, w_h, bias, lengths)).max())
    if not error_max < _NATIVE_TOLERANCE:
        return Finding(
            "FAULT", "native extension", f"GHRNN is off by {error_max:.2g} from its equations", fix
        )
    return Finding("ok", "native extension", f"GHRNN within {error_max:.1g} of its equations")


def ghrnn_by_equation(x: Any, w_x: Any, w_h: Any, bias: Any, lengths: Any) -> Any:
    """GHRNN-CMA eq. 12, step by step in float64.

    ``x`` (S, B, T, I), ``w_x`` (S, 2H, I) and ``w_h`` (S, 2H, H) with the blocks gate, candidate, ``bias``
    (S, 2H), ``lengths`` (B,) → states (S, B, T, H), 0 beyond a row's length.
    """
    streams, batch, steps, _ = x.shape
    hidden = w_h.shape[-1]
    y = np.zeros((streams, batch, steps, hidden))
    for s in range(streams):
        for b in range(batch):
            h = np.zeros(hidden)
            for t in range(lengths[b]):
                from_x = w_x[s].astype(np.float64) @ x[s, b, t] + bias[s]
                z = 1.0 / (1.0 + np.exp(-(from_x[:hidden] + w_h[s, :hidden] @ h)))
                g = np.tanh(from_x[hidden:] + w_h[s, hidden:] @ (z * h))
                h = (1.0 - z) * h + z * g
                y[s, b, t] = h
    return y


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
        yield _check_providers(gpu="onnxruntime-gpu" in owners["onnxruntime"])


def _check_extra(extra: str, names: Sequence[str], owners: Mapping[str, Sequence[str]]) -> Finding:
    versions, missing = [], []
    for name in names:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if extra in DEVICE_EXTRAS:
            fault = _import_fault(name, owners)
            if fault:
                return Finding(
                    "FAULT",
                    f"[{extra}]",
                    f"{name} {version} is installed, but {fault}",
                    f"pip install -U {name}",
                )
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
        return f"importing it fails: {' '.join(str(error).split())}"
    return ""


def _check_providers(*, gpu: bool) -> Finding:
    try:
        providers: list[str] = importlib.import_module("onnxruntime").get_available_providers()
    except (ImportError, AttributeError) as error:
        return Finding(
            "FAULT", "ONNX Runtime", f"doesn't start: {error}", "pip install --force-reinstall onnxruntime"
        )
    if gpu and "CUDAExecutionProvider" not in providers:
        return Finding(
            "FAULT",
            "ONNX Runtime",
            f"onnxruntime-gpu is installed but offers no CUDA, only {', '.join(providers)}",
            "install the CUDA and cuDNN versions that it names, or use affectrt[cpu]",
        )
    return Finding("ok", "ONNX Runtime", ", ".join(providers))


def check_bundle(path: Path) -> Finding:
    """Load a bundle and run its four graphs on made-up input: do they work, and how long do they take?"""
    try:
        return Finding("ok", str(path), _inference(path))
    except AffectError as error:
        return Finding(
            "FAULT", str(path), error.message, "mend what the message names, or export the bundle again"
        )


def _inference(path: Path) -> str:
    from time import perf_counter

    from affectrt.features.text import words_of
    from affectrt.model import load

    start = perf_counter()
    model = load(path)
    loaded_s = perf_counter() - start
    manifest, encoders = model.manifest, model.encoders
    rng = np.random.default_rng(0)
    words = words_of("it was a wonderful evening and we are so happy about it", 0.0)
    log_mel_rows = round(manifest.window_s / manifest.audio.hop_s)
    log_mel = rng.standard_normal((1, log_mel_rows, manifest.audio.n_mels)).astype(np.float32)
    faces = rng.random((round(manifest.window_s * manifest.vision.rate_hz), *[manifest.vision.crop_px] * 2))

    def rows(modality: Any, states: Any) -> FeatureSequence:
        return FeatureSequence(modality, states, np.linspace(0.0, manifest.window_s, len(states)), "doctor")

    stages: dict[str, Callable[[], FeatureSequence]] = {
        "text": lambda: encoders.text.extract(words),
        "audio": lambda: rows("audio", encoders.audio_graph(log_mel=log_mel)[0][0]),
        "vision": lambda: rows("vision", encoders.vision_graph(faces=faces.astype(np.float32))[0]),
    }
    timer = StageTimer()
    for repeat in range(1 + _REPEATS):
        clock = timer if repeat else StageTimer.off()  # the first run allocates
        sequences = {}
        for modality in MODALITIES:
            with clock.stage(modality):
                sequences[modality] = stages[modality]()
        with clock.stage("fusion"):
            affect = model.fuse(sequences, manifest.window_s, perf_counter())
    total = sum(affect.emotions.values())
    if not abs(total - 1.0) < 1e-3:
        raise AffectError("doctor.inference", f"the emotion probabilities sum to {total:.3f} instead of 1")
    times = ", ".join(f"{name} {seconds / _REPEATS * 1e3:.1f} ms" for name, seconds in timer.seconds.items())
    total_ms = sum(timer.seconds.values()) / _REPEATS * 1e3
    return f"loads in {loaded_s:.2f} s; a {manifest.window_s:g} s window takes {total_ms:.1f} ms ({times})"


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


def _run(args: argparse.Namespace) -> int:
    bundle = args.bundle
    if bundle is None and os.environ.get(BUNDLE_VARIABLE):
        bundle = Path(os.environ[BUNDLE_VARIABLE])
    if bundle is None:
        bundle = next((path for path in bundle_candidates() if path.is_file()), None)
    findings = list(diagnose(bundle))
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
""",
)
