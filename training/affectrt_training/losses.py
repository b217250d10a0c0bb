"""What training minimises: absolute error, cross-entropy and contrast between or within modalities.

A row without a label takes no part in that label's loss, nor an absent modality in a contrast. What is left
without rows is exactly 0, so a batch of any labels can be trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from affectrt.affect import EMOTIONS, SENTIMENT_LIMIT, Modality
from affectrt_training.models.fusion import Fused

NORM_FLOOR = 1e-3
"""Views shorter than this count as this long: the direction of a vanishing view has no useful gradient."""


@dataclass(frozen=True)
class LossConfig:
    """What the parts of the loss weigh beside the sentiment's mean absolute error, which weighs 1.

    Contrasts need a model that offers views; for others they are 0. The papers add theirs with weight 1
    (ghrnn_cma eq. 8: across; bert_inception eq. 12: within), on far more data than a few hundred clips: there
    a contrast of weight 1 outweighs the error it is to help.
    """

    emotion_weight: float = 0.5
    """Of the emotions' cross-entropy."""
    across_weight: float = 0.1
    """Of the contrast between modalities; see :func:`across_loss`."""
    within_weight: float = 0.1
    """Of the contrast within each modality; see :func:`within_loss`."""
    rating_weight: float = 0.0
    """Of the cross-entropy of the sentiment's seven classes, for models that name them. Absolute error
    asks for the median alone; the classes also tell apart what lies on one side of it."""
    temperature: float = 0.1
    """Of both contrasts: cosines are divided by it. No paper states its own; that of arXiv:2004.11362."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")
        if min(self.emotion_weight, self.across_weight, self.within_weight, self.rating_weight) < 0:
            raise ValueError("weights of losses: expected none below 0")


def total_loss(fused: Fused, batch: Mapping[str, Tensor], config: LossConfig) -> dict[str, Tensor]:
    """What a model made of a batch of ``data.dataset.collate`` → ``loss`` and its parts before weighting.

    Parts: ``sentiment`` (mean absolute error), ``emotion`` and ``rating`` (cross-entropies), ``across`` and
    ``within``; all scalars. A contrast or rating of weight 0 isn't computed and is 0.
    """
    present = {modality: batch[f"{modality}_lengths"] > 0 for modality in fused.views}
    across = within = fused.sentiment.new_zeros(())
    if fused.views and config.across_weight:
        across = across_loss(fused.views, present, config.temperature)
    if fused.views and config.within_weight:
        labels = (sentiment_classes(batch["sentiment"]), batch["emotion"])
        within = within_loss(fused.views, present, labels, config.temperature)
    rating = fused.sentiment.new_zeros(())
    if fused.rating_logits is not None and config.rating_weight:
        rating = masked_cross_entropy(fused.rating_logits, sentiment_classes(batch["sentiment"]))
    sentiment = masked_l1(fused.sentiment, batch["sentiment"])
    emotion = masked_cross_entropy(fused.emotion_logits, batch["emotion"])
    loss = (
        sentiment
        + config.emotion_weight * emotion
        + config.across_weight * across
        + config.within_weight * within
        + config.rating_weight * rating
    )
    parts = {"sentiment": sentiment, "emotion": emotion, "across": across, "within": within, "rating": rating}
    return {"loss": loss, **parts}


def masked_l1(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error over rows that have a label (NaN: none); 0 when no row has."""
    known = ~torch.isnan(truth)
    if not known.any():
        return prediction.sum() * 0.0
    return F.l1_loss(prediction[known], truth[known])


