"""``affectrt train``: refuses what it can't do before it starts, and trains what it can."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from affectrt.cli import main
from affectrt_training.commands import train as command
from affectrt_training.fit import course
from affectrt_training.fit.checkpoint import load_run

TRAINING = ["training.epochs=2", "training.batch_size=8", "training.accelerator=cpu"]
MODEL = ["model.model_dim=8", "model.heads=2", "model.hidden_dim=8", "model.fused_dim=8"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows of two modalities rated from 1 to 7, without splits."""
    rng = np.random.default_rng(0)
    path = tmp_path / "reviews.npz"
    y = rng.uniform(1, 7, 30)
    np.savez(
        path,
        audio=(rng.normal(size=(30, 4, 3)) + y[:, None, None] * np.array([0.0, 1, -1])).astype(np.float32),
        vision=rng.normal(size=(30, 4, 2)).astype(np.float32),
        y=y.astype(np.float32),
    )
    return path


def _fails(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main(["train", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    return err


# --- Systems ---------------------------------------------------------------------------------------


def test_a_system_is_trained_and_scored_by_its_folder(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml, folder = tmp_path / "run.yaml", tmp_path / "run"
    yaml.write_text("training: {epochs: 9, lr: 1e-2}\nmodel: {model_dim: 8, heads: 2}\n")
    argv = ["--data", str(data), "--label-range", "1", "7"]
    settings = ["--config", str(yaml), "--set", *TRAINING, *MODEL[2:], "--seed", "3"]
    assert main(["train", "ghrnn-cma", *argv, *settings, "-o", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in err.splitlines()] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert "ghrnn-cma on reviews, split valid" in out and f"affectrt evaluate {folder} --data" in out
    fitted = load_run(folder)
    assert (fitted.config.training.seed, fitted.config.training.lr) == (3, 0.01)
    assert fitted.data["splits"] == {"train": 24, "valid": 6}

    # Of the data set that it was trained on it is scored on what was held out, on the scale that it knows.
    assert main(["evaluate", str(folder), "--data", str(data), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["n"], err) == (6, "")
    assert found["mae"] == pytest.approx(fitted.metrics["mae"], abs=1e-6)
    # All rows hold the training's; asked for these alone, it warns.
    assert main(["evaluate", str(folder), "--data", str(data), "--split", "all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 30
    assert main(["evaluate", str(folder), "--data", str(data), "--split", "train", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 24 and "is what the run was trained on" in err


def test_a_run_is_neither_lost_nor_mistaken(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    argv = [
        "ghrnn-cma", "--data", str(data), "--label-range", "1", "7", "--set", *TRAINING, *MODEL,
        "-o", str(folder),
    ]  # fmt: skip
    write: Callable[..., None] = course.Course._write

    def write_and_stop(self: course.Course, *args: object) -> None:
        write(self, *args)
        raise KeyboardInterrupt

    interrupts = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(course.Course, "_write", write_and_stop)
        assert main(["train", *argv]) == 130
    assert signal.getsignal(signal.SIGINT) is interrupts
    capsys.readouterr()
    err = _fails(capsys, *argv)
    assert "train.exists" in err and "interrupted" in err and "--resume" in err
    assert main(["evaluate", str(folder), "--data", str(data)]) == 2
    assert "checkpoint.unfinished" in capsys.readouterr().err
    assert main(["train", *argv, "--resume"]) == 0
    assert "epoch 2 of 2" in (told := capsys.readouterr().err) and "epoch 1 of 2" not in told
    err = _fails(capsys, *argv)
    assert "train.exists" in err and "finished" in err and "--resume" not in err
    assert main(["train", *argv, "--overwrite"]) == 0
    assert "epoch 1 of 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], "cli.usage", "expected NAME or --recipe"),
        (["ghrn-cma", "--data", "x"], "model.unknown", "did you mean 'ghrnn-cma'"),
        (["mulg"], "train.no_data", "--data"),
        (["mulg", "--data", "x", "--set", "training.epoch=1"], "config.unknown_key", "mean 'epochs'"),
        (["mulg", "--data", "x", "--set", "model.laiers=1"], "config.unknown_key", r"settings\.model"),
        (["mulg", "--data", "x", "--set", "training.lr=fast"], "config.value", "training.lr: expected float"),
        (["mulg", "--data", "x", "--set", "system=mult"], "cli.usage", "give one"),
        (["mulg", "--data", "x", "--config", "none.yaml"], "config.not_found", "none.yaml"),
        (["mulg", "--data", "nowhere.npz"], "data.not_found", "nowhere.npz"),
        (["mulg", "--data", "x", "--restart", "text"], "cli.usage", "--recipe starter"),
        (["mulg", "--data", "x", "--keep", "y.safetensors"], "cli.usage", "--recipe starter"),
        (["mulg", "--data", "x", "--resume", "--overwrite"], "cli.usage", "not allowed with"),
        (["mulg", "--recipe", "starter"], "cli.usage", "not allowed with"),
    ],
)  # fmt: skip
def test_it_refuses_before_it_starts(
    argv: list[str],
    code: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    err = _fails(capsys, *argv)
    assert f"[{code}]" in err
    assert re.search(message, err), err
    assert list(tmp_path.iterdir()) == []


# --- Recipes ---------------------------------------------------------------------------------------


def test_without_data_it_says_what_to_pass(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AFFECTRT_DATA", raising=False)
    err = _fails(capsys, "--recipe", "starter")
    assert "train.no_data" in err and "--data" in err


@pytest.mark.parametrize("recipe", ["starter", "mosi-text"])
def test_an_incomplete_data_folder_is_named_before_training(
    recipe: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    err = _fails(capsys, "--recipe", recipe, "--data", tmp_path)
    assert "data.not_found" in err and "mosi_train_valid.csv" in err
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_gets_its_options_and_says_what_came_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from affectrt_training.recipes.mosi_text import recipe

    called: list[tuple[Path, Path, int]] = []

    def train(data: Path, folder: Path, seed: int) -> dict[str, dict[str, float]]:
        called.append((data, folder, seed))
        return {"CMU-MOSI valid": {"mae": 0.7, "r": 0.8}}

    monkeypatch.setattr(recipe, "train_mosi_text", train)
    monkeypatch.setenv("AFFECTRT_DATA", str(tmp_path))
    assert main(["train", "--recipe", "mosi-text", "--seed", "4", "-o", "out"]) == 0
    assert called == [(tmp_path, Path("out"), 4)]
    out = capsys.readouterr().out
    assert "mae 0.700  r 0.800" in out and "affectrt evaluate out" in out


@pytest.mark.parametrize(
    "argv",
    [
        ("--recipe", "nonsense"),
        ("--recipe", "starter", "--restart", "ears"),
        ("--recipe", "starter", "--sed", "1"),
        ("--recipe", "starter", "--data", "a", "b"),
        ("--recipe", "starter", "--data", "a", "--set", "training.lr=1"),
    ],
)
def test_unknown_words_are_usage_errors(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    err = _fails(capsys, *argv)
    assert "cli.usage" in err or "train.no_data" in err


def test_every_recipe_is_there() -> None:
    assert set(command.RECIPES) == {"starter", "mosi-text"}
