"""Losses against sums worked out by hand and against plain loops over rows."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from affectrt.affect import MODALITIES, Modality
from affectrt_training.losses import (
    LossConfig,
    across_loss,
    class_weights,
    info_nce,
    masked_cross_entropy,
    masked_l1,
    sentiment_classes,
    supervised_contrast,
    total_loss,
    within_loss,
)
from affectrt_training.models.fusion import Fused

NAN = float("nan")
ALL = torch.ones(6, dtype=torch.bool)


def make_views(rows: int = 6, dim: int = 5, seed: int = 0) -> dict[Modality, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {m: torch.randn(rows, dim, generator=generator) for m in MODALITIES}


def make_batch(
    sentiment: list[float], emotion: list[int], lengths: dict[str, list[int]]
) -> dict[str, Tensor]:
    batch = {f"{m}_lengths": torch.tensor(lengths.get(m, [3] * len(sentiment))) for m in MODALITIES}
    return {**batch, "sentiment": torch.tensor(sentiment), "emotion": torch.tensor(emotion)}


def nce_loop(first: Tensor, second: Tensor, temperature: float) -> float:
    """arXiv:1807.03748 eq. 4, row by row, both ways."""
    total = 0.0
    for one, other in ((first, second), (second, first)):
        for i in range(len(one)):
            f = [math.exp(torch.cosine_similarity(one[i], row, dim=0).item() / temperature) for row in other]
            total -= math.log(f[i] / sum(f)) / (2 * len(one))
    return total


def contrast_loop(view: Tensor, classes: list[int], temperature: float) -> float:
    """arXiv:2004.11362 eq. 2, row by row."""
    losses = []
    for i, row in enumerate(view):
        others = [j for j in range(len(view)) if j != i]
        f = {j: math.exp(torch.cosine_similarity(row, view[j], dim=0).item() / temperature) for j in others}
        partners = [j for j in others if classes[j] == classes[i]]
        if partners:
            losses.append(-sum(math.log(f[j] / sum(f.values())) for j in partners) / len(partners))
    return sum(losses) / len(losses)


def test_rows_without_a_label_take_no_part() -> None:
    prediction = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    loss = masked_l1(prediction, torch.tensor([2.0, NAN, -0.5]))
    assert loss.item() == pytest.approx((1.0 + 1.0) / 2)
    torch.autograd.backward(loss)
    assert prediction.grad is not None and prediction.grad.tolist() == [-0.5, 0.0, 0.5]
    logits = torch.zeros(3, 7)
    logits[0, 2] = 1.0
    found = masked_cross_entropy(logits, torch.tensor([2, -1, 0]))
    assert found.item() == pytest.approx((math.log(math.e + 6) - 1 + math.log(7)) / 2)


def test_without_labels_the_loss_is_zero_and_still_differentiable() -> None:
    prediction, logits = torch.ones(2, requires_grad=True), torch.ones(2, 7, requires_grad=True)
    loss = masked_l1(prediction, torch.full((2,), NAN)) + masked_cross_entropy(logits, torch.full((2,), -1))
    assert loss.item() == 0
    torch.autograd.backward(loss)
    assert prediction.grad is not None and not prediction.grad.any()


def test_class_weights_even_out_frequencies() -> None:
    weights = class_weights([0] * 8 + [1] * 2 + [2, 3, 4, 5, 6] * 4, 1.0)
    assert weights.mean().item() == pytest.approx(1.0)
    assert (weights[1] / weights[0]).item() == pytest.approx(4.0)
    assert class_weights([0, 0, 1], 0.0).tolist() == [1.0] * 7


def test_sentiment_classes_are_those_of_acc7() -> None:
    sentiment = torch.tensor([-3.0, -2.5, -0.4, 0.5, 1.5, 3.0, NAN])
    assert sentiment_classes(sentiment).tolist() == [0, 1, 3, 3, 5, 6, -1]


def test_info_nce_by_hand() -> None:
    """Orthogonal rows that match: cosines 1 and 0. Swapped: 0 and 1. Length doesn't count."""
    rows = torch.eye(2) * 5
    assert info_nce(rows, torch.eye(2), 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
    assert info_nce(rows, torch.eye(2).flip(0), 0.5).item() == pytest.approx(
        math.log(1 + math.exp(2)), abs=1e-6
    )
    views = make_views()
    assert info_nce(views["text"], views["audio"], 0.2).item() == pytest.approx(
        nce_loop(views["text"], views["audio"], 0.2), abs=1e-5
    )


def test_supervised_contrast_by_hand() -> None:
    """Two of a class are alike, a third is orthogonal: two ask, −log(e^10 / (e^10 + 1)) each."""
    view = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    found = supervised_contrast(view, torch.tensor([4, 4, 1]), 0.1)
    assert found.item() == pytest.approx(math.log1p(math.exp(-10)), abs=1e-6)
    classes = [0, 1, 0, 1, 1, 2]
    view = make_views()["text"]
    found = supervised_contrast(view, torch.tensor(classes), 0.2)
    assert found.item() == pytest.approx(contrast_loop(view, classes, 0.2), abs=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_give_exactly_zero(rows: int) -> None:
    view = torch.ones(rows, 4)
    assert info_nce(view, view).item() == 0
    assert supervised_contrast(view, torch.zeros(rows, dtype=torch.int64)).item() == 0


def test_no_class_twice_gives_exactly_zero() -> None:
    assert supervised_contrast(make_views()["text"], torch.arange(6)).item() == 0


def test_across_takes_pairs_of_present_modalities_only() -> None:
    views = make_views()
    present = {
        "text": torch.tensor([1, 1, 1, 1, 0, 0]).bool(),
        "audio": torch.tensor([0, 1, 1, 1, 1, 1]).bool(),
        "vision": torch.tensor([1, 0, 0, 0, 0, 1]).bool(),
    }
    # text with vision share one row, audio with vision one: too few.
    want = nce_loop(views["text"][1:4], views["audio"][1:4], 0.3)
    assert across_loss(views, present, 0.3).item() == pytest.approx(want, abs=1e-5)  # type: ignore[arg-type]
    want = sum(nce_loop(one, other, 0.3) for one, other in combinations(views.values(), 2))
    assert across_loss(views, dict.fromkeys(MODALITIES, ALL), 0.3).item() == pytest.approx(want / 3, abs=1e-5)


def test_within_compares_one_kind_of_label_at_a_time() -> None:
    views = {"text": make_views()["text"]}
    rated, named = torch.tensor([2, 2, -1, 3, 3, 2]), torch.tensor([-1, -1, 5, -1, 5, -1])
    want = (
        contrast_loop(views["text"][[0, 1, 3, 4, 5]], [2, 2, 3, 3, 2], 0.1)
        + contrast_loop(views["text"][[2, 4]], [5, 5], 0.1)
    ) / 2
    found = within_loss(views, {"text": ALL}, (rated, named))  # type: ignore[arg-type]
    assert found.item() == pytest.approx(want, abs=1e-5)
    absent = {"text": torch.tensor([1, 1, 0, 0, 1, 0]).bool()}
    want = contrast_loop(views["text"][[0, 1, 4]], [2, 2, 3], 0.1)
    assert within_loss(views, absent, (rated, named)).item() == pytest.approx(want, abs=1e-5)  # type: ignore[arg-type]


def test_absent_views_may_hold_anything() -> None:
    """Neither the loss nor a gradient sees them, NaN included."""
    views = make_views()
    views["audio"][2] = NAN
    views["audio"].requires_grad_()
    batch = make_batch([1.0] * 6, [2] * 6, {"audio": [3, 3, 0, 3, 3, 3]})
    fused = Fused(torch.zeros(6), torch.zeros(6, 7), views)
    parts = total_loss(fused, batch, LossConfig())
    assert parts["loss"].isfinite()
    torch.autograd.backward(parts["loss"])
    assert views["audio"].grad is not None
    assert views["audio"].grad.isfinite().all() and not views["audio"].grad[2].any()
    assert views["audio"].grad[0].any()


def test_the_whole_is_its_weighted_parts() -> None:
    views = make_views()
    fused = Fused(torch.linspace(-1, 1, 6), torch.arange(42.0).view(6, 7) / 9, views)
    batch = make_batch([1.0, NAN, -2.0, 1.2, 0.0, -2.2], [1, 1, -1, 3, 3, 0], {"vision": [0, 2, 1, 1, 1, 1]})
    config = LossConfig(emotion_weight=0.7, across_weight=0.3, within_weight=0.2, temperature=0.5)
    parts = {name: value.item() for name, value in total_loss(fused, batch, config).items()}
    assert parts.pop("rating") == 0  # no model here names classes
    assert set(parts) == {"loss", "sentiment", "emotion", "across", "within"}
    assert min(parts.values()) > 0
    want = parts["sentiment"] + 0.7 * parts["emotion"] + 0.3 * parts["across"] + 0.2 * parts["within"]
    assert parts["loss"] == pytest.approx(want, abs=1e-6)
    present = {m: batch[f"{m}_lengths"] > 0 for m in MODALITIES}
    labels = (torch.tensor([4, -1, 1, 4, 3, 1]), batch["emotion"])
    assert parts["across"] == pytest.approx(across_loss(views, present, 0.5).item())
    assert parts["within"] == pytest.approx(within_loss(views, present, labels, 0.5).item())


def test_a_model_without_views_has_no_contrast() -> None:
    batch = make_batch([1.0, 2.0], [0, 0], {})
    parts = total_loss(Fused(torch.zeros(2), torch.zeros(2, 7)), batch, LossConfig())
    assert parts["across"].item() == parts["within"].item() == 0
    assert parts["loss"].item() == pytest.approx(1.5 + 0.5 * math.log(7))


def test_gradients_pull_partners_together() -> None:
    views = make_views()
    first, second = views["text"].requires_grad_(), views["audio"]
    before = info_nce(first, second)
    torch.autograd.backward(before)
    assert first.grad is not None
    assert info_nce(first - 0.1 * first.grad, second) < before
    still = torch.zeros(4, 5, requires_grad=True)
    torch.autograd.backward(info_nce(still, views["audio"][:4]))
    assert still.grad is not None and still.grad.isfinite().all(), "a view of zeros has no direction"


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"across_weight": -0.1}])
def test_settings_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected a positive number|expected none below 0"):
        LossConfig(**wrong)
