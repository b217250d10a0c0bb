"""What each precision costs and saves: every run as fp32, fp16 and int8, checked, and timed in turns.

Run from the repository root, with runs of ``affectrt train`` and the data that they were trained on:
``python -m benchmarks.exports runs/pom/* --data pom_trimodal.npz --label-range 1 7 -o docs/results/exports``.
An export that its gates refuse gets a line that says why. What is written is then timed on ONNX Runtime, the
precisions of a system in turns within every round (:mod:`affectrt.benchmark`): ratios are to its fp32 bundle.
The exit status is 1 when anything was refused.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from affectrt.benchmark import Latency, measure
from affectrt.errors import AffectError
from affectrt_export.run import PRECISIONS, RunReport, export_run
from affectrt_training.commands.compare import without_paths
from affectrt_training.commands.data_options import add_data_options, load_dataset
from affectrt_training.commands.runs import text_cache
from affectrt_training.data.dataset import Dataset
from affectrt_training.evaluation.tables import table
from affectrt_training.fit.storage import write_bytes

BACKEND = "onnxruntime"
"""What all precisions run on; ``native`` knows one system alone."""

HEAD = (
    "system",
    "precision",
    "MB",
    "fusion MB",
    "to PyTorch",
    "metric before",
    "after",
    "window ×",
    "fusion ×",
)


@dataclass(frozen=True)
class Row:
    """One export."""

    system: str
    """Name of the run's folder."""
    precision: str
    bytes: int = 0
    """Of the bundle."""
    fusion_bytes: int = 0
    """Of the fusion graph."""
    difference: float | None = None
    """Largest difference of any fp32 graph from PyTorch, and at fp16 of any fp16 graph from its fp32 form, of
    outputs as they are."""
    metric: str = ""
    before: float | None = None
    """Metric of the run on the split ``valid``."""
    after: float | None = None
    """The bundle's."""
    kept: int = 0
    """Layers that int8 left in fp32."""
    window: Latency | None = None
    """All of a window, encoders included."""
    fusion: Latency | None = None
    """The fusion graph alone."""
    refused: str = ""
    """Code and message of a refusal."""


def export_all(
    run: Path, dataset: Dataset, folder: Path, *, rounds: int, max_drop: float, cache: Path | None
) -> tuple[list[Row], tuple[str, ...]]:
    """A run in every precision, and what the machine was when they were timed. Raises what timing raises."""
    reports: dict[str, RunReport | AffectError] = {}
    for precision in PRECISIONS:
        print(f"{run.name} {precision}", file=sys.stderr, flush=True)
        path = folder / f"{run.name}-{precision}.affect"
        try:
            reports[precision] = export_run(
                run, path, precision=precision, dataset=dataset, max_drop=max_drop, cache=cache
            )
        except AffectError as error:
            reports[precision] = error
    paths = [report.path for report in reports.values() if isinstance(report, RunReport)]
    timed = measure(paths, backends=[BACKEND], rounds=rounds) if paths else None
    by_path = {one.bundle: one for one in timed.measured} if timed is not None else {}
    faults = {one.bundle: f"{one.code}: {one.message}" for one in timed.refused} if timed is not None else {}
    rows = []
    for precision, report in reports.items():
        if isinstance(report, AffectError):
            rows.append(Row(run.name, precision, refused=f"{report.code}: {report.message}"))
            continue
        found, gate = by_path.get(str(report.path)), report.gate
        rows.append(
            Row(
                run.name,
                precision,
                bytes=report.path.stat().st_size,
                fusion_bytes=report.manifest.members[report.manifest.fusion.graph].bytes,
                difference=max(*report.largest_difference.values(), *report.half_difference.values(), 0.0),
                metric=gate.metric if gate is not None else "",
                before=gate.before if gate is not None else None,
                after=gate.after if gate is not None else None,
                kept=len(report.kept),
                window=found.whole if found is not None else None,
                fusion=found.stages["fusion"] if found is not None else None,
                refused=faults.get(str(report.path), ""),
            )
        )
    return rows, timed.machine if timed is not None else ()


