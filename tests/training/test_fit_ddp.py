"""Two processes train what one does: same batches, same loss, same weights up to rounding."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectrt_training.config import build
from affectrt_training.data.dataset import Dataset, Example
from affectrt_training.fit.checkpoint import Fitted, load_run
from affectrt_training.fit.run import fit_run, is_main
from affectrt_training.fit.settings import RunConfig
from affectrt_training.fit.stage import Stage


def lopsided() -> Dataset:
    """Odd numbers of examples, and labels that one process has and the other lacks."""
    rng = np.random.default_rng(2)
    examples = [
        Example(
            f"e{k}",
            {m: rng.normal(size=(int(rng.integers(1, 5)), 4)).astype(np.float32) for m in ("text", "audio")},
            (),
            None if k % 3 else float(rng.uniform(-3, 3)),
            None if k % 5 else int(rng.integers(7)),
        )
        for k in range(26)
    ]
    labelled = [replace(e, sentiment=1.0 - k % 3) for k, e in enumerate(examples[19:])]
    return Dataset("lopsided", {"train": examples[:19], "valid": labelled}, {"text": 4, "audio": 4})


def config(devices: int) -> RunConfig:
    # Nothing random within a step: processes draw their own dropout, as they should.
    settings = {
        "system": "inpnrln-md",
        "model": {"dropout": 0.0},
        "loss": {"across_weight": 0.5},
        "training": {
            "epochs": 3, "batch_size": 8, "lr": 2e-3, "modality_dropout": 0.0, "accelerator": "cpu",
            "devices": devices,
        },
    }  # fmt: skip
    return build(RunConfig, settings, where="run")


def fit_and_measure(devices: int, folder: Path | None) -> tuple[Fitted, list[float]]:
    """A run, and the gradient's size at each of its steps: Adam would hide a wrong one."""
    norms: list[float] = []

    def measure(stage: Stage, optimizer: Any) -> None:
        squares = [p.grad.square().sum() for p in stage.parameters() if p.grad is not None]
        norms.append(float(sum(squares)) ** 0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "on_before_optimizer_step", measure)
        return fit_run(config(devices), lopsided(), folder, progress=folder is not None), norms


def test_two_processes_reach_the_loss_of_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    # Both processes end with the same answer; only one of them tells and writes.
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [f"epoch {k} of 3" for k in (1, 2, 3)]
    found = sorted(json.loads(line) for line in done.stdout.splitlines())
    assert [main for main, _, _ in found] == [False, True] and found[0][1:] == found[1][1:]
    two, (one, norms) = load_run(tmp_path), fit_and_measure(1, None)
    assert found[0][2] == pytest.approx(norms, rel=1e-3) and len(norms) == 9
    assert two.best_epoch == one.best_epoch
    for row, alone in zip(two.history, one.history, strict=True):
        for key, value in alone.items():
            assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-6), (key, row, alone)
    for name, tensor in one.model.state_dict().items():
        other = two.model.state_dict()[name]
        # Adam divides by the gradient's size: where it is all but zero, rounding decides the sign.
        assert math.isclose(float((tensor - other).abs().max()), 0.0, abs_tol=5e-4), name


if __name__ == "__main__":
    fitted, sizes = fit_and_measure(2, Path(sys.argv[1]))
    print(json.dumps([is_main(), fitted.history, sizes]), flush=True)
