"""Training: it learns, selects, stops, repeats itself, goes on after a kill, and refuses what can't be."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from affectrt.affect import MODALITIES, Modality
from affectrt.errors import AffectError
from affectrt_training.config import build
from affectrt_training.data.dataset import Dataset, Example
from affectrt_training.fit.batches import FILLER, Batches
from affectrt_training.fit.checkpoint import Fitted, load_run
from affectrt_training.fit.course import Course
from affectrt_training.fit.network import without_some
from affectrt_training.fit.predict import predict
from affectrt_training.fit.run import fit_run
from affectrt_training.fit.settings import RunConfig
from affectrt_training.fit.stage import rate
from affectrt_training.fit.storage import pack, read_tensors, unpack, write_tensors
from affectrt_training.metrics import emotion_metrics, sentiment_metrics

DIMS: dict[Modality, int] = {"text": 6, "audio": 5, "vision": 4}
SMALL = {"model_dim": 8, "heads": 2, "hidden_dim": 8, "fused_dim": 8}


def synthetic(train: int = 40, valid: int = 15) -> Dataset:
    """Rows point up or down with the mood, the sentiment; some modalities and labels are missing."""
    rng = np.random.default_rng(5)
    examples = []
    for k in range(train + valid):
        mood = float(rng.uniform(-1, 1))
        rows = {
            m: (mood * np.arange(d) + 0.3 * rng.normal(size=(int(rng.integers(1, 6)), d))).astype(np.float32)
            for m, d in DIMS.items()
            if rng.random() > 0.2 or m == MODALITIES[k % 3]
        }
        emotion = None if k % 4 == 0 else (3 if mood > 0 else 0)
        examples.append(Example(f"e{k}", rows, (), None if k % 7 == 0 else 2.5 * mood, emotion))
    return Dataset("synthetic", {"train": examples[:train], "valid": examples[train:]}, dict(DIMS))


def config(**training: Any) -> RunConfig:
    settings = {"epochs": 5, "batch_size": 16, "lr": 5e-3, "accelerator": "cpu", **training}
    return build(RunConfig, {"system": "ghrnn-cma", "model": SMALL, "training": settings}, where="run")


def weights(fitted: Fitted) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in fitted.model.state_dict().items()}


def assert_same(one: Fitted, other: Fitted) -> None:
    """Bit for bit."""
    assert (one.best_epoch, one.history, one.metrics) == (other.best_epoch, other.history, other.metrics)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fitted]:
    """A finished run; don't change its folder."""
    folder = tmp_path_factory.mktemp("run") / "r"
    return folder, fit_run(config(), synthetic(), folder, progress=False)


