"""Features of every corpus, computed once by the frozen encoders: what the fusion stage learns from.

Encoders know their own training data too well. A fusion trained on such clean features would trust them more
than they deserve on new people, so training features are computed from augmented inputs, and with dropout on
for text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from affectrt.affect import EMOTIONS, Modality
from affectrt.features.audio import level_normalise
from affectrt.features.text import Tokenizer, words_of
from affectrt.features.vision import FaceTracker, VisionConfig
from affectrt.media import Media, VideoFrame
from affectrt_training.data.clips import Clip
from affectrt_training.data.text import Sentence
from affectrt_training.data.voice import Recording
from affectrt_training.encoders.face import FaceEncoder
from affectrt_training.encoders.text import TextEncoder
from affectrt_training.encoders.voice import VoiceEncoder
from affectrt_training.recipes.starter.face import augment_faces
from affectrt_training.recipes.starter.voice import SPEEDS, augment_voice, crop_rows, spectrogram

WINDOW_ROWS = (200, 400)
"""Log-mel rows of a training crop: two seconds up to the device's window of four."""


@dataclass(frozen=True)
class Encoders:
    """The three frozen encoders, in evaluation mode, and the tokenizer."""

    text: TextEncoder
    voice: VoiceEncoder
    face: FaceEncoder
    tokenizer: Tokenizer


V = TypeVar("V")
"""What an item's version is: rows (T, D) float16, or a :class:`~.tracks.Track` of rows with times."""


@dataclass(frozen=True)
class Item(Generic[V]):
    """One sample of one modality, with the labels it has."""

    versions: list[V]
    """Its features, one per augmented version; validation items have one version."""
    emotion: Tensor
    """(7,) probabilities; all zero: no emotion label."""
    sentiment: float
    """In [-3, 3]; NaN: no sentiment label."""
    corpus: str
    """Where the sample comes from."""


@dataclass(frozen=True)
class Sample:
    """One person at one moment, real or composed."""

    rows: dict[Modality, Tensor]
    """(T, D) float32 of each present modality."""
    emotion: Tensor
    """(7,) probabilities; all zero: no label."""
    sentiment: float
    """NaN: no label."""

    def only(self, present: frozenset[Modality]) -> Sample:
        """The same person with fewer modalities."""
        rows = {m: rows for m, rows in self.rows.items() if m in present}
        return Sample(rows, self.emotion, self.sentiment)


class Labelled(Protocol):
    """A person with labels, as a fusion model sees them."""

    @property
    def emotion(self) -> Tensor:
        """(7,) probabilities; all zero: no label."""

    @property
    def sentiment(self) -> float:
        """NaN: no label."""

    def only(self: S, present: frozenset[Modality]) -> S:
        """The same person with fewer modalities."""


S = TypeVar("S", bound=Labelled)


def one_hot(emotion: int | None) -> Tensor:
    """(7,) probabilities of a label; all zero: none."""
    vector = torch.zeros(len(EMOTIONS))
    if emotion is not None:
        vector[emotion] = 1.0
    return vector


def rating(sentence: Sentence) -> float:
    """Its sentiment; NaN: none."""
    return float("nan") if sentence.sentiment is None else sentence.sentiment


@torch.no_grad()
def text_items(
    encoders: Encoders, sentences: list[Sentence], corpus: str, versions: int, batch_size: int = 64
) -> list[Item[Tensor]]:
    """Token states of sentences. More than one version: all but the first with dropout on."""
    ids = [torch.from_numpy(encoders.tokenizer.encode(words_of(s.text, 0.0)).ids) for s in sentences]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    states: list[list[Tensor]] = [[] for _ in ids]
    for version in range(versions):
        encoders.text.train(version > 0)
        for start in track(range(0, len(order), batch_size), f"reading {corpus} ({version + 1})"):
            chosen = order[start : start + batch_size]
            batch = nn.utils.rnn.pad_sequence([ids[i] for i in chosen], batch_first=True)
            lengths = torch.tensor([len(ids[i]) for i in chosen])
            mask = (torch.arange(batch.shape[1]) < lengths[:, None]).long()
            out = encoders.text(batch, mask).half()
            for row, index in enumerate(chosen):
                states[index].append(out[row, : lengths[row]].clone())
    encoders.text.eval()
    return [Item(s, one_hot(x.emotion), rating(x), corpus) for s, x in zip(states, sentences, strict=True)]


