"""What a trained model says of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from affectrt.affect import EMOTIONS
from affectrt_training.data.dataset import Example
from affectrt_training.fit.checkpoint import Fitted
from affectrt_training.fit.network import Network
from affectrt_training.fit.prepare import check_rows


@dataclass(frozen=True)
class Predictions:
    """Of N examples, in their order."""

    sentiment: npt.NDArray[np.float64]
    """(N,) in [-3, 3]."""
    probabilities: npt.NDArray[np.float64]
    """(N, 7) of ``EMOTIONS``; rows sum to 1."""


def predict(
    fitted: Fitted,
    examples: Sequence[Example],
    batch_size: int = 64,
    *,
    cache: Path | None = None,
    progress: bool = False,
) -> Predictions:
    """Run a model where its weights lie. An example without any modality gets the model's prior.

    Words become text as they did in training; ``cache`` is where a frozen encoder keeps its rows. Raises
    ``data.shape`` for features of other widths than the model reads, ``data.values`` for NaN.
    """
    read = fitted.reader.read(examples, cache, progress)
    check_rows(read.examples, fitted.dims, f"{fitted.config.system} of a run")
    network = Network(fitted.model, fitted.encoder).eval()
    device = next(fitted.model.parameters()).device
    # Those of like length together: less padding, the same answers.
    order = sorted(range(len(examples)), key=lambda i: _longest(read.examples[i], examples[i]))
    sentiment = np.zeros(len(examples))
    probabilities = np.zeros((len(examples), len(EMOTIONS)))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = {key: tensor.to(device) for key, tensor in read[chosen].items()}
        with torch.inference_mode():
            fused = network(batch)
        sentiment[chosen] = fused.sentiment.double().cpu().numpy()
        probabilities[chosen] = fused.emotion_logits.double().softmax(-1).cpu().numpy()
    return Predictions(sentiment, probabilities)


def _longest(read: Example, given: Example) -> int:
    return max([*map(len, read.rows.values()), len(given.words) if "text" not in read.rows else 0])
