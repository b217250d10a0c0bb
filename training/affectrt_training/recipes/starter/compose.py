"""Samples for the fusion stage: real ones of one corpus, and class-conditional combinations of several.

No set at hand has text, voice and face of one person with labels, so people are composed: what someone
said, how another sounded and how a third looked, all with the same emotion (or, for text that is rated but
not named, with a matching valence). Modalities are dropped at random, and now and then one shows another
emotion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt_training.recipes.starter.banks import Item, Sample, V

NEUTRAL = EMOTIONS.index("neutral")

PATTERNS: dict[frozenset[Modality], float] = {
    frozenset({"text"}): 0.05,
    frozenset({"audio"}): 0.07,
    frozenset({"vision"}): 0.07,
    frozenset({"text", "audio"}): 0.18,
    frozenset({"text", "vision"}): 0.18,
    frozenset({"audio", "vision"}): 0.2,
    frozenset({"text", "audio", "vision"}): 0.25,
}
"""How often a composed person has which modalities."""

MISLEADING: dict[Modality, float] = {"text": 0.2, "audio": 0.04, "vision": 0.04}
"""How often a modality that is not alone shows another emotion, the label staying.

The text encoder recognises the emotion of sentences that it was trained on far better than that of new
ones; without misleading words the fusion would trust it as if all were known. The others are for people whose
face or voice says something else than they do. Chosen by trial, by what agreeing modalities gain.
"""

VALENCE: dict[str, tuple[float, float]] = {
    "joy": (1.0, 3.0),
    "neutral": (-0.5, 0.5),
    "anger": (-3.0, -1.0),
    "disgust": (-3.0, -1.0),
    "fear": (-3.0, -1.0),
    "sadness": (-3.0, -1.0),
}
"""Rated sentences that go with an emotion, by sentiment. Surprise goes both ways: named sentences only."""

FACE_ROWS = (5, 41)
"""Rows of a composed face: half a second to the device's window of four seconds at 10 Hz."""


@dataclass(frozen=True)
class Sources(Generic[V]):
    """Items by modality, with those of each emotion at hand."""

    named_text: list[Item[V]]
    """Sentences with an emotion (MELD)."""
    rated_text: list[Item[V]]
    """Sentences with a sentiment (MOSI, SST-5)."""
    voices: list[Item[V]]
    faces: list[Item[V]]
    pools: dict[tuple[str, int], list[Item[V]]] = field(init=False)

    def __post_init__(self) -> None:
        pools: dict[tuple[str, int], list[Item[V]]] = {}
        for name, items in (("text", self.named_text), ("audio", self.voices), ("vision", self.faces)):
            for emotion in range(len(EMOTIONS)):
                pools[name, emotion] = [item for item in items if float(item.emotion[emotion]) >= 0.5]
        for emotion, label in enumerate(EMOTIONS):
            low, high = VALENCE.get(label, (1.0, -1.0))
            pools["rated", emotion] = [item for item in self.rated_text if low <= item.sentiment <= high]
        object.__setattr__(self, "pools", pools)

    def draw(self, pool: str, emotion: int, generator: np.random.Generator) -> Item[V]:
        """Any item of a pool that shows this emotion."""
        items = self.pools[pool, emotion]
        return items[generator.integers(len(items))]


@dataclass(frozen=True)
class Person(Generic[V]):
    """Someone at one moment, of whose items versions are still to be picked."""

    shown: dict[Modality, list[Item[V]]]
    """What each present modality shows: one item, of a composed face one to three stills."""
    emotion: Tensor
    """(7,) probabilities; all zero: no label."""
    sentiment: float
    """NaN: no label."""


def pick(item: Item[V], generator: np.random.Generator) -> V:
    """One version of an item."""
    return item.versions[generator.integers(len(item.versions))]


def face_rows(items: Sequence[Item[Tensor]], generator: np.random.Generator) -> Tensor:
    """A face over time: (T, D) float32 rows drawn from the versions of one to three stills."""
    count = int(generator.integers(*FACE_ROWS))
    shown = [items[i] for i in np.sort(generator.integers(0, len(items), count))]
    return torch.cat([pick(item, generator) for item in shown]).float()


def cast(
    sources: Sources[V],
    emotion: int,
    present: frozenset[Modality],
    generator: np.random.Generator,
    *,
    rated: float = 0.5,
    misleading: Mapping[Modality, float] | None = None,
) -> Person[V]:
    """A person of one emotion with the given modalities.

    ``rated``: share of sentences taken for their valence instead of their emotion, where other modalities
    carry the emotion. They bring a sentiment label. ``misleading``: see :data:`MISLEADING`; default never.
    """
    shown = dict.fromkeys(present, emotion)
    if len(present) > 1:
        for modality in sorted(present):
            if generator.random() < (misleading or {}).get(modality, 0.0):
                # Half of the time merely neutral, as people who speak with feeling often look or sound.
                others = [NEUTRAL, int(generator.integers(len(EMOTIONS)))]
                shown[modality] = others[generator.integers(2)]
    items: dict[Modality, list[Item[V]]] = {}
    sentiment = float("nan")
    if "text" in present:
        said = shown["text"]
        by_valence = len(present) > 1 and sources.pools["rated", said] and generator.random() < rated
        items["text"] = [sources.draw("rated" if by_valence else "text", said, generator)]
        sentiment = items["text"][0].sentiment
    elif sources.pools["rated", emotion]:
        # The sentiment of words that could have been said: what face and voice can tell of it.
        sentiment = sources.draw("rated", emotion, generator).sentiment
    if "audio" in present:
        items["audio"] = [sources.draw("audio", shown["audio"], generator)]
    if "vision" in present:
        stills = range(generator.integers(1, 4))
        items["vision"] = [sources.draw("vision", shown["vision"], generator) for _ in stills]
    return Person(items, torch.eye(len(EMOTIONS))[emotion], sentiment)


