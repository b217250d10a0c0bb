"""The causal model on a whole recording at once, in PyTorch: what incremental streams must answer.

Nothing of the streams' code is used. Whatever looks back is written down anew, a row at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, floor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import affectrt
from affectrt.affect import EMOTIONS
from affectrt.features.audio import stands_out, take_out, voice_and_hiss
from affectrt.features.log_mel import log_mel
from affectrt.features.text import Word
from affectrt.features.vision import VisionFeatures
from affectrt_training.models.ghrnn_cma import GhrnnCmaConfig
from affectrt_training.models.ghrnn_cma_causal import CausalGhrnnCma

Floats = NDArray[np.float32]
FAR_S = 1e9


@dataclass(frozen=True, repr=False)
class Sound:
    """What was recorded without a gap."""

    pcm: Floats
    rate_hz: int
    start_s: float


@dataclass(frozen=True, repr=False)
class Recording:
    """One person's, of one modality or of several."""

    sounds: Sequence[Sound] = ()
    frames: Sequence[tuple[NDArray[np.uint8], float]] = ()
    """Pictures and their times."""
    words: Sequence[Word] = ()
    end_s: float = 0.0

    def __repr__(self) -> str:
        return f"<recording of {self.end_s:.2f} s>"


@dataclass(frozen=True)
class Rows:
    """Of one modality."""

    values: Floats
    times_s: NDArray[np.float64]


def torch_model(model: affectrt.Model) -> CausalGhrnnCma:
    """The weights of a bundle in the training's module, float64."""
    from affectrt.weights import read_safetensors

    spec = model.causal.spec
    known = {f for f in GhrnnCmaConfig.__dataclass_fields__ if f in spec.config}
    dims = {f"{m}_dim": model.manifest.dim(m) for m in ("text", "audio", "vision")}
    module = CausalGhrnnCma(GhrnnCmaConfig(**{**{f: spec.config[f] for f in known}, **dims, "causal": True}))
    tensors = read_safetensors(model.bundle.read(spec.weights), "here")
    module.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    return module.eval().double()


def _stretches(model: affectrt.Model, sounds: Sequence[Sound]) -> list[list[tuple[Floats, float]]]:
    """Log-mel rows with the times at which they are known; gaps of half a second at most are filled."""
    config = model.encoders.audio_config()
    found: list[list[tuple[Floats, float]]] = []
    last_s, delay_s = -np.inf, 0.0
    for sound in sounds:
        rows = log_mel(sound.pcm, sound.rate_hz, config)
        ends = sound.start_s + config.frame_length_s + np.arange(len(rows)) * config.hop_s
        delay = 0.0 if sound.rate_hz == config.sample_rate_hz else max(0.1, 1100 / sound.rate_hz)
        if not found or ends[0] - last_s > 0.5:
            found.append([])
            delay_s = 0.0
        delay_s = max(delay_s, delay)
        if found[-1]:
            for _ in range(round((ends[0] - last_s) / config.hop_s) - 1):
                found[-1].append((found[-1][-1][0], ends[0] + delay_s))
        for row, end_s in zip(rows, ends, strict=True):
            if end_s + delay_s <= sound.start_s + len(sound.pcm) / sound.rate_hz + 1e-6:
                found[-1].append((row, end_s + delay_s))
                last_s = end_s
    return found


def voice_rows(model: affectrt.Model, sounds: Sequence[Sound]) -> Rows:
    """States of speech, each at the time when all that it rests on was known."""
    config, context = model.encoders.audio_config(), model.causal.spec.audio_context_rows
    step = config.rows_per_state
    ahead = context // step
    values, times = [], []
    voice_sum = voice_count = all_sum = all_count = 0.0
    held: list[int] = []
    for stretch in _stretches(model, sounds):
        count = len(stretch) // step * step
        if not count:
            continue
        rows = np.stack([row for row, _ in stretch[:count]])
        voice, hiss = voice_and_hiss(rows, config)
        quiet = [voice[max(0, i - 4) : i + 1].mean(dtype=np.float64) for i in range(len(voice))]
        floors = np.array([min(quiet[max(0, i - 100) : i + 1]) for i in range(len(voice))])
        speech = stands_out(voice, hiss, floors)
        normal, heard = [], []
        for start in range(0, count, step):
            block, said = rows[start : start + step], speech[start : start + step]
            means = block.mean(axis=1, dtype=np.float64)
            fade = exp(-step / (10.0 / config.hop_s))
            voice_sum, voice_count = fade * voice_sum + means[said].sum(), fade * voice_count + said.sum()
            all_sum, all_count = fade * all_sum + means.sum(), fade * all_count + step
            level = voice_sum / voice_count if voice_count else all_sum / all_count
            normal.append(take_out(level, block))
            held = [*held, int(said.sum())][-25:]
            heard.append(sum(held) * config.hop_s >= 0.3)
        (states,) = model.encoders.audio_graph(log_mel=np.concatenate(normal)[None])
        for k in range(len(normal) - ahead):
            if heard[k + ahead]:
                values.append(states[0][k])
                times.append(stretch[(k + ahead + 1) * step - 1][1])
    return Rows(np.array(values, np.float32).reshape(-1, model.manifest.dim("audio")), np.array(times))


