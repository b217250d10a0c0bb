"""The starter recipe from data to weights: text, voice, face, then their fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from affectrt.affect import Modality
from affectrt.calibration import presence_key
from affectrt.errors import AffectError
from affectrt.features.audio import AudioConfig
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
from affectrt_training.recipes.starter import STAGES
from affectrt_training.recipes.starter.banks import (
    Encoders,
    Item,
    Sample,
    clip_samples,
    face_items,
    text_items,
    voice_items,
)
from affectrt_training.recipes.starter.calibrate import calibrate, composed, only, patterns
from affectrt_training.recipes.starter.compose import Sources
from affectrt_training.recipes.starter.face import FaceRecipe, train_face
from affectrt_training.recipes.starter.fit import best_weights
from affectrt_training.recipes.starter.fusion import FusionRecipe, predict, score, train_fusion
from affectrt_training.recipes.starter.text import TextRecipe, train_text
from affectrt_training.recipes.starter.voice import VoiceRecipe, train_voice
from affectrt_training.recipes.starter.weights import fill, rounded, save_weights

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
    text_versions: int = 2
    """Versions of every training sentence's states: clean, and with dropout."""
    voice_versions: int = 6
    """Augmented versions of every training recording."""
    face_versions: int = 3
    """Augmented versions of every training face."""
    clip_versions: int = 8
    """Augmented versions of every training clip."""
    seed: int = 0
    """Seeds every stage."""


