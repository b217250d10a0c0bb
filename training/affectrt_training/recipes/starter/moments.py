"""Sequences for the causal stage: what one person says, sounds and looks like, moment after moment.

A course is a stream as a device meets it: nothing for a while, then words, a voice and a face that begin and
end about together, then nothing again, or someone feeling something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt.features.text import WORDS_PER_SECOND
from affectrt.features.vision import VisionConfig
from affectrt_training.recipes.starter.compose import (
    FACE_ROWS,
    Mixture,
    People,
    Person,
    Sources,
    pick,
    some_of,
)
from affectrt_training.recipes.starter.tracks import Track

TICK_S = 0.1
"""An answer every so often; tick k is at (k + 1) · TICK_S."""

SETTLED_S = 0.5
"""An answer so long after the last evidence is the one that validation scores."""

APART_S = 0.5
"""The modalities of a moment begin within this."""

PACE = (2.0, 4.0)
"""Words per second, slow to fast."""

LEAD_S = 2.0
"""Streams begin with up to so much of nothing."""

LONG_LEAD = (0.05, 12.0)
"""How often they begin with more, and how much at most."""

SECOND_MOMENT = 0.5
"""How often a second moment follows."""

PAUSE_S = 1.5
"""It begins up to so long after the first one's last evidence."""

LONG_PAUSE = (0.15, 6.0)
"""How often later, and how late at most."""

TAIL_S = 3.0
"""Up to so long nothing comes after the last evidence."""

BEFORE_WEIGHT = 0.1
"""Of all ticks before anything is known, beside a moment's 1: to guess what most people show."""

FIRST_WEIGHT = 0.2
"""Of a moment's first evidence, beside its last: a sentence's first word can't tell it all."""

LATE_WEIGHT = 0.3
"""Of the end of a tail, beside the last evidence."""

_EPS = 1e-9
_TRIES = 20


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


def lay(person: Person[Track], start_s: float, generator: np.random.Generator) -> Moment:
    """A person from ``start_s`` on: modalities begin one shortly after the other, stills become a face
    looked at for as long as the rest lasts."""
    rows: dict[Modality, Tensor] = {}
    times: dict[Modality, Tensor] = {}
    ends_s = start_s
    for modality in MODALITIES:
        if modality not in person.shown:
            continue
        items = person.shown[modality]
        begins_s = start_s + generator.uniform(0.0, APART_S)
        track = pick(items[0], generator)
        if modality == "vision" and items[0].corpus != "clips":
            shown_s = max(ends_s - begins_s, 0.0)
            if not rows:
                shown_s = generator.integers(*FACE_ROWS) / VisionConfig().rate_hz
            count = max(FACE_ROWS[0], round(shown_s * VisionConfig().rate_hz))
            chosen = np.sort(generator.integers(0, len(items), count))
            rows[modality] = torch.cat([pick(items[i], generator).rows for i in chosen])
            times[modality] = begins_s + torch.arange(count, dtype=torch.float64) / VisionConfig().rate_hz
        else:
            if modality == "text":
                rate = WORDS_PER_SECOND / generator.uniform(*PACE)
                times[modality] = begins_s + track.times_s * rate
            else:
                times[modality] = begins_s + track.times_s
            rows[modality] = track.rows
        if len(times[modality]):
            ends_s = max(ends_s, float(times[modality][-1]))
    return Moment(rows, times, person.emotion, person.sentiment)


class Courses(IterableDataset[dict[str, Tensor]]):
    """An epoch of batches of courses, those of like length together; every pass draws anew."""

    def __init__(
        self,
        sources: Sources[Track],
        clips: Sequence[Person[Track]],
        mixture: Mixture,
        batch_size: int,
        dims: dict[Modality, int],
        seed: int,
        pool: int = 12,
    ) -> None:
        """``pool``: batches that are drawn at once and sorted by length."""
        self.people, self.clips = People(sources), clips
        self.kinds = [kind for kind, count in vars(mixture).items() for _ in range(count)]
        self.batch_size, self.dims, self.pool = batch_size, dims, pool
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return -(-len(self.kinds) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = self.generator.permutation(len(self.kinds))
        chunk = self.batch_size * self.pool
        for start in range(0, len(order), chunk):
            drawn = [self.draw(self.kinds[i]) for i in order[start : start + chunk]]
            drawn.sort(key=lambda course: course.ticks)
            batches = [drawn[i : i + self.batch_size] for i in range(0, len(drawn), self.batch_size)]
            for index in self.generator.permutation(len(batches)):
                yield collate(batches[index], self.dims)

    def draw(self, kind: str) -> Course:
        """A course whose first moment is of this kind."""
        draw = self.generator
        for _ in range(_TRIES):  # of a few nothing is known: no speech, or nothing that the tokenizer reads
            first = lay(self._anyone(kind), _some(LEAD_S, LONG_LEAD, draw), draw)
            if first.known:
                break
        second = self._follow(first) if draw.random() < SECOND_MOMENT else []
        moments = [first, *second]
        return Course(moments, moments[-1].ends_s + draw.uniform(0.0, TAIL_S))

    def _follow(self, first: Moment) -> list[Moment]:
        """Someone of any kind and another emotion after it, if there is anyone."""
        draw = self.generator
        start_s = first.ends_s + _some(PAUSE_S, LONG_PAUSE, draw)
        for _ in range(_TRIES):
            person = self._anyone(self.kinds[draw.integers(len(self.kinds))])
            if float(person.emotion @ first.emotion) < 0.5:
                second = lay(person, start_s, draw)
                if second.known:
                    return [second]
        return []

    def _anyone(self, kind: str) -> Person[Track]:
        draw = self.generator
        if kind != "clips":
            return self.people.draw(kind, draw)
        clip = self.clips[int(draw.integers(len(self.clips)))]
        kept = some_of(clip.shown, draw)
        return Person({m: i for m, i in clip.shown.items() if m in kept}, clip.emotion, clip.sentiment)


def _some(most: float, long: tuple[float, float], generator: np.random.Generator) -> float:
    """Seconds of nothing: mostly up to ``most``, now and then up to the second of ``long``."""
    often, longest = long
    return float(generator.uniform(0.0, longest if generator.random() < often else most))


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