@torch.no_grad()
def voice_items(
    encoders: Encoders, recordings: list[Recording], versions: int, generator: np.random.Generator
) -> list[Item[Tensor]]:
    """Voice states of recordings; one version: the whole recording as it is, else augmented crops of it."""
    items = []
    for recording in track(recordings, "hearing voices"):
        rows = spectrogram(recording.path)
        states = [encode_voice(encoders, rows)] if versions == 1 else []
        for _ in range(versions if versions > 1 else 0):
            sped = spectrogram(recording.path, SPEEDS[generator.integers(len(SPEEDS))])
            crop = crop_rows(sped, int(generator.integers(*WINDOW_ROWS)), generator)
            states.append(encode_voice(encoders, augment_voice(crop, generator)))
        items.append(Item(states, one_hot(recording.emotion), float("nan"), recording.corpus))
    return items


@torch.no_grad()
def encode_voice(encoders: Encoders, log_mel: np.ndarray) -> Tensor:
    """Raw log-mel rows (T, n_mels) → states (ceil(T / 8), D) float16."""
    states: Tensor = encoders.voice(torch.from_numpy(level_normalise(log_mel))[None])[0].half()
    return states


@torch.no_grad()
def encode_faces(encoders: Encoders, images: np.ndarray, *, augment: bool, batch_size: int = 64) -> Tensor:
    """Crops (N, 48, 48) uint8 → states (N, D) float16; augmented ones at half the precision."""
    states = []
    for start in track(range(0, len(images), batch_size), "looking at faces", disable=len(images) < 10_000):
        faces = torch.from_numpy(images[start : start + batch_size]).float() / 255.0
        faces = augment_faces(faces) if augment else faces
        with torch.autocast("cpu", torch.bfloat16, enabled=augment):
            states.append(encoders.face(faces))
    return torch.cat(states).half()


def face_items(
    encoders: Encoders, images: np.ndarray, votes: np.ndarray, versions: int, corpus: str = "ferplus"
) -> list[Item[Tensor]]:
    """Face states (1, D) of crops (N, 48, 48) with votes (N, 7); more than one version: augmented ones."""
    passes = [encode_faces(encoders, images, augment=versions > 1) for _ in range(versions)]
    return [
        Item([p[i : i + 1] for p in passes], torch.from_numpy(votes[i]), float("nan"), corpus)
        for i in range(len(images))
    ]


@torch.no_grad()
def clip_samples(
    encoders: Encoders, clips: list[Clip], versions: int, generator: np.random.Generator
) -> list[Sample]:
    """Voice and face of acted clips, through the device's own face tracker; several versions: augmented."""
    samples = []
    for clip in track(clips, "watching clips"):
        tracker, faces = FaceTracker(), []
        with Media.open(clip.path, max_video_rate_hz=VisionConfig().rate_hz, audio=False) as media:
            for frame in media:
                if isinstance(frame, VideoFrame):
                    crop = tracker.update(frame.bgr, frame.time_s)
                    if crop is not None:
                        faces.append(crop.grey)
        rows = spectrogram(clip.path)
        for _ in range(versions):
            heard = augment_voice(rows, generator) if versions > 1 else rows
            present: dict[Modality, Tensor] = {"audio": encode_voice(encoders, heard).float()}
            if faces:
                crops = np.stack(faces)
                present["vision"] = encode_faces(encoders, crops, augment=versions > 1).float()
            samples.append(Sample(present, one_hot(clip.emotion), float("nan")))
    return samples