def train_starter(
    data: Path, runs: Path, output: Path, recipe: StarterRecipe, *, restart: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Train what is not trained yet and write the weights to ``output``.

    ``runs`` keeps each finished stage's best weights; such a stage is not trained again unless it is named
    in ``restart``, so a training that was interrupted goes on with the stage it was in. The fusion is also
    trained again when an encoder was. Returns the validation scores by set. Raises ``data.not_found`` before
    anything is trained.
    """
    if not data.is_dir():
        raise AffectError(
            "data.not_found",
            f"expected the training data in the folder {data}; pass --data or set AFFECTRT_DATA",
        )
    for reader in (corpora.mosi, corpora.meld, corpora.sst5, acted_speech, ferplus, acted_clips):
        reader(data, "train")

    anew = to_train(runs, restart)
    for name in STAGES:
        print(f"{name}: {'to be trained' if name in anew else 'already trained, kept'}", flush=True)

    def stage(name: str) -> Path | None:
        return None if name in anew else best_weights(runs / name)

    text = stage("text") or train_text(data, runs / "text", recipe.text, recipe.seed)
    voice = stage("voice") or train_voice(data, runs / "voice", recipe.voice, recipe.seed)
    face = stage("face") or train_face(data, runs / "face", recipe.face, recipe.seed)
    parts = {
        "text": rounded(load_file(text)),
        "voice": _encoder_only(rounded(load_file(voice))),
        "face": _encoder_only(rounded(load_file(face))),
    }
    encoders = build_encoders(parts, recipe)
    valid = valid_sources(encoders, data, recipe.seed)
    clips_valid = clip_samples(encoders, acted_clips(data, "valid"), 1, np.random.default_rng(recipe.seed))
    sets = validation_sets(valid, clips_valid, recipe.seed)
    fusion = stage("fusion")
    if fusion is None:
        generator = np.random.default_rng(recipe.seed)
        sources = train_sources(encoders, data, recipe, generator)
        clips = clip_samples(encoders, acted_clips(data, "train"), recipe.clip_versions, generator)
        fusion = train_fusion(sources, clips, sets, runs / "fusion", recipe.fusion, recipe.seed)
    parts["fusion"] = rounded(load_file(fusion))
    model = GhrnnCma(recipe.fusion.model)
    fill(model, parts["fusion"], "fusion")
    model.eval().requires_grad_(False)
    save_weights(parts, meta(model, valid, sets, recipe), output)
    return {name: score(samples, predict(model, samples)) for name, samples in sets.items()}


def to_train(runs: Path, restart: Sequence[str]) -> list[str]:
    """The stages that are unfinished or named in ``restart``, and the fusion if an encoder is among them."""
    anew = [name for name in STAGES if name in restart or not best_weights(runs / name).is_file()]
    return anew if not anew or "fusion" in anew else [*anew, "fusion"]


def _encoder_only(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder of a stage's weights, without the head that trained it."""
    prefix = "encoder."
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def build_encoders(parts: dict[str, dict[str, Tensor]], recipe: StarterRecipe) -> Encoders:
    """The trained encoders, frozen."""
    text = TextEncoder(TextSettings(tuning="lora", lora=recipe.text.lora))
    text.load_adapter(parts["text"])
    voice, face = VoiceEncoder(recipe.voice.encoder), FaceEncoder(recipe.face.encoder)
    fill(voice, parts["voice"], "voice")
    fill(face, parts["face"], "face")
    for module in (text, voice, face):
        module.eval().requires_grad_(False)
    tokenizer = Tokenizer.from_json((minilm_folder() / "tokenizer.json").read_bytes(), MAX_TOKENS)
    return Encoders(text, voice, face, tokenizer)


def train_sources(
    encoders: Encoders, data: Path, recipe: StarterRecipe, generator: np.random.Generator
) -> Sources:
    """Training items of all three modalities, augmented."""
    faces = ferplus(data, "train")
    return Sources(
        named_text=text_items(encoders, corpora.meld(data, "train"), "meld", recipe.text_versions),
        rated_text=[
            *text_items(encoders, corpora.mosi(data, "train"), "mosi", recipe.text_versions),
            *text_items(encoders, corpora.sst5(data, "train"), "sst", recipe.text_versions),
        ],
        voices=voice_items(encoders, acted_speech(data, "train"), recipe.voice_versions, generator),
        faces=face_items(encoders, faces.images, faces.votes, recipe.face_versions),
    )


def valid_sources(encoders: Encoders, data: Path, seed: int) -> Sources:
    """Validation items, as the device would see them. Faces: those whose most voted label is one of ours."""
    faces = ferplus(data, "valid")
    generator = np.random.default_rng(seed)
    hard = np.eye(faces.votes.shape[1], dtype=np.float32)[faces.emotions]
    return Sources(
        named_text=text_items(encoders, corpora.meld(data, "valid"), "meld", 1),
        rated_text=text_items(encoders, corpora.mosi(data, "valid"), "mosi", 1),
        voices=voice_items(encoders, acted_speech(data, "valid"), 1, generator),
        faces=face_items(encoders, faces.images[faces.clear], hard[faces.clear], 1),
    )


def _alone(items: list[Item], modality: Modality) -> list[Sample]:
    return [Sample({modality: i.versions[0].float()}, i.emotion, i.sentiment) for i in items]


def validation_sets(valid: Sources, clips: list[Sample], seed: int) -> dict[str, list[Sample]]:
    """What the fusion stage is validated on, by name."""
    people = composed(valid, rated=0.0, seed=seed)
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
    model: GhrnnCma, valid: Sources, sets: dict[str, list[Sample]], recipe: StarterRecipe
) -> dict[str, Any]:
    """The weights' sidecar: what the bundle's manifest will say. Metrics join when a bundle is measured."""
    alone: dict[str, frozenset[Modality]] = {m: frozenset({m}) for m in ("text", "audio", "vision")}
    nothing = [Sample({}, s.emotion, s.sentiment) for s in sets["meld"]]
    unsaid = [Sample({}, s.emotion, s.sentiment) for s in sets["mosi"]]
    calibration = calibrate(
        model,
        valid,
        named={
            frozenset(): nothing,
            alone["text"]: sets["meld"],
            alone["audio"]: sets["ravdess"] + sets["emodb"],
            alone["vision"]: sets["ferplus"],
        },
        rated={frozenset(): unsaid, alone["text"]: sets["mosi"]},
        seed=recipe.seed,
    )
    audio, vision = AudioConfig(), VisionConfig()
    return {
        "config": asdict(recipe.fusion.model),
        "lora": asdict(recipe.text.lora),
        "voice_encoder": asdict(recipe.voice.encoder),
        "face_encoder": asdict(recipe.face.encoder),
        "text": {"dim": recipe.fusion.model.text_dim, "max_tokens": MAX_TOKENS},
        "audio": {"dim": recipe.fusion.model.audio_dim, **asdict(audio)},
        "vision": {"dim": recipe.fusion.model.vision_dim, **asdict(vision)},
        "calibration": calibration,
        "window_s": WINDOW_S,
        "metrics": [],
        "licence": LICENCE,
    }
