"""Sequences for the causal stage: what one person says, sounds and looks like, moment after moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from affectrt.affect import EMOTIONS, MODALITIES, Modality

TICK_S = 0.1
"""An answer every so often; tick k is at (k + 1) · TICK_S."""

SETTLED_S = 0.5
"""An answer so long after the last evidence is the one that validation scores."""

TAIL_S = 3.0
"""Up to so long nothing comes after the last evidence."""

BEFORE_WEIGHT = 0.1
"""Of all ticks before anything is known, beside a moment's 1: to guess what most people show."""

FIRST_WEIGHT = 0.2
"""Of a moment's first evidence, beside its last: a sentence's first word can't tell it all."""

LATE_WEIGHT = 0.3
"""Of the end of a tail, beside the last evidence."""

_EPS = 1e-9


@dataclass(frozen=True)
class Moment:
    """One person for some seconds: rows as they become known, and what it all means."""

    rows: dict[Modality, Tensor]
    """(T, D) of each present modality."""
    times_s: dict[Modality, Tensor]
    """(T,) float64, not decreasing, in stream seconds."""
    emotion: Tensor
    """(7,) probabilities; all zero: no label."""
    sentiment: float
    """NaN: no label."""

    def only(self, present: frozenset[Modality]) -> Moment:
        """The same with fewer modalities."""
        rows, times = ({m: x for m, x in of.items() if m in present} for of in (self.rows, self.times_s))
        return Moment(rows, times, self.emotion, self.sentiment)

    @property
    def known(self) -> bool:
        """Whether there is any evidence."""
        return any(map(len, self.rows.values()))

    @property
    def begins_s(self) -> float:
        """The first evidence; without any, the beginning of the stream."""
        return min((float(t[0]) for t in self.times_s.values() if len(t)), default=0.0)

    @property
    def ends_s(self) -> float:
        """The last evidence."""
        return max((float(t[-1]) for t in self.times_s.values() if len(t)), default=0.0)


@dataclass(frozen=True)
class Course:
    """A stream: moments, one after the other."""

    moments: Sequence[Moment]
    ends_s: float
    """When it is broken off."""

    @property
    def ticks(self) -> int:
        """How many answers it asks for."""
        return max(1, tick_at(self.ends_s) + 1)


def tick_at(time_s: float) -> int:
    """The tick that first knows of this time."""
    return max(0, ceil(time_s / TICK_S - _EPS) - 1)


def collate(courses: Sequence[Course], dims: dict[Modality, int]) -> dict[str, Tensor]:
    """Courses as the causal model takes them, with ``emotion`` (B, K, 7), ``sentiment`` (B, K) and ``weight``
    (B, K) of every tick's loss."""
    ticks = torch.tensor([course.ticks for course in courses])
    count = int(ticks.max())
    batch: dict[str, Tensor] = {
        "text": torch.zeros(len(courses), count, dims["text"]),
        "spoken": torch.zeros(len(courses), count, dtype=torch.bool),
        "tick_times": (TICK_S * torch.arange(1, count + 1, dtype=torch.float64)).repeat(len(courses), 1),
        "lengths": ticks,
    }
    for row, course in enumerate(courses):
        _speak(course, batch["text"][row], batch["spoken"][row])
    for modality in MODALITIES[1:]:
        values = [_all_rows(course, modality, dims[modality]) for course in courses]
        times = [torch.cat([m.times_s.get(modality, _NEVER) for m in course.moments]) for course in courses]
        lengths = [len(t) for t in times]
        padded = nn.utils.rnn.pad_sequence(values, batch_first=True)
        room = max(1, *lengths)
        batch[modality] = nn.functional.pad(padded, (0, 0, 0, room - padded.shape[1]))
        padded = nn.utils.rnn.pad_sequence(times, batch_first=True)
        batch[f"{modality}_times"] = nn.functional.pad(padded, (0, room - padded.shape[1]))
        batch[f"{modality}_lengths"] = torch.tensor(lengths)
    labels = [tick_labels(course, count) for course in courses]
    for name, of in zip(("emotion", "sentiment", "weight"), zip(*labels, strict=True), strict=True):
        batch[name] = torch.stack(of)
    return batch


_NEVER = torch.zeros(0, dtype=torch.float64)


def _all_rows(course: Course, modality: Modality, dim: int) -> Tensor:
    rows = [m.rows[modality].float() for m in course.moments if modality in m.rows]
    return torch.cat(rows) if rows else torch.zeros(0, dim)


def _speak(course: Course, text: Tensor, spoken: Tensor) -> None:
    """Fill in the ticks (K, D) at which words ended; what ended in one tick is averaged."""
    times = torch.cat([moment.times_s.get("text", _NEVER) for moment in course.moments])
    if len(times):
        rows = _all_rows(course, "text", text.shape[1])
        ticks = (torch.ceil(times / TICK_S - _EPS).long() - 1).clamp(min=0)
        counts = torch.bincount(ticks, minlength=len(text))
        text.index_add_(0, ticks, rows / counts[ticks, None])
        spoken[ticks] = True


def tick_labels(course: Course, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Emotion (K, 7), sentiment (K,) and weight (K,) at ``count`` ticks; past the course's end weights are 0.

    A moment is meant from its first evidence until the next one's, and before the first one it is to be
    guessed. Its weights rise to its last evidence and fall after it; they sum to 1, however long it lasts.
    """
    emotion, sentiment = torch.zeros(count, len(EMOTIONS)), torch.full((count,), torch.nan)
    weight = np.zeros(count)
    first = tick_at(course.moments[0].begins_s)
    stops = [*(tick_at(moment.begins_s) for moment in course.moments[1:]), course.ticks]
    starts = [first, *stops[:-1]]
    weight[:first] = BEFORE_WEIGHT / max(1, first)
    for moment, start, stop in zip(course.moments, starts, stops, strict=True):
        meant = slice(0 if start == first else start, stop)
        emotion[meant], sentiment[meant] = moment.emotion, moment.sentiment
        weight[start:stop] = _rise_and_fall(stop - start, tick_at(moment.ends_s) - start)
    return emotion, sentiment, torch.from_numpy(weight).float()


def _rise_and_fall(count: int, last: int) -> npt.NDArray[np.float64]:
    """Weights (count,) that sum to 1 and are highest at ``last``."""
    after = last + round(TAIL_S / TICK_S)
    weights = np.interp(np.arange(count), [0, last, after], [FIRST_WEIGHT, 1.0, LATE_WEIGHT])
    if last == 0:
        weights = np.interp(np.arange(count), [0, after], [1.0, LATE_WEIGHT])
    return np.asarray(weights / weights.sum(), np.float64)
