"""``affectrt describe``, and the options that every command reads data by."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectrt.cli import main
from affectrt.errors import AffectError
from affectrt_training.commands.data_options import add_data_options, load_dataset, read_data


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Eight reviews on a scale from 1 to 7; the last shows no face."""
    random = np.random.default_rng(0)
    audio, vision = random.normal(size=(8, 6, 3)), random.normal(size=(8, 6, 2))
    audio[1, :2], vision[1, :2], vision[7] = 0.0, 0.0, 0.0
    audio[2, 3, 0] = -np.inf
    path = tmp_path / "reviews.npz"
    np.savez(path, audio=audio, vision=vision, y=[1.0, 7.0, 7.0, 2.4, 2.6, 4.0, 4.0, 4.0])
    (tmp_path / "reviews_words.json").write_text(json.dumps([["it", "was", "fine"]] * 8), encoding="utf-8")
    return path


def _json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["describe", "--json", *argv]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_tells_what_a_file_holds(reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, str(reviews))
    assert found["splits"] == {"all": {"examples": 8, "sentiment": 8, "emotion": 0, "groups": 0}}
    audio, vision = found["modalities"]["audio"], found["modalities"]["vision"]
    assert audio == {
        "features": 3,
        "steps": {"min": 4, "median": 6.0, "max": 6},
        "absent": 0.0,
        "cleared": 1,
    }
    assert vision["absent"] == 1 / 8 and vision["steps"]["min"] == 4
    assert found["words"]["first"] == "it was fine"
    labels = found["sentiment"]
    assert (labels["min"], labels["max"], labels["mean"]) == (1.0, 7.0, 4.0)
    assert [b["examples"] for b in labels["histogram"]] == [1, 1, 1, 3, 0, 0, 2]
    assert any("--label-range 1 7" in hint for hint in found["hints"])
    assert any("1 audio values" in note for note in found["notes"])


def test_it_is_readable(reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(reviews), "--label-range", "1", "7"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "reviews: NumPy arrays, 8 examples"
    assert "sentiment  -3 to 3, mean 0.000" in lines and "--label-range" not in out
    # The longest bar is the most frequent label's, and the others are in proportion.
    bars = {line.split()[0]: line.count("█") for line in lines if "█" in line}
    assert bars == {"-3": 10, "-2": 10, "-1": 10, "0": 32, "3": 21}


def test_labels_that_must_be_chosen_do_not_hide_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, audio=np.ones((2, 3, 4)), y=np.zeros((2, 17)))
    found = _json(capsys, str(path))
    assert found["sentiment"] is None and found["modalities"]["audio"]["features"] == 4
    assert any("--label 0 … 16" in hint for hint in found["hints"])
    assert _json(capsys, str(path), "--label", "3")["sentiment"]["examples"] == 2


def test_emotions_broken_labels_and_clips_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.wav").write_bytes(b"not read")
    path = tmp_path / "a.csv"
    path.write_text("text,audio,sentiment,emotion\nhi,a.wav,nan,joy\nho,,0.5,\n", encoding="utf-8")
    found = _json(capsys, str(path))
    assert found["emotions"]["joy"] == 1 and found["sentiment"]["not_finite"] == 1
    assert any("1 audio" in note for note in found["notes"])
    assert any("NaN" in hint for hint in found["hints"])
    assert main(["describe", str(path)]) == 0
    capsys.readouterr()


def test_faults_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(tmp_path / "none.pkl")]) == 2
    assert "[data.not_found]" in capsys.readouterr().err


# --- The shared options --------------------------------------------------------------------------------


def _args(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_data_options(parser)
    return parser.parse_args(argv)


def test_options_split_what_has_no_splits(reviews: Path) -> None:
    scaled = ("--data", str(reviews), "--label-range", "1", "7")
    assert set(read_data(_args(*scaled)).splits) == {"all"}
    dataset = load_dataset(_args(*scaled))
    assert [len(dataset.split(name)) for name in ("train", "valid")] == [6, 2]
    assert [e.sentiment for e in dataset.split("train")][:2] == [-3.0, 3.0]
    assert len(load_dataset(_args(*scaled, "--valid-share", "0.5")).split("valid")) == 4
    fold = load_dataset(_args(*scaled, "--folds", "4", "--fold", "2"))
    assert [e.id for e in fold.split("valid")] == ["2", "3"]


def test_the_source_s_splits_are_kept_unless_others_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("split,text,sentiment\n" + "train,a,1\n" * 3 + "valid,b,2\n", encoding="utf-8")
    assert len(load_dataset(_args("--data", str(path))).split("valid")) == 1
    assert len(load_dataset(_args("--data", str(path), "--valid-share", "0.5")).split("valid")) == 2


@pytest.mark.parametrize("argv", [("--folds", "3"), ("--fold", "1"), ("--folds", "3", "--fold", "4")])
def test_folds_that_make_no_sense_are_usage_errors(argv: tuple[str, ...], reviews: Path) -> None:
    with pytest.raises(AffectError) as caught:
        load_dataset(_args("--data", str(reviews), *argv))
    assert caught.value.code == "cli.usage"
