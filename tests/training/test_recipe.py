"""Which stages of the starter recipe are trained, and what a broken-off stage leaves behind."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from affectrt_training.recipes.starter import STAGES
from affectrt_training.recipes.starter.fit import SCORE, Stage, best_weights, fit
from affectrt_training.recipes.starter.recipe import to_train


def _finish(runs: Path, *names: str) -> None:
    for name in names:
        best_weights(runs / name).parent.mkdir(parents=True, exist_ok=True)
        best_weights(runs / name).touch()


def test_finished_stages_are_kept(tmp_path: Path) -> None:
    assert to_train(tmp_path, []) == list(STAGES)
    _finish(tmp_path, "text", "voice")
    assert to_train(tmp_path, []) == ["face", "fusion", "causal"]
    _finish(tmp_path, "face", "fusion")
    assert to_train(tmp_path, []) == ["causal"]
    _finish(tmp_path, "causal")
    assert to_train(tmp_path, []) == []
    assert to_train(tmp_path, ["fusion"]) == ["fusion"]
    assert to_train(tmp_path, ["causal"]) == ["causal"]


def test_whole_weights_stand_for_finished_stages(tmp_path: Path) -> None:
    kept = STAGES[:4]
    assert to_train(tmp_path, [], kept) == ["causal"]
    assert to_train(tmp_path, [], STAGES) == []
    assert to_train(tmp_path, ["fusion"], STAGES) == ["fusion"]
    assert to_train(tmp_path, ["face"], STAGES) == ["face", "fusion", "causal"]


def test_the_fusions_follow_their_encoders(tmp_path: Path) -> None:
    _finish(tmp_path, *STAGES)
    assert to_train(tmp_path, ["voice"]) == ["voice", "fusion", "causal"]


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
