"""Honest confidence of a trained model: what its validation split says of each set of present modalities."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from affectrt.affect import MODALITIES, SENTIMENT_LIMIT, Modality
from affectrt.calibration import Calibration, presence_key
from affectrt.errors import AffectError
from affectrt.schema import build
from affectrt_training.data.dataset import Example, inputs
from affectrt_training.evaluation import reliability
from affectrt_training.evaluation.reliability import COVERAGE
from affectrt_training.fit.batches import Examples
from affectrt_training.fit.network import Network
from affectrt_training.fit.storage import read_json, write_json

WHOLE_SCALE = 2 * SENTIMENT_LIMIT
"""Half width of the interval that holds every sentiment, whatever was predicted."""

ENOUGH = math.ceil(COVERAGE / (1.0 - COVERAGE))
"""Examples from which on a residual is as large as ``COVERAGE`` promises."""

FILE = "calibration.json"
"""Of a run folder."""


def calibrate(
    network: Network, valid: Examples, known: Collection[Modality], batch_size: int = 64
) -> Calibration:
    """Constants for every pattern of the ``known`` modalities, from the validation split.

    A pattern is measured on those examples that have all of its modalities, the others taken away. Where
    there are none, and for temperatures where none has an emotion, it is as unsure as the least sure of the
    patterns within it; with no label at all, temperature 1 and an interval over the whole scale, which is
    also what fewer than :data:`ENOUGH` examples can promise.
    """
    temperature: dict[str, float] = {}
    widths: dict[str, float] = {}
    everything = [m for m in MODALITIES if m in known]
    parts: list[set[Modality]] = [
        set(some) for size in range(len(everything) + 1) for some in combinations(everything, size)
    ]
    sentiment, emotion = _labels(valid.examples)
    answers = _answers(network, valid, parts, batch_size)
    for present in parts:
        key = presence_key(present)
        predicted, logits, whole = answers[key]
        within = [presence_key(other) for other in parts if other < present]
        named, rated = whole & (emotion >= 0), whole & ~sentiment.isnan()
        if named.any():
            fitted = reliability.temperature(
                logits[named].double().softmax(-1).numpy(), emotion[named].numpy()
            )
            temperature[key] = round(fitted, 4)
        else:
            temperature[key] = max((temperature[k] for k in within), default=1.0)
        if (count := int(rated.sum())) >= ENOUGH:
            width = reliability.half_width(sentiment[rated].numpy(), predicted[rated].numpy())
            widths[key] = round(width, 4)
        else:
            widths[key] = WHOLE_SCALE if count else max((widths[k] for k in within), default=WHOLE_SCALE)
    return Calibration(COVERAGE, temperature, widths)


def _labels(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Sentiment (N,) with NaN and emotion (N,) with -1 where there is no label."""
    sentiment = torch.tensor([np.nan if e.sentiment is None else e.sentiment for e in examples])
    return sentiment, torch.tensor([-1 if e.emotion is None else e.emotion for e in examples])


@torch.inference_mode()
def _answers(
    network: Network, valid: Examples, parts: Sequence[set[Modality]], batch_size: int
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Of each pattern, for all N examples: sentiment (N,), emotion logits (N, 7), has all of it (N,) bool."""
    device = next(network.fusion.parameters()).device
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {presence_key(part): [] for part in parts}
    for start in range(0, len(valid), batch_size):
        batch = {k: v.to(device) for k, v in valid[range(start, min(start + batch_size, len(valid)))].items()}
        given = inputs(batch)
        if network.encoder is not None:  # once for all patterns
            given["text"] = network.encoder(batch["ids"], batch["mask"]).float()
        for part in parts:
            kept = {f"{m}_lengths": given[f"{m}_lengths"] * (m in part) for m in MODALITIES}
            sentiment, logits = network.fusion(**{**given, **kept})
            whole = torch.ones_like(sentiment, dtype=torch.bool)
            for modality in part:
                whole &= kept[f"{modality}_lengths"] > 0
            found[presence_key(part)].append((sentiment.cpu(), logits.cpu(), whole.cpu()))
    joined = {key: [torch.cat(column) for column in zip(*rows, strict=True)] for key, rows in found.items()}
    return {key: (sentiment, logits, whole) for key, (sentiment, logits, whole) in joined.items()}


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Into the run's folder."""
    write_json(folder / FILE, asdict(calibration))


def read_calibration(folder: Path) -> Calibration | None:
    """From a run's folder; None where there is none. Raises ``checkpoint.corrupt``."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return cast(Calibration, build(Calibration, read_json(path), str(path), ""))
    except AffectError as error:
        raise AffectError("checkpoint.corrupt", f"{path}: {error.message}; train again") from error


def rows_told(examples: Sequence[Example]) -> Mapping[str, Mapping[str, float | int]]:
    """Of each modality's rows: mean, standard deviation and the longest sequence, for rows to be made up."""
    told: dict[str, dict[str, float | int]] = {}
    for modality in MODALITIES:
        rows = [e.rows[modality] for e in examples if modality in e.rows]
        if rows:
            joined = np.concatenate(rows).astype(np.float64)
            told[modality] = {
                "mean": round(float(joined.mean()), 6),
                "std": round(float(joined.std()), 6),
                "longest": max(map(len, rows)),
            }
    return told
