"""The starter recipe from data to weights: text, voice, face, then their fusion in windows and in ticks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from affectrt.affect import Modality
from affectrt.calibration import presence_key
from affectrt.errors import AffectError
from affectrt.features.log_mel import AudioConfig
from affectrt.features.text import Tokenizer
from affectrt.features.vision import VisionConfig
from affectrt_training.data import text as corpora
from affectrt_training.data.clips import acted_clips
from affectrt_training.data.faces import ferplus
from affectrt_training.data.voice import acted_speech
from affectrt_training.encoders.face import FaceEncoder
from affectrt_training.encoders.text import TextEncoder, TextSettings, minilm_folder
from affectrt_training.encoders.voice import VoiceEncoder
from affectrt_training.models.ghrnn_cma import GhrnnCma
from affectrt_training.models.ghrnn_cma_causal import CausalGhrnnCma
from affectrt_training.recipes.starter import FUSIONS
from affectrt_training.recipes.starter.banks import Encoders, Item, Sample, clip_samples
from affectrt_training.recipes.starter.calibrate import calibrate_on, composed, only, patterns
from affectrt_training.recipes.starter.card import check_card, write_card
from affectrt_training.recipes.starter.causal import (
    CausalRecipe,
    describe,
    train_causal,
    validation_moments,
)
from affectrt_training.recipes.starter.compose import Sources, sample_of
from affectrt_training.recipes.starter.face import FaceRecipe, train_face
from affectrt_training.recipes.starter.fusion import FusionRecipe, predict, score, train_fusion
from affectrt_training.recipes.starter.moments import Moment
from affectrt_training.recipes.starter.sources import (
    Versions,
    clip_people,
    train_sources,
    train_tracks,
    valid_sources,
    valid_tracks,
)
from affectrt_training.recipes.starter.stages import complete, done, outlook
from affectrt_training.recipes.starter.text import TextRecipe, train_text
from affectrt_training.recipes.starter.voice import VoiceRecipe, train_voice
from affectrt_training.recipes.starter.weights import Kept, fill, read_kept, save_weights

LICENCE = (
    "Research use only, non-commercial: trained on RAVDESS (CC BY-NC-SA 4.0) and FER2013 pixels, among others"
)

WINDOW_S = 4.0
"""The device's window: about the length of the utterances that text and voice were trained on."""

MAX_TOKENS = 128
"""Tokens of a window's text that the device reads; older words go first."""


@dataclass(frozen=True)
class StarterRecipe:
    """All stages' recipes."""

    text: TextRecipe = field(default_factory=TextRecipe)
    voice: VoiceRecipe = field(default_factory=VoiceRecipe)
    face: FaceRecipe = field(default_factory=FaceRecipe)
    fusion: FusionRecipe = field(default_factory=FusionRecipe)
    causal: CausalRecipe = field(default_factory=CausalRecipe)
    versions: Versions = field(default_factory=lambda: Versions(text=2, voice=6, face=3, clips=8))
    """What the fusion learns from."""
    causal_versions: Versions = field(default_factory=lambda: Versions(text=2, voice=4, face=2, clips=4))
    """What the causal fusion learns from."""
    seed: int = 0
    """Seeds every stage."""


