"""``affectrt info``: what a bundle says about itself, after every hash was checked."""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from affectrt.backends.choice import DEVICES, choose_backend, known_backends, obstacle
from affectrt.cli import Command
from affectrt.errors import AffectError
from affectrt.manifest import AudioSpec, RowsSpec, TextSpec, VisionSpec

if TYPE_CHECKING:
    from affectrt.bundle import Bundle


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the model, a .affect file")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the whole manifest as JSON")
    form.add_argument("--card", action="store_true", help="print the model card (Markdown)")


def _run(args: argparse.Namespace) -> int:
    from affectrt.bundle import Bundle

    bundle = Bundle.open(args.bundle)
    if args.json:
        print(bundle.manifest.to_json())
    elif args.card:
        print(bundle.manifest.model_card.rstrip())
    else:
        print(glance(bundle, args.bundle), end="")
    return 0


def glance(bundle: Bundle, path: Path) -> str:
    """The manifest in at most 80 columns (names and licence may be longer)."""
    m = bundle.manifest
    total = sum(member.bytes for member in m.members.values())
    streams = "no: its streams are of windows"
    if m.causal is not None:
        streams = f"yes: a causal model, a tick every {m.causal.tick_s:g} s (--mode incremental)"
    lines = [
        f"{path}: {m.name}, {m.family}, {_megabytes(total)}; schema {m.schema}, every hash is right",
        f"sha256   {bundle.sha256}",
        f"licence  {m.licence}",
        "",
        *(f"{modality:<8} {_features(spec)}" for modality, spec in m.specs.items()),
        f"fusion   over windows of {m.window_s:g} s; intervals cover {m.calibration.coverage:.0%}",
        f"causal   {streams}",
        *_backends(bundle),
        "",
        f"{'member':<24}{'size':>10}  precision",
    ]
    precision = {graph: m.precision.get(part) for part, graph in m.graphs.items()}
    for name, member in sorted(m.members.items()):
        lines.append(f"{name:<24}{_megabytes(member.bytes):>10}  {precision.get(name) or ''}".rstrip())
    lines.append(f"ONNX opset {m.opset}, IR {m.ir_version}")
    if m.metrics:
        lines += ["", f"{'measured':<16}{'value':>8}  {'from':<20}  on"]
        lines += [
            f"{metric.name:<16}{metric.value:>8.4f}  {metric.modalities:<20}  {metric.dataset}"
            for metric in m.metrics
        ]
    for one in m.latency:
        lines += [
            "",
            f"a window in {one.p50_ms:.1f} ms (p95 {one.p95_ms:.1f}) on {one.backend}: {one.window}",
        ]
        lines += wrap(one.machine, 80)
    lines += ["", "The model card (data, intended use, limits): affectrt info --card"]
    return "\n".join(lines) + "\n"


def _features(spec: TextSpec | AudioSpec | VisionSpec | RowsSpec | None) -> str:
    """Where a modality's rows come from, in a line."""
    if spec is None:
        return "not read: the training data had none"
    if isinstance(spec, TextSpec):
        rows = {0: "a token", 1: "a word"}.get(spec.words_per_row, f"every {spec.words_per_row} words")
        longest = f"at most {spec.max_tokens} tokens" + (" at once" if spec.words_per_row else "")
        return f"{spec.dim} features {rows}, {longest}"
    if isinstance(spec, AudioSpec):
        return (
            f"{spec.dim} features every {spec.hop_s * spec.rows_per_state * 1e3:.0f} ms from "
            f"{spec.n_mels} mel bins at {spec.sample_rate_hz} Hz"
        )
    if isinstance(spec, VisionSpec):
        return f"{spec.dim} features a face of {spec.crop_px}×{spec.crop_px} px, {spec.rate_hz:g} a second"
    return f"{spec.dim} features a row, which the application makes: features= or push_features()"


def _backends(bundle: Bundle) -> list[str]:
    """What would run the model here and why, what else could, and what of the default can't."""
    obstacles = {backend: obstacle(backend, bundle) for backend in known_backends()}
    wanted = DEVICES["auto"]
    try:
        choice = choose_backend(bundle)
    except AffectError:
        told = ["none can run it here"]
        after = wanted
    else:
        told = [f"{choice.backend}, {choice.reason}"]
        others = [b for b, found in obstacles.items() if found is None and b != choice.backend]
        told += [f"also {', '.join(others)}"] if others else []
        after = wanted[wanted.index(choice.backend) + 1 :]
    told += [f"not {b}: {found.message}" for b in after if (found := obstacles[b]) is not None]
    return wrap("; ".join(told), 80, initial_indent="backend  ", subsequent_indent=" " * 9)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


COMMAND = Command(
    summary="Show what a bundle holds, what it was measured to do and its model card.",
    add_arguments=_add_arguments,
    run=_run,
    examples="""\
examples:
  affectrt info starter.affect
  affectrt info starter.affect --card | less
  affectrt info starter.affect --json | jq .calibration
""",
)
