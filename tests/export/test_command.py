"""``affectrt export`` as people type it."""

from __future__ import annotations

from pathlib import Path

import pytest

from affectrt.cli import main
from affectrt_export.progress import shown


def test_recording_a_gate_needs_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "starter", "--record-gate"]) == 2
    assert "[cli.usage] --record-gate" in capsys.readouterr().err


def test_data_of_the_starter_measure_int8_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "starter", "--precision", "fp16", "--data", "folder"]) == 2
    assert "measures int8 on --data; leave it out at fp16" in capsys.readouterr().err


def test_only_what_can_be_exported_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "nothing"]) == 2
    assert "[export.unknown] expected 'starter' or the folder of a run" in capsys.readouterr().err


def test_missing_weights_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            ["export", "starter", "--weights", str(tmp_path / "none.safetensors"), "-o", str(tmp_path / "x")]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "[weights.not_found]" in error
    assert error.strip().splitlines()[-1].startswith("affectrt: [")


def test_stages_tell_on_stderr_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    stage = shown()
    with stage("counting [1, 2]"):
        pass
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "counting [1, 2]" in captured.err
