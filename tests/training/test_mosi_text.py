"""The recipe for text alone, on a treebank of four trees."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from affectrt_training.data.dataset import Example
from affectrt_training.encoders.text import LoraSettings, TextSettings
from affectrt_training.fit.checkpoint import ENCODER, load_run
from affectrt_training.fit.predict import predict
from affectrt_training.losses import LossConfig, total_loss
from affectrt_training.models.fusion import Fused
from affectrt_training.models.text_mean import TextMean, TextMeanConfig
from affectrt_training.recipes.mosi_text.recipe import MosiTextRecipe, train_mosi_text

TREES = [
    "(4 (3 Good) (4 (3 good) (2 film)))",
    "(0 (1 Bad) (0 (1 bad) (2 film)))",
    "(3 (2 I) (3 like) (2 it))",
    "(1 (2 I) (1 (1 dislike) (2 it)))",
]
RECIPE = MosiTextRecipe(
    text=TextSettings(tuning="lora", lora=LoraSettings(rank=2, alpha=4.0, dropout=0.0), max_tokens=16),
    rates=2,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "text"
    folder.mkdir(parents=True)
    (folder / "sst_train_trees.txt").write_text("\n".join(TREES), encoding="utf-8")
    tables: dict[str, list[tuple[str, ...]]] = {
        "sst5.csv": [("split", "label_0_4", "text"), ("train", "4", "Good film !"), ("train", "0", "Bad .")],
        "mosi_train_valid.csv": [
            ("id", "split", "sentiment", "text"),
            *((f"t{i}", "train", "2.0" if i % 2 else "-2.0", "GOOD" if i % 2 else "BAD") for i in range(8)),
            ("v0", "valid", "2.4", "A GOOD FILM"),
            ("v1", "valid", "-1.8", "BAD"),
        ],
        "meld_train_valid.csv": [
            ("split", "emotion", "sentiment", "text"),
            ("train", "joy", "positive", "Oh, great!"),
        ],
    }
    for name, rows in tables.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return folder.parent


def test_the_average_of_the_runs_stays_and_is_what_was_measured(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    scores = train_mosi_text(data, folder, seed=3, recipe=RECIPE)
    kept, parts = load_run(folder), [load_run(folder / "stages" / f"rate-{i}") for i in range(2)]
    assert parts[0].config.training.seed != parts[1].config.training.seed

    def adapter(run: object) -> dict[str, torch.Tensor]:
        encoder = getattr(run, "encoder")  # noqa: B009
        return dict(encoder.adapter())

    a, b = (adapter(part) for part in parts)
    assert any(not torch.equal(a[name], b[name]) for name in a)
    for name, value in adapter(kept).items():
        torch.testing.assert_close(value, ((a[name] + b[name]) / 2).half().float(), rtol=1e-3, atol=1e-7)
    size = [path.stat().st_size for path in (folder / ENCODER, folder / "stages" / "rate-0" / ENCODER)]
    assert size[0] < 0.7 * size[1]

    valid = [Example("v0", {}, ("A", "GOOD", "FILM")), Example("v1", {}, ("BAD",))]
    said = predict(kept, valid).sentiment
    assert scores["CMU-MOSI valid"]["mae"] == pytest.approx(np.abs(said - [2.4, -1.8]).mean(), abs=1e-6)
    # A finished training is not begun again.
    assert train_mosi_text(data, folder, seed=3, recipe=RECIPE) == scores


def test_naming_the_class_is_one_more_part_of_the_loss() -> None:
    logits = torch.randn(3, 7)
    fused = Fused(torch.zeros(3), torch.zeros(3, 7), {}, logits)
    batch = {"sentiment": torch.tensor([-2.6, torch.nan, 0.4]), "emotion": torch.tensor([-1, -1, -1])}
    parts = total_loss(fused, batch, LossConfig(rating_weight=0.5))
    named = -(logits[0].log_softmax(0)[0] + logits[2].log_softmax(0)[3]) / 2
    torch.testing.assert_close(parts["rating"], named)
    torch.testing.assert_close(parts["loss"], torch.tensor((2.6 + 0.4) / 2) + 0.5 * named)
    assert total_loss(fused, batch, LossConfig())["rating"] == 0


def test_the_baseline_is_the_mean_of_the_valid_rows() -> None:
    model = TextMean(TextMeanConfig(text_dim=4, audio_dim=2, vision_dim=2)).eval()
    text = torch.randn(2, 3, 4)
    text[0, 2] = torch.nan
    nothing, none = torch.zeros(2, 1, 2), torch.zeros(2, dtype=torch.int64)
    sentiment, logits = model(text, torch.tensor([2, 0]), nothing, none, nothing, none)
    for row, mean in enumerate((text[0, :2].mean(0), model.null)):
        torch.testing.assert_close(sentiment[row], model.sentiment(mean)[0].clamp(-3, 3))
        torch.testing.assert_close(logits[row], model.emotion(mean))
