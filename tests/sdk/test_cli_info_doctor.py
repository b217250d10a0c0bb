"""``affectrt info`` and ``affectrt doctor``, the way commands are found, and the output files."""

from __future__ import annotations

import importlib
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affectrt.affect import EMOTIONS, Affect
from affectrt.backends.native import extension
from affectrt.bundle import Bundle
from affectrt.cli import main
from affectrt.cli.doctor import check_native, native_error
from affectrt.cli.doctor_bundle import check_bundle, compare
from affectrt.cli.equations import ghrnn, ghrnn_cma, random_weights
from affectrt.cli.output import output_file
from affectrt.errors import AffectError
from affectrt_training.models.ghrnn_cma import GhrnnCma, GhrnnCmaConfig


def test_info_shows_the_manifest(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_bundle)]) == 0
    out = capsys.readouterr().out
    bundle = Bundle.open(tiny_bundle)
    assert bundle.sha256 in out
    for shown in ("tiny", "Apache-2.0", "vision.onnx", "fp32", "random weights", "1.5000"):
        assert shown in out
    assert main(["info", str(tiny_bundle), "--json"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == bundle.manifest.to_json()
    assert main(["info", str(tiny_bundle), "--card"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == bundle.manifest.model_card.rstrip()


def test_doctor_finds_this_environment_well(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", str(tiny_bundle)])
    out = capsys.readouterr().out
    assert (status, "FAULT" in out) == (0, False), out
    assert "GHRNN-CMA within" in out
    assert "onnxruntime" in out
    assert "tiny.affect" in out and "runs on onnxruntime" in out and "a 4 s window takes" in out


def test_doctor_runs_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "bad.affect").write_bytes(b"nothing")
    (finding,) = check_bundle(tmp_path / "bad.affect")
    assert finding.state == "FAULT"
    assert "bad.affect" in finding.subject and finding.fix


def test_a_broken_bundle_makes_doctor_say_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.affect").write_bytes(b"nothing")
    assert main(["doctor", str(tmp_path / "bad.affect")]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "1 fault"


def test_the_native_check_compares_with_the_equations() -> None:
    finding = check_native()
    assert finding.state == "ok", finding
    assert "on avx" in finding.detail or "on baseline" in finding.detail or "on neon" in finding.detail
    kernels = extension()

    def off_by_little(*weights: Any, **options: Any) -> Any:
        return lambda *inputs: [
            part + np.float32(2e-4) for part in kernels.GhrnnCma(*weights, **options)(*inputs)
        ]

    assert native_error(off_by_little, "") == pytest.approx(2e-4, rel=0.1)
    never = native_error(lambda *_, **__: lambda *_: (np.full(3, np.nan), np.full((3, 7), np.nan)), "")
    assert np.isnan(never), "NaN must not pass for agreement"


def _affect(sentiment: float) -> Affect:
    return Affect(0.0, sentiment, (-1.0, 1.0), dict.fromkeys(EMOTIONS, 1 / 7), {}, frozenset(), 0.0)


def test_backends_are_held_to_the_processors_answer() -> None:
    def state(precision: str = "fp32", **sentiments: float) -> tuple[str, str]:
        results = {name.replace("_", "-"): _affect(s) for name, s in sentiments.items()}
        finding = compare("x", results, precision)
        return finding.state, finding.detail

    assert state(native=0.5, onnxruntime=0.5 + 5e-5) == ("ok", "native, onnxruntime agree within 5e-05")
    assert state(native=0.5, onnxruntime=0.5 + 2e-4)[0] == "FAULT"
    assert state("fp16", native=0.5, onnxruntime=0.505)[0] == "ok"
    assert state("fp16", native=0.5, onnxruntime=0.52)[0] == "FAULT"
    assert state("int8", native=0.5, onnxruntime=0.52)[0] == "ok"
    assert state("int8", native=0.5, onnxruntime=0.56)[0] == "FAULT"
    assert state(tensorrt=0.505, native=0.5, onnxruntime=0.5)[0] == "ok"
    fault = ("FAULT", "backends differ from native: tensorrt by 0.02")
    assert state(tensorrt=0.52, native=0.5, onnxruntime=0.5) == fault
    assert state(tensorrt=np.nan, native=0.5) == ("FAULT", "backends differ from native: tensorrt by nan")
    assert (
        state(tensorrt=0.5, onnxruntime_cuda=0.52)[1]
        == "backends differ from tensorrt: onnxruntime-cuda by 0.02"
    )


def test_the_equation_of_the_recurrence() -> None:
    """One step by hand, so that the yardstick itself is right: H = I = 1, all weights 1, bias 0, x = 1."""
    states = ghrnn(np.ones((2, 1)), np.ones((2, 1)), np.ones((2, 1)), np.zeros(2))
    z1 = 1 / (1 + np.exp(-1.0))
    h1 = z1 * np.tanh(1.0)
    z2 = 1 / (1 + np.exp(-(1.0 + h1)))
    h2 = (1 - z2) * h1 + z2 * np.tanh(1.0 + z2 * h1)
    assert states.ravel() == pytest.approx([h1, h2])


def test_the_equations_are_the_models() -> None:
    """Against PyTorch, whose code is another reading of the paper."""
    weights = random_weights(3, dims=(6, 5, 4))
    config = GhrnnCmaConfig(6, 5, 4, model_dim=12, heads=3, hidden_dim=10, fused_dim=9)
    model = GhrnnCma(config).eval().double()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    random = np.random.default_rng(0)
    for lengths in ((4, 9, 6), (0, 3, 0), (7, 0, 1), (0, 0, 0)):
        rows = [
            random.standard_normal(size).astype(np.float32) for size in zip(lengths, (6, 5, 4), strict=True)
        ]
        inputs: list[torch.Tensor] = []
        for part in rows:
            padded = np.concatenate([part, np.zeros((1, part.shape[1]), np.float32)])
            inputs += [torch.from_numpy(padded)[None].double(), torch.tensor([len(part)])]
        with torch.no_grad():
            (sentiment,), (logits,) = model(*inputs)
        found, found_logits = ghrnn_cma(weights, 3, rows)
        assert found == pytest.approx(float(sentiment), abs=1e-12)
        np.testing.assert_allclose(found_logits, logits.numpy(), rtol=0, atol=1e-12)


def test_doctor_and_info_tell_what_runs_a_bundle(
    tiny_bundle: Path, ghrnn_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # This bundle's graph and its weights are two models, which is what doctor is there to find.
    assert main(["doctor", str(ghrnn_bundle)]) == 1
    out = capsys.readouterr().out
    assert "runs on native; loads in" in out and "runs on onnxruntime; loads in" in out
    assert "backends differ from native: onnxruntime by " in out and out.endswith("\n1 fault\n")
    assert "without a name, native runs it: the first of tensorrt, native, onnxruntime that can; not" in out
    for backend in ("native", "onnxruntime"):
        assert main(["doctor", str(ghrnn_bundle), "--backend", backend]) == 0
        out = capsys.readouterr().out
        assert out.count("; loads in") == 1 and f"runs on {backend}; loads in" in out
    assert main(["doctor", str(tiny_bundle), "--backend", "native"]) == 1
    assert "knows the family 'ghrnn-cma' only, not 'mean'" in capsys.readouterr().out
    assert main(["doctor", "--backend", "cuda"]) == 2
    assert "invalid choice: 'cuda'" in capsys.readouterr().err
    assert main(["info", str(ghrnn_bundle)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "backend native, the first of tensorrt, native, onnxruntime that can; not tensorrt: " in out
    assert "; also onnxruntime, torch member" in out
    assert main(["info", str(tiny_bundle)]) == 0
    out = capsys.readouterr().out
    assert "not native: model tiny: the backend native knows the family" in " ".join(out.split())
    assert max(map(len, out.splitlines()[1:])) <= 80


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for command in ("analyze", "doctor", "evaluate", "export", "info", "train"):
        assert command in out


def test_a_broken_command_costs_the_others_nothing(
    install: Callable[[str, str], Path],
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = install("plug", "plug").parent
    (folder / "plug-9.9.dist-info" / "entry_points.txt").write_text(
        "[affectrt.commands]\nbroken = no_such_module:COMMAND\ncrash = crashing:COMMAND\n", encoding="utf-8"
    )
    (folder / "crashing.py").write_text(
        "from affectrt.cli import Command\n"
        "COMMAND = Command('Crash.', lambda parser: None, lambda args: 1 // 0)\n",
        encoding="utf-8",
    )
    importlib.invalidate_caches()
    assert main(["info", str(tiny_bundle)]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "(not available here)" in capsys.readouterr().out
    assert main(["broken"]) == 2
    assert "[cli.command_broken]" in capsys.readouterr().err
    # A bug of a command is one line too, unless the traceback is asked for.
    assert main(["crash"]) == 70
    err = capsys.readouterr().err
    assert err.startswith("affectrt: [internal.error] ZeroDivisionError") and err.count("\n") == 1
    monkeypatch.setenv("AFFECTRT_TRACEBACK", "1")
    assert main(["crash"]) == 70
    assert "Traceback" in capsys.readouterr().err
    sys.modules.pop("crashing", None)


def test_an_output_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="oops"), output_file(path):
        raise ValueError("oops")
    assert path.read_bytes() == b"old"
    with output_file(path) as write:
        assert path.read_bytes() == b"old"
        write(b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]
    other = tmp_path / "plain"
    other.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_an_output_may_be_a_device(tmp_path: Path) -> None:
    with output_file(Path("/dev/null")) as write:
        write(b"gone")
    assert Path("/dev/null").is_char_device()
    with (
        pytest.raises(AffectError, match="can't write the output") as caught,
        output_file(tmp_path / "a" / "b"),
    ):
        pass
    assert caught.value.code == "output.unwritable"
