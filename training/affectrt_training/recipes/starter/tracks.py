"""Features with the times at which a device that listens knows them: what the causal stage learns from.

As :mod:`.banks`, of the same encoders and as augmented, but each row rests on what came before it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor, nn

from affectrt.features.causal_audio import CausalAudioFeatures
from affectrt.features.log_mel import AudioConfig, TimedRows
from affectrt.features.text import WORDS_PER_SECOND, Tokenizer
from affectrt.features.vision import FaceTracker, VisionConfig
from affectrt.media import Media, VideoFrame
from affectrt_training.data.clips import Clip
from affectrt_training.data.text import Sentence
from affectrt_training.data.voice import Recording
from affectrt_training.encoders.voice import VoiceEncoder
from affectrt_training.recipes.starter.banks import (
    WINDOW_ROWS,
    Encoders,
    Item,
    encode_faces,
    one_hot,
    rating,
)
from affectrt_training.recipes.starter.voice import SPEEDS, augment_voice, crop_rows, spectrogram

FloatArray = npt.NDArray[np.float32]

GROUP_WORDS = (1, 4)
"""Words that end between two ticks and share a row: one to three, as recognisers give them."""

QUIET_ROWS = (30, 60)
"""Log-mel rows of quiet before and after a recording: a microphone is on before and after."""

MORE_QUIET_ROWS = 90
"""Of training recordings up to so many more before."""


@dataclass(frozen=True)
class Track:
    """Rows of one modality as they become known."""

    rows: Tensor
    """(T, D) float16."""
    times_s: Tensor
    """(T,) float64, not decreasing, since the modality began. Words: at their nominal pace."""


@dataclass(frozen=True)
class Prefix:
    """The words of a sentence until some moment, and which of their tokens are new."""

    ids: Tensor
    """(T,) int64."""
    newest: Tensor
    """(T,) bool: tokens of the words that ended last."""


def prefixes(words: Sequence[str], ends: Sequence[int], tokenizer: Tokenizer) -> list[Prefix]:
    """One for each of the growing counts of words ``ends``."""
    found = []
    for begin, end in pairwise([0, *ends]):
        ids, newest = tokenizer.encode_newest(words[:end], end - begin)
        found.append(Prefix(torch.from_numpy(ids), torch.from_numpy(newest)))
    return found


def cut(count: int, generator: np.random.Generator) -> list[int]:
    """Cut so many words in groups at random: the count of words until the end of each."""
    sizes = generator.integers(*GROUP_WORDS, size=count)
    ends = np.cumsum(sizes)
    return [*ends[ends < count].tolist(), count] if count else []


@torch.no_grad()
def text_tracks(
    encoders: Encoders,
    sentences: Sequence[Sentence],
    corpus: str,
    versions: int,
    generator: np.random.Generator,
    *,
    exact: bool = True,
    batch_size: int = 128,
) -> list[Item[Track]]:
    """Sentences as words come: each version in groups, then the same at once when all has been said.

    Rows as :meth:`~affectrt.features.text.TextFeatures.newest`. More than one version: all but the first with
    dropout on. Prefixes are many times the sentences: not ``exact``, they are read at half the precision. A
    sentence of which the tokenizer keeps nothing has tracks without rows.
    """
    tracks: list[list[Track]] = [[] for _ in sentences]
    for version in range(versions):
        encoders.text.train(version > 0)
        words = [sentence.text.split() for sentence in sentences]
        ends = [cut(len(said), generator) for said in words]
        parts = [prefixes(w, e, encoders.tokenizer) for w, e in zip(words, ends, strict=True)]
        flat = [prefix for some in parts for prefix in some]
        order = sorted(range(len(flat)), key=lambda i: len(flat[i].ids))
        newest, whole = torch.empty(2, len(flat), encoders.text.dim, dtype=torch.float16)
        for start in track(range(0, len(order), batch_size), f"following {corpus} ({version + 1})"):
            chosen = order[start : start + batch_size]
            with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
                newest[chosen], whole[chosen] = _means(encoders, [flat[i] for i in chosen])
        first = 0
        for tracked, some, counts in zip(tracks, parts, ends, strict=True):
            told = torch.tensor([i for i, p in enumerate(some) if bool(p.newest.any())], dtype=torch.int64)
            times = torch.tensor(counts, dtype=torch.float64)[told] / WORDS_PER_SECOND
            tracked.append(Track(newest[first + told].clone(), times))
            tracked.append(Track(whole[first + told[-1:]].clone(), times[-1:]))
            first += len(some)
    encoders.text.eval()
    return [Item(t, one_hot(s.emotion), rating(s), corpus) for t, s in zip(tracks, sentences, strict=True)]


def _means(encoders: Encoders, batch: Sequence[Prefix]) -> tuple[Tensor, Tensor]:
    """Mean state (B, D) over each prefix's newest tokens, and over all that are words'."""
    pad = nn.utils.rnn.pad_sequence
    ids = pad([p.ids for p in batch], batch_first=True)
    newest = pad([p.newest for p in batch], batch_first=True).float()
    lengths = torch.tensor([len(p.ids) for p in batch])
    place = torch.arange(ids.shape[1])
    mask = place < lengths[:, None]
    words = (mask & (place > 0) & (place < lengths[:, None] - 1)).float()
    states = encoders.text(ids, mask.long()).float()
    newest_mean, mean = (
        (states * chosen[..., None]).sum(1) / chosen.sum(1, keepdim=True).clamp(min=1)
        for chosen in (newest, words)
    )
    return newest_mean.half(), mean.half()


def voice_tracks(
    encoders: Encoders, recordings: Sequence[Recording], versions: int, generator: np.random.Generator
) -> list[Item[Track]]:
    """Recordings as they are heard; one version: whole and as they are, else augmented crops."""
    items = []
    for recording in track(recordings, "following voices"):
        tracks = [follow_voice(encoders, quieted(spectrogram(recording.path)))] if versions == 1 else []
        for _ in range(versions if versions > 1 else 0):
            sped = spectrogram(recording.path, SPEEDS[generator.integers(len(SPEEDS))])
            crop = crop_rows(sped, int(generator.integers(*WINDOW_ROWS)), generator)
            more = int(generator.integers(MORE_QUIET_ROWS))
            tracks.append(follow_voice(encoders, augment_voice(quieted(crop, more), generator)))
        items.append(Item(tracks, one_hot(recording.emotion), float("nan"), recording.corpus))
    return items


def quieted(log_mel: FloatArray, more: int = 0) -> FloatArray:
    """Rows (T, n_mels) with quiet before and after, ``more`` rows of it before."""
    quiet = np.float32(np.quantile(log_mel, 0.02))
    before, after = QUIET_ROWS
    return np.pad(log_mel, ((before + more, after), (0, 0)), constant_values=quiet)


@torch.no_grad()
def follow_voice(encoders: Encoders, log_mel: FloatArray) -> Track:
    """Raw log-mel rows (T, n_mels) → states of speech as :class:`CausalAudioFeatures` gives them."""
    config = AudioConfig()

    def graph(**inputs: npt.NDArray[Any]) -> tuple[FloatArray, ...]:
        return (encoders.voice(torch.from_numpy(inputs["log_mel"])).numpy(),)

    features = CausalAudioFeatures(config, graph, encoders.voice.config.dim, VoiceEncoder.CONTEXT_ROWS)
    times = config.frame_length_s + config.hop_s * np.arange(len(log_mel), dtype=np.float64)
    features.push_rows(TimedRows(log_mel, times, begins=True))
    known = features.until(inf)
    return Track(torch.from_numpy(known.values).half(), torch.from_numpy(known.times_s))


def still_tracks(items: Sequence[Item[Tensor]]) -> list[Item[Track]]:
    """Stills, of one row each, as tracks."""
    now = torch.zeros(1, dtype=torch.float64)
    return [Item([Track(rows, now) for rows in i.versions], i.emotion, i.sentiment, i.corpus) for i in items]


def clip_tracks(
    encoders: Encoders, clips: Sequence[Clip], versions: int, generator: np.random.Generator
) -> list[tuple[Item[Track], Item[Track]]]:
    """Voice and face of acted clips, through the device's own face tracker; several versions: augmented."""
    pairs = []
    for clip in track(clips, "following clips"):
        tracker, crops, times = FaceTracker(), [], []
        with Media.open(clip.path, max_video_rate_hz=VisionConfig().rate_hz, audio=False) as media:
            for frame in media:
                if isinstance(frame, VideoFrame):
                    crop = tracker.update(frame.bgr, frame.time_s)
                    if crop is not None:
                        crops.append(crop.grey)
                        times.append(frame.time_s)
        rows = quieted(spectrogram(clip.path))
        seen_s = torch.tensor(times, dtype=torch.float64)
        voices, faces = [], []
        for _ in range(versions):
            heard = augment_voice(rows, generator) if versions > 1 else rows
            voices.append(follow_voice(encoders, heard))
            if crops:
                states = encode_faces(encoders, np.stack(crops), augment=versions > 1)
                faces.append(Track(states, seen_s))
        label = one_hot(clip.emotion)
        nan = float("nan")
        pairs.append((Item(voices, label, nan, "clips"), Item(faces, label, nan, "clips")))
    return pairs