def train_starter(
    data: Path,
    runs: Path,
    output: Path,
    recipe: StarterRecipe,
    *,
    restart: Sequence[str] = (),
    keep: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Train what is not trained yet and write the weights to ``output``.

    ``runs`` keeps each finished stage's best weights, ``keep`` are whole weights whose parts are taken as
    they are; such a stage is not trained again unless it is named in ``restart`` or what it was trained from
    is another (:func:`~.stages.done`), so a training that was interrupted goes on with the stage it was in.
    Returns the validation scores, by set, of what was not kept. Raises before anything is trained:
    ``data.not_found``, ``weights.card`` when the kept model card has no places for its tables, and as
    :func:`read_parts`.
    """
    if not data.is_dir():
        raise AffectError(
            "data.not_found",
            f"expected the training data in the folder {data}; pass --data or set AFFECTRT_DATA",
        )
    for reader in (corpora.mosi, corpora.meld, corpora.sst5, acted_speech, ferplus, acted_clips):
        reader(data, "train")

    kept = read_kept(keep) if keep else Kept({}, {})
    card = kept.meta.get("model_card")
    if card:
        check_card(card)
    parts = done(runs, restart, kept.parts)
    windows_kept, ticks_kept = (n in kept.parts and parts.get(n) is kept.parts[n] for n in FUSIONS)
    print(*outlook(runs, restart, parts), sep="\n", flush=True)
    stage = partial(complete, runs, parts)

    seed = recipe.seed
    stage("text", lambda: train_text(data, runs / "text", recipe.text, seed))
    stage("voice", lambda: train_voice(data, runs / "voice", recipe.voice, seed))
    stage("face", lambda: train_face(data, runs / "face", recipe.face, seed))
    encoders = build_encoders(parts, recipe)
    told, scores = kept.meta, {}
    if not windows_kept:
        valid = valid_sources(encoders, data, seed)
        clips = clip_samples(encoders, acted_clips(data, "valid"), 1, np.random.default_rng(seed))
        sets = validation_sets(valid, clips, seed)
        stage("fusion", lambda: _train_windows(encoders, data, runs, recipe, sets))
        window = GhrnnCma(recipe.fusion.model)
        fill(window, parts["fusion"], "fusion")
        window.eval().requires_grad_(False)
        causal = {"causal": kept.meta["causal"]} if "causal" in kept.meta else {}
        told = {**meta(window, valid, sets, recipe), **causal}
        scores = {name: score(samples, predict(window, samples)) for name, samples in sets.items()}
    if not ticks_kept:
        heard = valid_tracks(encoders, data, seed)
        people = clip_people(encoders, data, "valid", 1, np.random.default_rng(seed))
        moments = validation_moments(heard, people, seed)
        start = parts["fusion"]
        stage("causal", lambda: _train_ticks(encoders, data, runs, recipe, moments, start))
        model = CausalGhrnnCma(recipe.causal.model)
        fill(model, parts["causal"], "causal")
        model.eval().requires_grad_(False)
        told = {**told, "causal": describe(model, heard, moments, seed)}
        scores |= {f"ticks, {name}": found for name, found in told["causal"]["metrics"].items()}
    save_weights(parts, told, output)
    if card:
        write_card(output, card)
    return scores


def _train_windows(
    encoders: Encoders, data: Path, runs: Path, recipe: StarterRecipe, sets: Mapping[str, list[Sample]]
) -> Path:
    generator = np.random.default_rng(recipe.seed)
    sources = train_sources(encoders, data, recipe.versions, generator)
    clips = clip_samples(encoders, acted_clips(data, "train"), recipe.versions.clips, generator)
    return train_fusion(sources, clips, sets, runs / "fusion", recipe.fusion, recipe.seed)


def _train_ticks(
    encoders: Encoders,
    data: Path,
    runs: Path,
    recipe: StarterRecipe,
    moments: Mapping[str, list[Moment]],
    start: Mapping[str, Tensor],
) -> Path:
    generator = np.random.default_rng(recipe.seed)
    sources = train_tracks(encoders, data, recipe.causal_versions, generator)
    clips = clip_people(encoders, data, "train", recipe.causal_versions.clips, generator)
    return train_causal(sources, clips, moments, runs / "causal", recipe.causal, recipe.seed, start)


def build_encoders(parts: dict[str, dict[str, Tensor]], recipe: StarterRecipe) -> Encoders:
    """The trained encoders, frozen."""
    text = TextEncoder(TextSettings(tuning="lora", lora=recipe.text.lora))
    text.load_adapter(parts["text"])
    voice, face = VoiceEncoder(recipe.voice.encoder), FaceEncoder(recipe.face.encoder)
    fill(voice, parts["voice"], "voice")
    fill(face, parts["face"], "face")
    face.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in (text, voice, face):
        module.eval().requires_grad_(False)
    tokenizer = Tokenizer.from_json((minilm_folder() / "tokenizer.json").read_bytes(), MAX_TOKENS)
    return Encoders(text, voice, face, tokenizer)


def _alone(items: list[Item[Tensor]], modality: Modality) -> list[Sample]:
    return [Sample({modality: i.versions[0].float()}, i.emotion, i.sentiment) for i in items]


def validation_sets(valid: Sources[Tensor], clips: list[Sample], seed: int) -> dict[str, list[Sample]]:
    """What the fusion stage is validated on, by name."""
    people = composed(valid, sample_of, rated=0.0, seed=seed)
    return {
        "mosi": _alone(valid.rated_text, "text"),
        "meld": _alone(valid.named_text, "text"),
        "ravdess": _alone([v for v in valid.voices if v.corpus == "ravdess"], "audio"),
        "emodb": _alone([v for v in valid.voices if v.corpus == "emodb"], "audio"),
        "ferplus": _alone(valid.faces, "vision"),
        "clips": clips,
        **{f"composed {presence_key(some)}": only(people, some) for some in patterns() if some},
    }


def meta(
    model: GhrnnCma, valid: Sources[Tensor], sets: dict[str, list[Sample]], recipe: StarterRecipe
) -> dict[str, Any]:
    """The weights' sidecar: what the bundle's manifest will say. Metrics join when a bundle is measured."""
    audio, vision = AudioConfig(), VisionConfig()
    return {
        "config": asdict(recipe.fusion.model),
        "lora": asdict(recipe.text.lora),
        "voice_encoder": asdict(recipe.voice.encoder),
        "face_encoder": asdict(recipe.face.encoder),
        "text": {"dim": recipe.fusion.model.text_dim, "max_tokens": MAX_TOKENS},
        "audio": {"dim": recipe.fusion.model.audio_dim, **asdict(audio)},
        "vision": {"dim": recipe.fusion.model.vision_dim, **asdict(vision)},
        "calibration": calibrate_on(sets, partial(predict, model), valid, sample_of, recipe.seed),
        "window_s": WINDOW_S,
        "metrics": [],
        "licence": LICENCE,
    }
