"""Every corpus as the frozen encoders see it: what the two fusion stages learn from and are validated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from affectrt.affect import Modality
from affectrt_training.data import text as corpora
from affectrt_training.data.clips import acted_clips
from affectrt_training.data.faces import ferplus
from affectrt_training.data.text import Sentence
from affectrt_training.data.voice import acted_speech
from affectrt_training.recipes.starter.banks import Encoders, Item, face_items, text_items, voice_items
from affectrt_training.recipes.starter.compose import Person, Sources
from affectrt_training.recipes.starter.tracks import (
    Track,
    clip_tracks,
    still_tracks,
    text_tracks,
    voice_tracks,
)

SST_FOLLOWED = 2000
"""Treebank sentences that are followed word by word, clean ones only: all of them in two versions would take
longer than the rest together."""


@dataclass(frozen=True)
class Versions:
    """How many versions of everything there is to train on."""

    text: int
    """Of a sentence: clean, and with dropout."""
    voice: int
    """Of a recording, augmented."""
    face: int
    """Of a face, augmented."""
    clips: int
    """Of a clip, augmented."""


def train_sources(
    encoders: Encoders, data: Path, versions: Versions, generator: np.random.Generator
) -> Sources[Tensor]:
    """Training items of all three modalities, augmented."""
    faces = ferplus(data, "train")
    return Sources(
        named_text=text_items(encoders, corpora.meld(data, "train"), "meld", versions.text),
        rated_text=[
            *text_items(encoders, corpora.mosi(data, "train"), "mosi", versions.text),
            *text_items(encoders, corpora.sst5(data, "train"), "sst", versions.text),
        ],
        voices=voice_items(encoders, acted_speech(data, "train"), versions.voice, generator),
        faces=face_items(encoders, faces.images, faces.votes, versions.face),
    )


def valid_sources(encoders: Encoders, data: Path, seed: int) -> Sources[Tensor]:
    """Validation items, as the device would see them."""
    generator = np.random.default_rng(seed)
    return Sources(
        named_text=text_items(encoders, corpora.meld(data, "valid"), "meld", 1),
        rated_text=text_items(encoders, corpora.mosi(data, "valid"), "mosi", 1),
        voices=voice_items(encoders, acted_speech(data, "valid"), 1, generator),
        faces=_valid_faces(encoders, data),
    )


def _valid_faces(encoders: Encoders, data: Path) -> list[Item[Tensor]]:
    """Those whose most voted label is one of ours."""
    faces = ferplus(data, "valid")
    hard = np.eye(faces.votes.shape[1], dtype=np.float32)[faces.emotions]
    return face_items(encoders, faces.images[faces.clear], hard[faces.clear], 1)


def train_tracks(
    encoders: Encoders, data: Path, versions: Versions, generator: np.random.Generator
) -> Sources[Track]:
    """As :func:`train_sources`, as they become known; of the treebank a random part."""
    faces = ferplus(data, "train")
    treebank = corpora.sst5(data, "train")
    some = generator.permutation(len(treebank))[:SST_FOLLOWED]

    def follow(sentences: Sequence[Sentence], corpus: str, count: int) -> list[Item[Track]]:
        return text_tracks(encoders, sentences, corpus, count, generator, exact=False)

    return Sources(
        named_text=follow(corpora.meld(data, "train"), "meld", versions.text),
        rated_text=[
            *follow(corpora.mosi(data, "train"), "mosi", versions.text),
            *follow([treebank[i] for i in some], "sst", 1),
        ],
        voices=voice_tracks(encoders, acted_speech(data, "train"), versions.voice, generator),
        faces=still_tracks(face_items(encoders, faces.images, faces.votes, versions.face)),
    )


def valid_tracks(encoders: Encoders, data: Path, seed: int) -> Sources[Track]:
    """As :func:`valid_sources`, as they become known."""
    generator = np.random.default_rng(seed)
    return Sources(
        named_text=text_tracks(encoders, corpora.meld(data, "valid"), "meld", 1, generator),
        rated_text=text_tracks(encoders, corpora.mosi(data, "valid"), "mosi", 1, generator),
        voices=voice_tracks(encoders, acted_speech(data, "valid"), 1, generator),
        faces=still_tracks(_valid_faces(encoders, data)),
    )


def clip_people(
    encoders: Encoders, data: Path, split: corpora.Split, versions: int, generator: np.random.Generator
) -> list[Person[Track]]:
    """Acted clips, as they become known."""
    people = []
    for voice, face in clip_tracks(encoders, acted_clips(data, split), versions, generator):
        pairs: list[tuple[Modality, Item[Track]]] = [("audio", voice), ("vision", face)]
        shown = {modality: [item] for modality, item in pairs if item.versions}
        people.append(Person(shown, voice.emotion, voice.sentiment))
    return people