def markdown(rows: Sequence[Row], dataset: Dataset, command: str, machine_lines: Sequence[str]) -> str:
    """The report."""
    lines = [
        [
            f"`{row.system}`",
            row.precision + (f", {row.kept} in fp32" if row.kept else ""),
            f"{row.bytes / 1e6:.2f}",
            f"{row.fusion_bytes / 1e6:.3f}",
            "–" if row.difference is None else f"{row.difference:.1e}",
            "–" if row.before is None else f"{row.metric} {row.before:.4f}",
            "–" if row.after is None else f"{row.after:.4f}",
            _ratio(row.window),
            _ratio(row.fusion),
        ]
        for row in rows
        if row.bytes
    ]
    refusals = [f"- `{row.system}` {row.precision}: {row.refused}" for row in rows if row.refused]
    return "\n".join(
        [
            "# Every system in every precision",
            "",
            f"Trained on {dataset.name}, exported, opened again as a device does. *To PyTorch*: largest "
            "difference of an fp32 graph from PyTorch over all lengths and patterns of missing modalities, "
            "at fp16 also of the fp16 graph from that. *Before* and *after*: on the split valid, the run in "
            "PyTorch and the bundle. *Window* and *fusion*: median ratio of latency to the system's fp32 "
            "bundle on ONNX Runtime, one thread, timed in turns, with the quartiles of the rounds. *In "
            "fp32*: layers that int8 kept back.",
            "",
            table(HEAD, lines),
            "",
            *(["Refused:", "", *refusals, ""] if refusals else []),
            "## Reproduce",
            "",
            "```console",
            f"$ {command}",
            "```",
            "",
            *(f"- {line}" for line in machine_lines),
            "- Every figure: [report.json](report.json)",
            "",
        ]
    )


def _ratio(latency: Latency | None) -> str:
    if latency is None or latency.ratio is None or latency.ratio_quartiles is None:
        return "–"
    low, high = latency.ratio_quartiles
    return f"{latency.ratio:.2f} ({low:.2f}–{high:.2f})"


def _figures(row: Row) -> dict[str, Any]:
    told: dict[str, Any] = {
        name: value for name, value in vars(row).items() if name not in ("window", "fusion")
    }
    for name, latency in (("window", row.window), ("fusion", row.fusion)):
        told[name] = None if latency is None else {k: v for k, v in vars(latency).items() if k != "times_ms"}
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exports",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("exports"), help="folder of the report")
    parser.add_argument("--rounds", type=int, default=30, help="windows of each (default: %(default)s)")
    parser.add_argument("--max-drop", type=float, default=0.01, help="of the metric (default: %(default)s)")
    add_data_options(parser, required=True)
    args = parser.parse_args(arguments)
    try:
        dataset, rows, lines = load_dataset(args), list[Row](), list[str]()
        for run in args.runs:
            with TemporaryDirectory() as folder:
                found, timed_on = export_all(
                    run,
                    dataset,
                    Path(folder),
                    rounds=args.rounds,
                    max_drop=args.max_drop,
                    cache=text_cache(args.cache),
                )
            rows += found
            lines = lines or list(timed_on)
            for row in found:
                print(json.dumps(_figures(row)), file=sys.stderr, flush=True)
    except AffectError as error:
        print(f"benchmarks.exports: {error.message}", file=sys.stderr)
        return 2
    given = shlex.join(["python", "-m", "benchmarks.exports", *(arguments or sys.argv[1:])])
    text = without_paths(markdown(rows, dataset, given, lines))
    args.output.mkdir(parents=True, exist_ok=True)
    write_bytes(args.output / "report.md", text.encode())
    figures = {"machine": lines, "dataset": dataset.name, "rows": [_figures(row) for row in rows]}
    told = without_paths(json.dumps(figures, indent=1, allow_nan=False) + "\n")
    write_bytes(args.output / "report.json", told.encode())
    print(text)
    return int(any(row.refused for row in rows))


if __name__ == "__main__":
    sys.exit(main())