@pytest.fixture
def run_copy(finished: tuple[Path, Fitted], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


# --- What comes out --------------------------------------------------------------------------------


def test_it_learns_and_keeps_the_best_epoch() -> None:
    dataset = synthetic()
    fitted = fit_run(config(epochs=15, patience=15, lr=2e-2, modality_dropout=0.0), dataset, progress=False)
    maes = [float(row["mae"] or 0) for row in fitted.history]
    assert len(maes) == 15 and fitted.best_epoch == 1 + int(np.argmin(maes))
    rated = [e for e in dataset.split("valid") if e.sentiment is not None]
    constant = np.abs(np.array([e.sentiment for e in rated], float)).mean()
    assert fitted.metrics["mae"] == min(maes) < 0.6 * constant
    # The weights are those of that epoch, and predictions come in the examples' order.
    said = predict(fitted, rated, batch_size=4)
    truth = np.array([e.sentiment for e in rated], float)
    assert sentiment_metrics(truth, said.sentiment).mae == pytest.approx(min(maes), abs=1e-6)
    named = [e for e in dataset.split("valid") if e.emotion is not None]
    emotions = emotion_metrics(np.array([e.emotion for e in named]), predict(fitted, named).probabilities)
    assert fitted.metrics["accuracy"] == pytest.approx(emotions.accuracy)
    assert not fitted.model.training


def test_a_run_folder_gives_back_the_model(finished: tuple[Path, Fitted]) -> None:
    folder, fitted = finished
    loaded = load_run(folder)
    assert_same(loaded, fitted)
    assert (loaded.config, loaded.dims, loaded.data["splits"]) == (
        fitted.config, DIMS, {"train": 40, "valid": 15},
    )  # fmt: skip
    assert sorted(p.name for p in folder.iterdir()) == [
        "calibration.json", "config.json", "metrics.csv", "metrics.json", "model.safetensors",
    ]  # fmt: skip
    examples = synthetic().split("valid")
    assert np.array_equal(predict(loaded, examples).sentiment, predict(fitted, examples).sentiment)
    assert load_file(folder / "model.safetensors").keys() == fitted.model.state_dict().keys()


def test_the_seed_decides_and_nothing_else(finished: tuple[Path, Fitted]) -> None:
    torch.manual_seed(1)
    random.seed(1)
    again = fit_run(config(), synthetic(), progress=False)
    drawn = (torch.rand(1).item(), random.random())
    assert_same(again, finished[1])
    other = fit_run(config(seed=1), synthetic(), progress=False)
    assert other.history != again.history
    # The caller's own random numbers are left alone.
    torch.manual_seed(1)
    random.seed(1)
    assert drawn == (torch.rand(1).item(), random.random())


def test_it_stops_when_nothing_gets_better() -> None:
    fitted = fit_run(config(epochs=30, patience=2, lr=1e-30), synthetic(), progress=False)
    maes = [float(row["mae"] or 0) for row in fitted.history]
    assert fitted.best_epoch == 1 and len(maes) == 3


@pytest.mark.parametrize(("select", "better"), [("acc7", max), ("uar", max), ("mae", min)])
def test_it_selects_by_any_metric(select: str, better: Callable[[list[float]], float]) -> None:
    fitted = fit_run(config(select=select, patience=5), synthetic(), progress=False)
    values = [float(row[select] or 0) for row in fitted.history]
    assert fitted.best_epoch == 1 + values.index(better(values))


def test_emotions_alone_and_one_modality_alone() -> None:
    dataset = synthetic()
    splits = {
        name: [replace(e, sentiment=None, rows={"audio": e.rows["audio"]}) for e in part if "audio" in e.rows]
        for name, part in dataset.splits.items()
    }
    fitted = fit_run(config(epochs=2), replace(dataset, splits=splits, dims={"audio": 5}), progress=False)
    assert "mae" not in fitted.metrics and isinstance(fitted.metrics["weighted_f1"], float)
    assert fitted.dims == {"text": 1, "audio": 5, "vision": 1}


@pytest.mark.parametrize(("system", "model"), [("ghrnn-cma", SMALL), ("cm-msf", {})])
def test_half_precision_trains(system: str, model: dict[str, object]) -> None:
    def fit(precision: str) -> Fitted:
        run = replace(config(precision=precision, epochs=2), system=system, model=model)
        return fit_run(run, synthetic(16, 8), progress=False)

    half, single = fit("bf16-mixed"), fit("32-true")
    losses = [[row["loss"] or math.nan for row in fitted.history] for fitted in (half, single)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]
    assert next(half.model.parameters()).dtype == torch.float32


def test_progress_is_a_line_an_epoch_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    fit_run(config(epochs=2), synthetic())
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == "" and [line.split(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert "mae" in lines[0] and lines[0].endswith("*")
    fit_run(config(epochs=1), synthetic(), progress=False)
    assert capfd.readouterr() == ("", "")


def test_tensorboard_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(AffectError, match="tensorboard") as caught:
        fit_run(config(logger="tensorboard"), synthetic(), tmp_path, progress=False)
    assert caught.value.code == "extra.missing"
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    fit_run(config(epochs=2, logger="tensorboard"), synthetic(), tmp_path, progress=False)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


# --- Resuming --------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_fit
from affectrt_training.fit import storage
written = []
def replace(self, target, was=Path.replace):
    written.append(str(target))
    if sum(path.endswith("state.safetensors") for path in written) == 4:
        os.kill(os.getpid(), signal.SIGKILL)  # the fourth state is on disk, but under its partial name
    return was(self, target)
Path.replace = replace
test_fit.fit_run(test_fit.config(), test_fit.synthetic(), Path({folder!r}), progress=False)
"""


def test_a_run_killed_with_sigkill_ends_the_same(finished: tuple[Path, Fitted], tmp_path: Path) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(AffectError) as caught:
        load_run(tmp_path)
    assert caught.value.code == "checkpoint.unfinished"
    resumed = fit_run(config(), synthetic(), tmp_path, resume=True, progress=False)
    assert_same(resumed, finished[1])
    for name in ("metrics.json", "metrics.csv", "model.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes(), name
    assert not (tmp_path / "state").exists()


def interrupted(folder: Path, epochs: int, run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until some epochs are kept, then break off."""
    write = Course._write

    def write_and_fail(self: Course, *args: Any) -> None:
        write(self, *args)
        if self.progress.epoch == epochs:
            raise OSError("power failure")

    with monkeypatch.context() as patch:
        patch.setattr(Course, "_write", write_and_fail)
        with pytest.raises(OSError, match="power failure"):
            fit_run(run, synthetic(), folder, progress=False)


@pytest.mark.parametrize("epochs", [1, 5])
def test_a_run_can_be_broken_off_after_any_epoch(
    epochs: int, finished: tuple[Path, Fitted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, epochs, config(), monkeypatch)
    assert_same(fit_run(config(), synthetic(), tmp_path, resume=True, progress=False), finished[1])


def test_patience_goes_on_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = config(epochs=30, patience=3, lr=1e-30)
    whole = fit_run(run, synthetic(), progress=False)
    interrupted(tmp_path, len(whole.history) - 1, run, monkeypatch)
    assert_same(fit_run(run, synthetic(), tmp_path, resume=True, progress=False), whole)


def test_resuming_what_is_finished_trains_nothing(
    finished: tuple[Path, Fitted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("affectrt_training.fit.run._train", None)
    assert_same(fit_run(config(), synthetic(), finished[0], resume=True, progress=False), finished[1])


def test_without_resume_a_run_begins_again(run_copy: Path) -> None:
    fitted = fit_run(config(epochs=1), synthetic(), run_copy, progress=False)
    assert len(load_run(run_copy).history) == len(fitted.history) == 1


def test_resuming_wants_the_same_settings_data_and_an_intact_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, 1, config(), monkeypatch)
    state = tmp_path / "state" / "state.safetensors"

    def refused(run: RunConfig, dataset: Dataset) -> AffectError:
        with pytest.raises(AffectError) as caught:
            fit_run(run, dataset, tmp_path, resume=True, progress=False)
        return caught.value

    error = refused(config(lr=1e-4), synthetic())
    assert error.code == "checkpoint.mismatch" and "training.lr: was 0.005, is 0.0001" in error.message
    error = refused(config(), synthetic(train=39))
    assert error.code == "checkpoint.mismatch" and "other data" in error.message
    data = bytearray(state.read_bytes())
    data[-5] ^= 1
    state.write_bytes(data)
    assert refused(config(), synthetic()).code == "checkpoint.corrupt"
    write_tensors(state, {}, {"dict": [["progress", {"dict": []}]]})
    assert refused(config(), synthetic()).code == "checkpoint.corrupt"


# --- Checkpoints -----------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _foreign(path: Path) -> None:
    save_file(load_file(path), path)


def _pickle(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def _narrower(path: Path) -> None:
    tensors, info = read_tensors(path)
    write_tensors(path, {**tensors, "fused.weight": tensors["fused.weight"][:3]}, info)


def _fewer(path: Path) -> None:
    tensors, info = read_tensors(path)
    write_tensors(path, {k: v for k, v in tensors.items() if k != "fused.weight"}, info)


def _edit(**values: object) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("name", "spoil", "code"),
    [
        ("model.safetensors", _truncate, "checkpoint.corrupt"),
        ("model.safetensors", _flip, "checkpoint.corrupt"),
        ("model.safetensors", _foreign, "checkpoint.corrupt"),
        ("model.safetensors", _pickle, "checkpoint.corrupt"),
        ("model.safetensors", Path.unlink, "checkpoint.not_found"),
        ("model.safetensors", _narrower, "checkpoint.mismatch"),
        ("model.safetensors", _fewer, "checkpoint.mismatch"),
        ("config.json", _edit(dims={**DIMS, "audio": 7}), "checkpoint.mismatch"),
        ("config.json", _edit(dims={"text": 6}), "checkpoint.corrupt"),
        ("config.json", _edit(schema=99), "checkpoint.schema"),
        ("config.json", _truncate, "checkpoint.corrupt"),
        ("config.json", Path.unlink, "checkpoint.not_found"),
        ("metrics.json", Path.unlink, "checkpoint.unfinished"),
        ("metrics.json", lambda path: path.write_text("[]"), "checkpoint.corrupt"),
        ("metrics.json", lambda path: path.write_text("{}"), "checkpoint.corrupt"),
        ("metrics.csv", lambda path: path.write_text("epoch,lr\n1,fast\n"), "checkpoint.corrupt"),
    ],
)
def test_a_spoilt_run_folder_is_refused(
    run_copy: Path, name: str, spoil: Callable[[Path], object], code: str
) -> None:
    spoil(run_copy / name)
    with pytest.raises(AffectError) as caught:
        load_run(run_copy)
    assert caught.value.code == code and str(run_copy) in caught.value.message


def test_trees_survive_the_disk(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    tree: dict[object, Any] = {
        0: {"step": torch.tensor(3.0), "betas": (0.9, 0.999), "none": None, "flag": True},
        "list": [1, math.inf, "x", shared.T, shared[0], torch.zeros(0), torch.ones(2, dtype=torch.bfloat16)],
    }
    tensors: dict[str, torch.Tensor] = {}
    write_tensors(tmp_path / "t.safetensors", tensors, pack(tree, tensors))
    found, info = read_tensors(tmp_path / "t.safetensors")
    back = unpack(info, found)
    assert back[0] == tree[0] and back["list"][:3] == tree["list"][:3]
    for one, other in zip(back["list"][3:], tree["list"][3:], strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]
    with pytest.raises(TypeError, match=r"got .*Path"):
        pack({"where": Path()}, {})


# --- Data that can't be trained on -----------------------------------------------------------------


def _with(dataset: Dataset, split: str, **changes: object) -> Dataset:
    first, *rest = dataset.split(split)
    return replace(dataset, splits={**dataset.splits, split: [replace(first, **changes), *rest]})  # type: ignore[arg-type]


def _unlabelled(dataset: Dataset, **changes: object) -> Dataset:
    bare = [replace(e, **changes) for e in dataset.split("valid")]  # type: ignore[arg-type]
    return replace(dataset, splits={**dataset.splits, "valid": bare})


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (lambda d: _with(d, "train", sentiment=math.nan), "data.label", r"in 1 examples \(e0\)"),
        (lambda d: _with(d, "valid", sentiment=3.5), "data.label", r"\[-3, 3\]"),
        (lambda d: _with(d, "train", emotion=7), "data.label", "emotions 0 to 6"),
        (lambda d: _unlabelled(d, sentiment=None, emotion=None), "data.label", "found none"),
        (lambda d: replace(d, splits={**d.splits, "train": []}), "data.empty_split", "'train'"),
        (lambda d: replace(d, splits={"train": d.split("train")}), "data.no_split", "'valid'"),
        (lambda d: replace(d, dims={**DIMS, "audio": 9}), "data.shape", "audio of example .* 9 features"),
        (
            lambda d: _with(d, "train", rows={"audio": np.full((2, 5), np.nan, np.float32)}),
            "data.values",
            "audio of example 'e0'",
        ),
    ],
)
def test_bad_data_are_refused(spoil: Callable[[Dataset], Dataset], code: str, message: str) -> None:
    with pytest.raises(AffectError, match=message) as caught:
        fit_run(config(), spoil(synthetic()), progress=False)
    assert caught.value.code == code


def test_selecting_by_what_has_no_labels_is_refused() -> None:
    with pytest.raises(AffectError, match="'mae' needs sentiment labels") as caught:
        fit_run(config(select="mae"), _unlabelled(synthetic(), sentiment=None), progress=False)
    assert caught.value.code == "data.label"
    with pytest.raises(AffectError, match="'uar' needs emotion labels"):
        fit_run(config(select="uar"), _unlabelled(synthetic(), emotion=None), progress=False)


def test_a_model_that_runs_away_is_named() -> None:
    with pytest.raises(AffectError, match=r"ghrnn-cma: .* lower training.lr") as caught:
        fit_run(config(lr=1e30, gradient_clip=0.0, warmup=0.0), synthetic(), progress=False)
    assert caught.value.code == "train.diverged"


@pytest.mark.parametrize(
    ("training", "code"),
    [
        ({"precision": "16-mixed"}, "train.devices"),
        ({"accelerator": "gpu"}, "train.devices"),
        ({"epochs": 0}, "config.value"),
        ({"warmup": 1.0}, "config.value"),
        ({"lr": 0}, "config.value"),
        ({"layer_decay": 0}, "config.value"),
        ({"seed": -1}, "config.value"),
    ],
)
def test_settings_that_can_not_be_are_refused(training: dict[str, object], code: str) -> None:
    if training.get("accelerator") == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(AffectError) as caught:
        fit_run(config(**training), synthetic(), progress=False)
    assert caught.value.code == code


def test_unknown_systems_and_model_settings_are_refused() -> None:
    with pytest.raises(AffectError, match="did you mean 'ghrnn-cma'"):
        fit_run(replace(config(), system="ghrnncma"), synthetic(), progress=False)
    with pytest.raises(AffectError, match="did you mean 'hidden_dim'"):
        fit_run(replace(config(), model={"hiden_dim": 3}), synthetic(), progress=False)


def test_features_of_other_widths_are_refused(finished: tuple[Path, Fitted]) -> None:
    wrong = Example("w", {"audio": np.zeros((2, 6), np.float32)})
    with pytest.raises(AffectError, match="rows of 5 features") as caught:
        predict(finished[1], [wrong])
    assert caught.value.code == "data.shape"


# --- Parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_make_up_the_same_batches(world: int) -> None:
    alone = list(Batches(10, 4, seed=3))
    shares = [list(Batches(10, 4, seed=3, rank=rank, world=world)) for rank in range(world)]
    assert {len(share) for share in shares} == {3}
    for step, batch in enumerate(alone):
        dealt = [share[step] for share in shares]
        assert len({len(part) for part in dealt}) == 1
        together = [index for turn in zip(*dealt, strict=True) for index in turn]
        assert together == batch + [FILLER] * (len(together) - len(batch))
    assert Counter(index for batch in alone for index in batch) == Counter(range(10))


def test_the_order_is_that_of_the_epoch() -> None:
    batches = Batches(20, 20, seed=3)
    orders = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        orders += list(batches)
    assert len({tuple(order) for order in orders}) == 3
    resumed = Batches(20, 20, seed=3, first_epoch=1)
    assert list(resumed) == [orders[1]]
    resumed.set_epoch(1)
    assert list(resumed) == [orders[2]]
    assert list(Batches(3, 2)) == [[0, 1], [2]]


def test_modalities_are_dropped_as_often_as_asked_but_never_the_last() -> None:
    torch.manual_seed(0)
    count, chance = 20_000, 0.4
    lengths = torch.randint(1, 9, (3, count))
    lengths[1, ::2] = 0  # half of the examples have two modalities
    lengths[2, 1::10] = 0
    batch = {f"{m}_lengths": lengths[row] for row, m in enumerate(MODALITIES)}
    dropped = without_some(batch, chance)
    after = torch.stack([dropped[f"{m}_lengths"] for m in MODALITIES])
    assert bool(((after == lengths) | (after == 0)).all())
    assert int((after > 0).sum(0).min()) == 1
    three = (lengths > 0).all(0)
    lost = (after[:, three] == 0).float().mean(1)
    # One of three is lost with that chance, unless all were to go and it was the luckiest of them.
    assert torch.allclose(lost, torch.tensor(chance - chance**3 / 3), atol=0.02)


def test_the_learning_rate_rises_then_falls() -> None:
    rates = [rate(step, 100, 0.1, "cosine") for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11) and rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0, abs=1e-9)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert [rate(step, 10, 0.0, "constant") for step in (0, 9)] == [1.0, 1.0]
    assert [rate(step, 10, 0.2, "linear") for step in (2, 4, 6, 10)] == [1.0, 0.75, 0.5, 0.0]
