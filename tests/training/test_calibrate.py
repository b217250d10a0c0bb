"""How far a run may be trusted, as its folder keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectrt.affect import Modality
from affectrt.calibration import Calibration
from affectrt.errors import AffectError
from affectrt_training.config import build
from affectrt_training.data.dataset import Dataset, Example, FloatMatrix
from affectrt_training.evaluation import reliability
from affectrt_training.fit.calibrate import WHOLE_SCALE, read_calibration
from affectrt_training.fit.checkpoint import load_run
from affectrt_training.fit.predict import predict
from affectrt_training.fit.run import fit_run
from affectrt_training.fit.settings import RunConfig


def heard_and_seen(emotions: bool = True, sentiments: bool = True, valid: int = 40) -> Dataset:
    """Voice and face of people, half of them without a face."""
    rng = np.random.default_rng(3)
    examples = []
    for k in range(20 + valid):
        rows: dict[Modality, FloatMatrix] = {"audio": rng.normal(size=(3, 4)).astype(np.float32)}
        if k % 2:
            rows["vision"] = rng.normal(size=(2, 5)).astype(np.float32)
        sentiment = float(rng.uniform(-3, 3)) if sentiments else None
        examples.append(Example(f"e{k}", rows, (), sentiment, k % 7 if emotions else None))
    return Dataset("people", {"train": examples[:20], "valid": examples[20:]}, {"audio": 4, "vision": 5})


def config(**training: Any) -> RunConfig:
    settings = {"epochs": 1, "accelerator": "cpu", **training}
    return build(RunConfig, {"system": "lf-lstm", "training": settings}, where="run")


def test_a_folder_keeps_constants_for_every_pattern_of_what_the_data_had(tmp_path: Path) -> None:
    dataset = heard_and_seen()
    fitted = fit_run(config(), dataset, tmp_path / "run", progress=False)
    loaded = load_run(tmp_path / "run")
    kept = loaded.calibration
    assert kept is not None and kept == fitted.calibration
    assert kept.modalities == ("audio", "vision")
    assert set(kept.temperature) == {"audio+vision", "audio", "vision", "none"}
    # By hand: all are heard; both are there of every second one.
    patterns: dict[str, tuple[Modality, ...]] = {"audio": ("audio",), "audio+vision": ("audio", "vision")}
    for key, known in patterns.items():
        examples = [e for e in dataset.split("valid") if len(e.rows) >= len(known)]
        only = [Example(e.id, {m: e.rows[m] for m in known}) for e in examples]
        found = predict(loaded, only)
        truth = [e.sentiment for e in examples]
        assert kept.interval_half_width[key] == pytest.approx(
            reliability.half_width(np.array(truth, float), found.sentiment), abs=1e-3
        )
        emotions = np.array([e.emotion for e in examples], np.int64)
        assert kept.temperature[key] == pytest.approx(
            reliability.temperature(found.probabilities, emotions), abs=0.02
        )
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["rows"]["audio"]["longest"] == 3


def test_without_labels_it_promises_nothing(tmp_path: Path) -> None:
    fit_run(config(), heard_and_seen(emotions=False), tmp_path / "rated", progress=False)
    rated = read_calibration(tmp_path / "rated")
    assert isinstance(rated, Calibration) and set(rated.temperature.values()) == {1.0}
    fit_run(config(), heard_and_seen(sentiments=False), tmp_path / "named", progress=False)
    named = read_calibration(tmp_path / "named")
    assert named is not None and set(named.interval_half_width.values()) == {WHOLE_SCALE}


def test_too_few_examples_promise_the_whole_scale(tmp_path: Path) -> None:
    fit_run(config(), heard_and_seen(valid=10), tmp_path / "run", progress=False)
    found = read_calibration(tmp_path / "run")
    assert found is not None
    assert found.interval_half_width["audio"] < WHOLE_SCALE == found.interval_half_width["vision"]


def test_without_a_folder_nothing_is_computed_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    assert fit_run(config(), heard_and_seen(), progress=False).calibration is None
    assert read_calibration(tmp_path) is None
    (tmp_path / "calibration.json").write_text('{"coverage": 2}')
    with pytest.raises(AffectError) as caught:
        read_calibration(tmp_path)
    assert caught.value.code == "checkpoint.corrupt"
