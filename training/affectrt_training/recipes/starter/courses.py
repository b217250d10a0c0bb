"""Courses for the causal stage, drawn from people.

A course is a stream as a device meets it: nothing for a while, then words, a voice and a face that begin and
end about together, then nothing again, or someone feeling something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from affectrt.affect import MODALITIES, Modality
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
from affectrt_training.recipes.starter.moments import TAIL_S, Course, Moment, collate
from affectrt_training.recipes.starter.tracks import Track

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

_TRIES = 20


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
