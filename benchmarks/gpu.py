"""How fast are the Triton kernels on an NVIDIA GPU, against cuDNN, torch.compile and eager PyTorch?

Run from the repository root, on a machine with a GPU:

    python -m benchmarks.gpu [--rounds N] [--out DIR]

Everything of ours must first agree with float64; if anything does not, nothing is timed and the exit status
is 1. Contenders take turns; what is reported is the median time of one call with its quartiles, once launched
call by call and once replayed as a CUDA graph, and how that compares with ours. Two floors stand beside them:
a graph with one empty kernel, and for the recurrence a kernel that does nothing but pass the state twice a
step through shared memory, as every one must whose state is shared between threads. The backend ``torch`` is
timed as a whole, too, from arrays on the host to results on the host: eager, with our operators, as a CUDA
graph.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from benchmarks.cases.gpu import Case, Contender, Run

CALLS_PER_ROUND = 20


def difference(contender: Contender) -> float:
    """The largest one from float64, as a share of the largest value where that is above 1."""
    assert contender.right is not None
    pairs = zip(contender.run(), contender.right(), strict=True)
    return max(
        float((got.double() - want).abs().max() / want.abs().max().clamp(min=1.0)) for got, want in pairs
    )


def capture(run: Run) -> Callable[[], None] | None:
    """A CUDA graph of ``run``; None where it waits for the GPU or can't be captured for another reason."""
    try:
        stream: Any = torch.cuda.Stream
        side = stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def microseconds(run: Callable[[], object]) -> float:
    """One call among many, by the GPU's clock."""
    event: Any = torch.cuda.Event
    start, stop = event(enable_timing=True), event(enable_timing=True)
    start.record()
    for _ in range(CALLS_PER_ROUND):
        run()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) * 1000 / CALLS_PER_ROUND


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """A line for each contender: how it was launched, its time, and how many times ours that is."""
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for contender in case.contenders:
        runs[contender.name, "calls"] = contender.run
        if (replay := capture(contender.run)) is not None:
            runs[contender.name, "graph"] = replay
    for run in runs.values():
        run()
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            times[key].append(microseconds(run))
    lines = []
    for (name, launched), taken in times.items():
        low, middle, high = statistics.quantiles(taken, n=4)
        ours = times.get((case.contenders[0].name, launched))
        ratio = None if ours is None else statistics.median(a / b for a, b in zip(taken, ours, strict=True))
        lines.append(
            {"operator": case.operator, "shape": case.shape, "contender": name, "launched": launched}
            | {"us": middle, "us_low": low, "us_high": high, "ratio": ratio}
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, time, report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=31, help="turns of each (default: 31)")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder of the results file"
    )
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs an NVIDIA GPU that PyTorch can use: none is here", file=sys.stderr)
        return 2
    from benchmarks.cases import backend, gpu

    wrong: dict[tuple[str, str, str], float] = {}
    for case in gpu.cases():
        for contender in case.contenders:
            if contender.right is not None and (off := difference(contender)) > gpu.tolerance(case):
                wrong[case.operator, case.shape, contender.name] = off
    ours = [key for key in wrong if key[2] == "affectrt"]
    if ours:
        print("Numbers are wrong, so no speed is reported:", *ours, sep="\n", file=sys.stderr)
        return 1

    backends = []
    try:
        for part in backend.measure("cuda", args.rounds):
            backends.append(part._asdict())
            print(f"{'backend torch':<28} {part.shape:<32} {part.contender:<39}", end="")
            print(f"{part.us:10.1f} µs ({part.us_low:.1f}–{part.us_high:.1f}) {part.ratio:8.2f}×", flush=True)
    except ValueError as error:
        print(f"Numbers are wrong, so no speed is reported: {error}", file=sys.stderr)
        return 1

    empty = capture(gpu.exchange(0, 64))
    floor = statistics.median(microseconds(empty) for _ in range(args.rounds)) if empty else None
    lines = []
    for case in gpu.cases():
        for line in measure(case, args.rounds):
            line["difference_too_large"] = wrong.get((case.operator, case.shape, line["contender"]))
            lines.append(line)
            ratio = "" if line["ratio"] is None else f"{line['ratio']:8.2f}×"
            print(
                f"{case.operator:<28} {case.shape:<32} {line['contender']:<32} {line['launched']:<6}", end=""
            )
            print(f"{line['us']:10.1f} µs ({line['us_low']:.1f}–{line['us_high']:.1f}) {ratio}", flush=True)
    properties = torch.cuda.get_device_properties(0)
    found = {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "versions": {
            "torch": torch.__version__,
            "triton": metadata.version("triton"),
            "cuda": torch.version.cuda,
        },
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "empty_graph_us": floor,
        "results": lines,
        "backend": backends,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"gpu-{properties.name.lower().replace(' ', '-')}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
