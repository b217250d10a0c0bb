"""Which stages of the starter recipe are trained, and what a broken-off stage leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import lightning
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from affectrt_training.recipes.starter import FUSIONS, STAGES
from affectrt_training.recipes.starter.fit import SCORE, Stage, best_weights, fit, save_tensors
from affectrt_training.recipes.starter.stages import Part, complete, done, outlook
from affectrt_training.recipes.starter.weights import read_kept, save_weights


def _finish(runs: Path, restart: Sequence[str] = (), kept: Mapping[str, Part] | None = None) -> list[str]:
    """Run the recipe with random weights for training; returns what it trained."""
    trained = []

    def train(name: str) -> Path:
        trained.append(name)
        tensors = {"encoder.weight": torch.randn(2, 2), "encoder.count": torch.tensor(7)}
        save_tensors(tensors, best_weights(runs / name))
        return best_weights(runs / name)

    parts = done(runs, restart, kept or {})
    for name in STAGES:
        complete(runs, parts, name, partial(train, name))
    assert set(parts) == set(STAGES)
    return trained


def _whole(*names: str) -> dict[str, Part]:
    return {name: {"weight": torch.randn(2, 2)} for name in names}


def test_finished_stages_are_kept(tmp_path: Path) -> None:
    assert _finish(tmp_path) == list(STAGES)
    assert _finish(tmp_path) == []
    assert _finish(tmp_path, ["causal"]) == ["causal"]
    for name in ("face", "text"):
        best_weights(tmp_path / name).unlink()
        assert _finish(tmp_path) == [name, *FUSIONS]
    assert _finish(tmp_path) == []


def test_what_learned_from_a_stage_follows_it(tmp_path: Path) -> None:
    _finish(tmp_path)
    assert _finish(tmp_path, ["voice"]) == ["voice", "fusion", "causal"]
    assert _finish(tmp_path, ["fusion"]) == ["fusion", "causal"]  # which begins with the fusion's weights
    assert _finish(tmp_path) == []


def test_whole_weights_stand_for_finished_stages(tmp_path: Path) -> None:
    kept = _whole(*STAGES)
    assert _finish(tmp_path, kept=kept) == []
    assert _finish(tmp_path, ["fusion"], kept) == ["fusion"]
    assert _finish(tmp_path, ["face"], kept) == ["face", "fusion", "causal"]
    # A fusion whose encoders are not with it is of nobody knows which.
    assert _finish(tmp_path / "other", kept=_whole("text", "fusion")) == list(STAGES[1:])


def test_a_fusion_of_other_encoders_is_not_mixed_in(tmp_path: Path) -> None:
    _finish(tmp_path)
    kept = _whole(*STAGES[:4])
    told = outlook(tmp_path, (), done(tmp_path, (), kept))
    assert [line.partition(":")[2] for line in told[:4]] == [" already trained, kept"] * 4
    assert told[4].startswith("causal: to be trained; what lies in") and "is not known" in told[4]
    assert _finish(tmp_path, kept=kept) == ["causal"]
    assert _finish(tmp_path, kept=kept) == []
    assert _finish(tmp_path, kept={**kept, **_whole("fusion")}) == ["causal"]
    assert _finish(tmp_path) == ["causal"]


def test_weights_saved_and_kept_are_the_same_encoders(tmp_path: Path) -> None:
    _finish(tmp_path)
    parts, whole = done(tmp_path, (), {}), tmp_path / "whole.safetensors"
    save_weights(parts, {}, whole)
    kept = {name: part for name, part in read_kept(whole).parts.items() if name != "causal"}
    assert done(tmp_path, (), kept).keys() == set(STAGES)


def test_a_fusion_that_was_broken_off_vouches_for_nothing(tmp_path: Path) -> None:
    _finish(tmp_path)

    def breaks() -> Path:
        save_tensors({"encoder.weight": torch.ones(2, 2)}, best_weights(tmp_path / "fusion"))
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        complete(tmp_path, done(tmp_path, ["fusion"], {}), "fusion", breaks)
    assert _finish(tmp_path) == ["fusion", "causal"]


class _Counting(Stage):
    """Scores 1, 3, 2, … over the epochs; its weight is the epoch; breaks off after ``breaks`` epochs."""

    def __init__(self, breaks: int | None) -> None:
        super().__init__()
        self.breaks = breaks
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return (self.weight * 0.0).sum()

    def validation_step(self, batch: Tensor, _: int) -> None:
        if self.breaks is not None and self.current_epoch >= self.breaks:
            raise RuntimeError("power cut")
        self.weight.data.fill_(float(self.current_epoch))
        self.log(SCORE, [1.0, 3.0, 2.0][self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(folder: Path, breaks: int | None = None) -> Path:
    lightning.seed_everything(0, verbose=False)
    data = DataLoader(TensorDataset(torch.zeros(1, 1)))
    return fit(_Counting(breaks), data, data, epochs=3, folder=folder)


@pytest.mark.filterwarnings("ignore:.*training batches.*")
@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_only_a_finished_stage_counts_as_done(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        _fit(tmp_path, breaks=2)
    assert not best_weights(tmp_path).exists()
    assert load_file(_fit(tmp_path))["weight"].item() == 1.0  # the epoch that scored best, not the last
