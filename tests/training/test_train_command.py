"""``affectrt train`` refuses what it can't do before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from affectrt.cli import main


def _fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["train", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_without_data_it_says_what_to_pass(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AFFECTRT_DATA", raising=False)
    err = _fails(capsys, "starter")
    assert "train.no_data" in err and "--data" in err


def test_an_incomplete_data_folder_is_named_before_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    err = _fails(capsys, "starter", "--data", str(tmp_path), "--runs", str(tmp_path / "runs"))
    assert "data.not_found" in err and "mosi_train_valid.csv" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("argv", [("nonsense",), ("starter", "--restart", "ears"), ("starter", "--sed", "1")])
def test_unknown_words_are_usage_errors(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    assert "cli.usage" in _fails(capsys, *argv)