def sample_of(person: Person[Tensor], generator: np.random.Generator) -> Sample:
    """A composed person's features, as a device has them of the last seconds."""
    rows: dict[Modality, Tensor] = {
        m: pick(items[0], generator).float() for m, items in person.shown.items() if m != "vision"
    }
    if "vision" in person.shown:
        rows["vision"] = face_rows(person.shown["vision"], generator)
    return Sample(rows, person.emotion, person.sentiment)


@dataclass(frozen=True)
class Mixture:
    """How many samples of each kind an epoch holds."""

    mosi: int = 3800
    sst: int = 4000
    named_text: int = 8000
    voices: int = 3000
    faces: int = 6000
    clips: int = 800
    composed: int = 12000


class People(Generic[V]):
    """Draws persons of every kind of the mixture but acted clips."""

    def __init__(self, sources: Sources[V]) -> None:
        self.sources = sources
        self.mosi = [item for item in sources.rated_text if item.corpus == "mosi"]
        self.sst = [item for item in sources.rated_text if item.corpus == "sst"]
        # The square root of how often people show it: rare emotions are learned, common ones stay common.
        counts = np.array([len(sources.pools["text", e]) for e in range(len(EMOTIONS))], np.float64)
        self.prior = np.sqrt(counts) / np.sqrt(counts).sum()
        self.patterns = list(PATTERNS)
        self.pattern_weights = np.array(list(PATTERNS.values())) / sum(PATTERNS.values())

    def draw(self, kind: str, generator: np.random.Generator) -> Person[V]:
        """Anyone of this kind."""
        if kind == "composed":
            emotion = int(generator.choice(len(EMOTIONS), p=self.prior))
            present = self.patterns[generator.choice(len(self.patterns), p=self.pattern_weights)]
            return cast(self.sources, emotion, present, generator, misleading=MISLEADING)
        items, modality = {
            "mosi": (self.mosi, MODALITIES[0]),
            "sst": (self.sst, MODALITIES[0]),
            "named_text": (self.sources.named_text, MODALITIES[0]),
            "voices": (self.sources.voices, MODALITIES[1]),
            "faces": (self.sources.faces, MODALITIES[2]),
        }[kind]
        item = items[generator.integers(len(items))]
        return Person({modality: [item]}, item.emotion, item.sentiment)


def some_of(present: Iterable[Modality], generator: np.random.Generator) -> frozenset[Modality]:
    """The modalities of a clip to train on: now and then one of several goes."""
    kept = sorted(present)
    if len(kept) > 1 and generator.random() < 0.4:
        del kept[generator.integers(len(kept))]
    return frozenset(kept)


class FusionSamples(Dataset[Sample]):
    """An epoch of the mixture; every access draws anew."""

    def __init__(self, sources: Sources[Tensor], clips: list[Sample], mixture: Mixture, seed: int) -> None:
        self.people, self.clips = People(sources), clips
        self.kinds = [kind for kind, count in vars(mixture).items() for _ in range(count)]
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Sample:
        draw = self.generator
        kind = self.kinds[index]
        if kind == "clips":
            clip = self.clips[draw.integers(len(self.clips))]
            return clip.only(some_of(clip.rows, draw))
        person = self.people.draw(kind, draw)
        if kind == "composed":
            return sample_of(person, draw)
        [(modality, [item])] = person.shown.items()
        rows = pick(item, draw).float()
        if modality == "vision" and draw.random() < 0.5:
            rows = face_rows([item], draw)
        return Sample({modality: rows}, item.emotion, item.sentiment)


def collate(samples: Sequence[Sample], dims: dict[Modality, int]) -> dict[str, Tensor]:
    """Pad to the fusion model's inputs; an absent modality is one padded row of length 0."""
    batch: dict[str, Tensor] = {}
    for modality in MODALITIES:
        nothing = torch.zeros(0, dims[modality])
        rows = [sample.rows.get(modality, nothing) for sample in samples]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        batch[modality] = padded if padded.shape[1] else torch.zeros(len(samples), 1, dims[modality])
        batch[f"{modality}_lengths"] = torch.tensor([len(r) for r in rows])
    batch["emotion"] = torch.stack([sample.emotion for sample in samples])
    batch["sentiment"] = torch.tensor([sample.sentiment for sample in samples])
    return batch