def masked_cross_entropy(logits: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy over rows that have a label (-1: none); 0 when no row has."""
    if not (truth >= 0).any():
        return logits.sum() * 0.0
    return F.cross_entropy(logits, truth, weight=weights, ignore_index=-1)


def class_weights(labels: list[int], power: float) -> Tensor:
    """(7,) weights, (1 / frequency) ** power, mean 1 over the classes."""
    counts = torch.bincount(torch.tensor(labels), minlength=len(EMOTIONS)).float().clamp(min=1)
    weights = (counts.sum() / counts) ** power
    return weights / weights.mean()


def sentiment_classes(sentiment: Tensor) -> Tensor:
    """Sentiments (B,) in [-3, 3] → the seven classes of acc-7, (B,) int64 from 0; -1 for NaN."""
    limit = round(SENTIMENT_LIMIT)
    classes = (sentiment.clamp(-limit, limit).round() + limit).nan_to_num(-1.0)
    return classes.long()


def info_nce(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """Two views (B, d) of the same samples: each finds its other view among the whole batch's.

    The InfoNCE of arXiv:1807.03748, eq. 4, with exp(cos / temperature) for its f, as the mean of both
    directions. Below two rows there is nothing to tell apart: 0.
    """
    if len(first) < 2:
        return first.new_zeros(())
    logits = _cosines(first, second) / temperature
    matching = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(logits, matching) + F.cross_entropy(logits.mT, matching)) / 2


def supervised_contrast(view: Tensor, classes: Tensor, temperature: float = 0.1) -> Tensor:
    """A view (B, d) of samples of known classes (B,): each finds those of its class among all others.

    arXiv:2004.11362, eq. 2, with cosines; rows alone in their class ask nothing but answer. Where every row
    has one partner this is bert_inception, eq. 6–8 (its denominators then run over the other 2N − 1 rows, as
    its prose has it): there the partners are two crops of one sample, and here, where feature rows are all
    there is, samples that feel alike. 0 when no class occurs twice.
    """
    itself = torch.eye(len(view), dtype=torch.bool, device=view.device)
    alike = (classes[:, None] == classes) & ~itself
    asking = alike.any(1)
    if not asking.any():
        return view.new_zeros(())
    scores = (_cosines(view, view) / temperature).masked_fill(itself, -torch.inf)
    missed = -scores.log_softmax(1).masked_fill(~alike, 0.0).sum(1)
    return (missed[asking] / alike.sum(1)[asking]).mean()


def across_loss(
    views: Mapping[Modality, Tensor], present: Mapping[Modality, Tensor], temperature: float = 0.1
) -> Tensor:
    """Mean of :func:`info_nce` over all pairs of modalities, each pair over the samples that have both.

    views (B, d) of at least one modality, present (B,) bool. This is the loss between modalities of
    ghrnn_cma, eq. 8, whose form the paper leaves open. Pairs that fewer than two samples have are left out.
    """
    parts = []
    for one, other in combinations(views, 2):
        both = present[one] & present[other]
        if int(both.sum()) > 1:
            parts.append(info_nce(views[one][both], views[other][both], temperature))
    return _mean(parts, views)


def within_loss(
    views: Mapping[Modality, Tensor],
    present: Mapping[Modality, Tensor],
    labels: Sequence[Tensor],
    temperature: float = 0.1,
) -> Tensor:
    """Mean of :func:`supervised_contrast` over modalities and kinds of labels (bert_inception, eq. 6–8, 12).

    views (B, d) of at least one modality, present (B,) bool; labels (B,) classes from 0, -1 where there is
    none. Samples are compared by one kind of label at a time: a sentiment says nothing on whether two
    emotions are alike. Modalities without two samples of one class are left out.
    """
    parts = []
    for modality, view in views.items():
        for classes in labels:
            known = present[modality] & (classes >= 0)
            chosen = classes[known]
            if len(set(chosen.tolist())) < len(chosen):
                parts.append(supervised_contrast(view[known], chosen, temperature))
    return _mean(parts, views)


def _cosines(some: Tensor, others: Tensor) -> Tensor:
    """Of all rows (B, d) with all others (C, d), (B, C) float32."""
    some, others = (F.normalize(view, dim=-1, eps=NORM_FLOOR) for view in (some, others))
    return (some @ others.mT).float()


def _mean(parts: Sequence[Tensor], views: Mapping[Modality, Tensor]) -> Tensor:
    """Of what took part; 0 when nothing did."""
    return torch.stack(list(parts)).mean() if parts else next(iter(views.values())).new_zeros(())