def face_rows(model: affectrt.Model, frames: Sequence[tuple[NDArray[np.uint8], float]]) -> Rows:
    """States of all faces at once."""
    features: VisionFeatures = model.encoders.new_vision(FAR_S)
    for frame, time_s in frames:
        features.push_frame(frame, time_s)
    sequence = features.window(-FAR_S, FAR_S)
    return Rows(sequence.values, sequence.times_s)


def word_rows(
    model: affectrt.Model, words: Sequence[Word], ticks: NDArray[np.float64]
) -> list[Floats | None]:
    """At every tick the mean state of the tokens of the words that ended since the last, read with those of
    the ten seconds before."""
    found: list[Floats | None] = []
    last_s = -np.inf
    for time_s in ticks:
        fresh = [w for w in words if last_s < w.end_s <= time_s]
        context = [w for w in words if time_s - 10.0 < w.end_s <= last_s]
        last_s = time_s
        if not fresh:
            found.append(None)
            continue
        texts = [w.text for w in (*context, *fresh)]
        tokenizer = model.encoders.text.tokenizer
        tokens = tokenizer.encode([Word(text, float(k), float(k)) for k, text in enumerate(texts)])
        (states,) = model.encoders.text._graph(
            input_ids=tokens.ids[None], attention_mask=np.ones((1, len(tokens)), np.int64)
        )
        mine = (tokens.times_s >= len(context)) & (np.arange(len(tokens)) % (len(tokens) - 1) > 0)
        found.append(states[0][mine].mean(axis=0) if mine.any() else None)
    return found


def answers(
    model: affectrt.Model, recording: Recording, first_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Ticks (K,), sentiment (K,) and probabilities (K, 7) of a recording that begins at ``first_s``.

    Probabilities are at the temperature of nothing present, so that they tell logits alone.
    """
    tick_s = model.causal.spec.tick_s
    ticks = np.array(
        [k * tick_s for k in range(floor(first_s / tick_s), floor((recording.end_s + 1e-6) / tick_s) + 1)]
    )
    text = word_rows(model, recording.words, ticks)
    inputs: list[Any] = []
    for rows in (voice_rows(model, recording.sounds), face_rows(model, recording.frames)):
        some = len(rows.values) > 0
        values = rows.values if some else np.zeros((1, rows.values.shape[1]), np.float32)
        times = rows.times_s if some else np.zeros(1)
        inputs += [torch.from_numpy(values)[None].double(), torch.from_numpy(times)[None]]
        inputs.append(torch.tensor([len(rows.values)]))
    unread = np.zeros(model.manifest.dim("text"), np.float32)
    with torch.no_grad():
        sentiment, logits = torch_model(model)(
            torch.from_numpy(np.stack([unread if row is None else row for row in text]))[None].double(),
            torch.tensor([[row is not None for row in text]]),
            torch.from_numpy(ticks)[None],
            torch.tensor([len(ticks)]),
            *inputs,
        )
    return ticks, sentiment[0].numpy(), logits[0].softmax(-1).numpy()


def uncalibrated(model: affectrt.Model, affect: affectrt.Affect) -> NDArray[np.float64]:
    """An answer's probabilities as they were before their temperature."""
    temperature: Mapping[str, float] = model.causal.spec.calibration.temperature
    key = "+".join(m for m in ("text", "audio", "vision") if m in affect.present) or "none"
    scaled = np.array([affect.emotions[name] for name in EMOTIONS]) ** temperature[key]
    return np.asarray(scaled / scaled.sum())
