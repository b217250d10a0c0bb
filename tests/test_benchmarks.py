"""The benchmarks behind the figures on speed: what they print, and that wrong numbers get no speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from affectrt.benchmark import Latency
from affectrt_training.data.dataset import Dataset

ROOT = Path(__file__).parent.parent
KEYS = {"operator", "shape", "threads", "peer", "ratio", "spread", "correct"}


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules by name; from the checkout, as they are never installed."""
    monkeypatch.syspath_prepend(str(ROOT))
    return {name: import_module(f"benchmarks.{name}") for name in ("kernels", "timing")}


def test_quick_figures_have_their_keys_and_are_right() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels", "--quick", "--only", "ghrnn", "--json", "--rounds", "2"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert {result["peer"]: result["correct"] for result in results}.items() >= {
        "onnxruntime GRU, tied weights": True,
        "torch eager, reference loop": True,
        "torch.nn.GRU (same shapes, other mathematics)": None,
    }.items()
    for result in results:
        assert result.keys() >= KEYS
        assert (result["operator"], result["threads"]) == ("ghrnn", 1)
        low, high = result["spread"]
        assert 0 < low <= result["ratio"] <= high
    head = done.stderr.splitlines()
    assert "cores, load" in head[0] and "onnxruntime" in head[1]
    assert str(ROOT) not in done.stdout + done.stderr


@pytest.mark.parametrize("who", ["ours", "a peer"])
@pytest.mark.parametrize("factor", [1.001, np.nan])
def test_no_speed_is_reported_of_wrong_numbers(
    benchmarks: dict[str, ModuleType], who: str, factor: float, capsys: pytest.CaptureFixture[str]
) -> None:
    timing = benchmarks["timing"]
    truth = np.linspace(0.0, 1.0, 7)
    timed = []

    def contender(name: str, scale: float) -> object:
        return timing.Contender(
            name, lambda: timed.append(name), lambda: timing.difference([truth * scale], [truth])
        )

    scales = {"ours": 1.0, "a peer": 1.0, who: factor}
    ours, peer = (contender(name, scale) for name, scale in scales.items())
    case = timing.Case("ghrnn", "T=7", 1, ours=ours, peers=[peer], ours_threads=1)
    for as_json in (False, True):
        assert benchmarks["kernels"].report([case], rounds=1, as_json=as_json) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert f"{who} differs from float64" in printed.err
    assert timed == []


def test_an_unknown_operator_is_refused(
    benchmarks: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmarks["kernels"].main(["--only", "ghrnn,lstm"])
    assert stopped.value.code == 2
    assert "expected some of ghrnn,pairwise_attention,fusion,tick, got lstm" in capsys.readouterr().err


def test_the_torch_backend_is_timed_on_the_processor_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager, Triton and CUDA graph are for a GPU; what this machine has is measured the same way."""
    monkeypatch.syspath_prepend(str(ROOT))
    backend = import_module("benchmarks.cases.backend")
    monkeypatch.setattr(backend, "CALLS_PER_ROUND", 1)
    lines = list(backend.measure("cpu", rounds=3))
    assert [line.contender for line in lines] == ["eager (reference operators)", "our operators"] * 2
    for line in lines:
        assert 0.0 < line.us_low <= line.us <= line.us_high
        assert line.difference < 1e-5
    assert [line.ratio for line in lines[::2]] == [1.0, 1.0]
    monkeypatch.setattr(backend, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="on cpu differs from float64: eager"):
        list(backend.measure("cpu", rounds=1))


def test_a_report_on_exports_keeps_what_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    exports = import_module("benchmarks.exports")
    latency = Latency(2.0, 3.0, 4.0, 500.0, 0.5, (0.4, 0.6), (2.0,))
    whole = exports.Row("mulg", "int8", 24_000_000, 500_000, 4e-6, "mae", 0.8, 0.81, 2, latency, latency)
    refused = exports.Row("tfn", "int8", refused="export.task_gate: worse by 3%")
    dataset = Dataset("made-up", {}, {"text": 4})
    text = exports.markdown([whole, refused], dataset, "python -m benchmarks.exports a b", ["a machine"])
    (line,) = (line for line in text.splitlines() if line.startswith("| `mulg`"))
    assert "int8, 2 in fp32 | 24.00 | 0.500 | 4.0e-06 | mae 0.8000 | 0.8100 | 0.50 (0.40–0.60) |" in line
    assert "- `tfn` int8: export.task_gate: worse by 3%" in text.splitlines()
    assert "| `tfn`" not in text
