"""The task gate of a run: on labelled data its bundle may score no worse than is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt.backends import FloatArray
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import words_of
from affectrt.model import Model
from affectrt_training.data.dataset import Dataset, Example, inputs
from affectrt_training.fit.checkpoint import Fitted
from affectrt_training.fit.predict import predict
from affectrt_training.fit.score import LOWER_IS_BETTER, Truth, score

MAX_DROP = 0.01
"""Share by which the metric may get worse unless told otherwise."""

PARITY_EXAMPLES = 16
"""Examples whose rows the graphs are tried on."""


@dataclass(frozen=True)
class TaskGate:
    """The metric of one split before and after the export."""

    metric: str
    """``mae`` where there are sentiments, else ``weighted_f1``."""
    dataset: str
    """Data set and split."""
    examples: int
    """Labelled examples it was measured on."""
    before: float
    """Of the run, by PyTorch."""
    after: float
    """Of the bundle, as a device runs it."""

    @property
    def drop(self) -> float:
        """By which share it got worse; negative when it got better."""
        worse = self.after - self.before if self.metric in LOWER_IS_BETTER else self.before - self.after
        return worse / self.before if self.before > 0 else (np.inf if worse > 0 else 0.0)


def measure(fitted: Fitted, model: Model, dataset: Dataset, cache: Path | None) -> TaskGate:
    """Score run and bundle on the split ``valid``. Raises ``evaluate.no_labels``."""
    examples = [e for e in dataset.split("valid") if e.sentiment is not None or e.emotion is not None]
    if not examples:
        raise AffectError(
            "evaluate.no_labels", f"{dataset.name}, split 'valid': no row has a label to measure the task by"
        )
    truth = Truth([e.sentiment for e in examples], [e.emotion for e in examples])
    expected = predict(fitted, examples, cache=cache)
    answers = [model.fuse(sequences(fitted, model, example), 1.0, 0.0) for example in examples]
    probabilities = [[answer.emotions[name] for name in EMOTIONS] for answer in answers]
    scores = (
        score(truth, expected.sentiment, expected.probabilities),
        score(truth, [answer.sentiment for answer in answers], probabilities),
    )
    metric = "mae" if "mae" in scores[0] else "weighted_f1"
    before, after = (found[metric] for found in scores)
    assert isinstance(before, float) and isinstance(after, float)
    return TaskGate(metric, f"{dataset.name} valid", len(examples), before, after)


def check(gate: TaskGate, max_drop: float, reason: str = "") -> None:
    """Raise ``export.task_gate`` when the metric got worse by more than ``max_drop`` of it.

    ``reason``: what else to say then.
    """
    if not gate.drop <= max_drop:
        raise AffectError(
            "export.task_gate",
            f"task gate: {gate.metric} on {gate.dataset} goes from {gate.before:.4f} to {gate.after:.4f}, "
            f"worse by {gate.drop:.2%}; at most {max_drop:.2%} is allowed (--max-drop); nothing was "
            f"written{reason}",
        )


def sequences(fitted: Fitted, model: Model, example: Example) -> dict[Modality, FeatureSequence]:
    """An example's features as the device has them: its rows, and its words read by the bundle's encoder."""
    found: dict[Modality, FeatureSequence] = {}
    for modality, rows in example.rows.items():
        if modality in model.manifest.modalities and (modality != "text" or not fitted.reader.tunes):
            found[modality] = FeatureSequence(modality, rows, np.linspace(0.0, 1.0, len(rows)), "export")
    if fitted.text_from == "words" and "text" not in found and example.words:
        found["text"] = model.encoders.text.extract(words_of(" ".join(example.words), 0.0))
    return found


def fusion_rows(
    fitted: Fitted, examples: Sequence[Example], cache: Path | None, count: int = PARITY_EXAMPLES
) -> list[dict[Modality, FloatArray]]:
    """What PyTorch's fusion model reads of the first ``count`` examples, by modality."""
    read = fitted.reader.read(examples[:count], cache, False)
    found: list[dict[Modality, FloatArray]] = []
    for index in range(len(read)):
        batch = read[[index]]
        given = inputs(batch)
        if fitted.encoder is not None:
            with torch.no_grad():
                given["text"] = fitted.encoder(batch["ids"], batch["mask"]).float()
        counts = {m: int(given[f"{m}_lengths"][0]) for m in MODALITIES}
        found.append({m: given[m][0, :count].numpy() for m, count in counts.items() if count})
    return found
