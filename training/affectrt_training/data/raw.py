"""Features of raw clips, as the device computes them: its extractors before the starter's encoders.

Sound becomes the states of its log-mel rows, a video those of the faces in it, a still that of its face.
Silence and no face are absent modalities. Features are kept on disk under the SHA-256 of the file, the
extractors' parameters and the encoders' weights: a clip is decoded once, wherever it lies.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from affectrt.affect import MODALITIES, Modality
from affectrt.backends import Graph
from affectrt.cli.output import output_file, progress
from affectrt.errors import AffectError, require
from affectrt.features.audio import AudioFeatures
from affectrt.features.log_mel import AudioConfig
from affectrt.features.vision import VisionConfig, VisionFeatures, crop_face
from affectrt.media import AudioChunk, Media, read_image
from affectrt_training.data.assemble import Assembly
from affectrt_training.data.dataset import FloatMatrix
from affectrt_training.encoders.face import FaceEncoder, FaceEncoderConfig
from affectrt_training.encoders.voice import VoiceEncoder, VoiceEncoderConfig
from affectrt_training.recipes.starter.weights import COMMITTED, fill, read_parts

Kind = Literal["sound", "faces", "both", "still"]
Rows = dict[Modality, FloatMatrix]

FORMAT = 1
"""Part of every key: count up when the same file and encoders give other rows than before."""
CHUNK_BYTES = 1 << 20


def clip_rows(clips: Sequence[Mapping[str, Path]], cache: Path | None, assembly: Assembly) -> list[Rows]:
    """Rows of each clip, given as ``audio``, ``video`` and ``image`` files of which any may be missing.

    As on the device, ``audio`` takes the place of the video's own sound. Raises ``data.conflict`` for a clip
    with both a video and a still, ``data.media`` naming the file that can't be read, and ``extra.missing``.
    """
    extractor = ClipExtractor()
    store = _Store(cache or default_cache(), extractor.key)
    found: list[Rows] = []
    with progress("reading clips", len(clips), "clips") as update:
        for clip in clips:
            found.append(_rows(clip, extractor, store, assembly.notes))
            update(len(found))
    silent = sum(
        "audio" not in rows and ("audio" in c or "video" in c) for rows, c in zip(found, clips, strict=True)
    )
    unseen = sum(
        "vision" not in rows and ("image" in c or "video" in c) for rows, c in zip(found, clips, strict=True)
    )
    if silent:
        assembly.notes.append(f"{silent} clips hold no voice")
    if unseen:
        assembly.notes.append(f"{unseen} clips show no face")
    return found


def default_cache() -> Path:
    """``affectrt/clips`` in the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "affectrt" / "clips"


def _rows(clip: Mapping[str, Path], extractor: ClipExtractor, store: _Store, notes: list[str]) -> Rows:
    if "video" in clip and "image" in clip:
        raise AffectError(
            "data.conflict",
            f"both '{clip['video']}' and '{clip['image']}' give the face of one clip; keep one",
        )
    wanted: list[tuple[Path, Kind]] = []
    if "audio" in clip:
        wanted.append((clip["audio"], "sound"))
    if "video" in clip:
        wanted.append((clip["video"], "faces" if "audio" in clip else "both"))
    if "image" in clip:
        wanted.append((clip["image"], "still"))
    rows: Rows = {}
    for path, kind in wanted:
        rows |= store.rows(path, kind, extractor, notes)
    return rows


@dataclass(frozen=True)
class _Store:
    """Rows by file content, one small safetensors file each; a damaged one is computed again."""

    folder: Path
    encoders: str
    """What the extractor is, in a word: part of every key."""

    def rows(self, path: Path, kind: Kind, extractor: ClipExtractor, notes: list[str]) -> Rows:
        """Rows of a file, from disk where they are kept."""
        name = hashlib.sha256(f"{self.encoders} {kind} {_file_hash(path)}".encode()).hexdigest()
        entry = self.folder / name[:2] / f"{name}.safetensors"
        try:
            kept: Any = load(entry.read_bytes())
            return {m: kept[m] for m in MODALITIES if m in kept}
        except (FileNotFoundError, SafetensorError):
            rows = extractor.rows(path, kind, notes)
        entry.parent.mkdir(parents=True, exist_ok=True)
        with output_file(entry) as write:
            write(save({str(modality): values for modality, values in rows.items()}))
        return rows


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class ClipExtractor:
    """Sound and faces of files → rows, by the starter's encoders."""

    def __init__(self, weights: Path = COMMITTED) -> None:
        """Raises ``weights.not_found``, ``extra.missing``; the encoders are loaded when they are needed."""
        for module in ("av", "cv2", "kaldi_native_fbank", "soxr"):
            require(module, "media")
        if not weights.is_file():
            raise AffectError("weights.not_found", f"expected encoder weights at {weights}")
        self._weights = weights
        self._meta: dict[str, Any] = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        audio, vision = dict(self._meta["audio"]), dict(self._meta["vision"])
        self._audio_dim, self._vision_dim = int(audio.pop("dim")), int(vision.pop("dim"))
        self.audio = AudioConfig(**audio)
        self.vision = VisionConfig(**vision)

    @cached_property
    def key(self) -> str:
        """Changes with whatever changes the rows."""
        parts = [FORMAT, _file_hash(self._weights), asdict(self.audio), asdict(self.vision)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def encoders(self) -> tuple[VoiceEncoder, FaceEncoder]:
        """What makes states of log-mel rows and of face crops, in evaluation mode."""
        parts = read_parts(self._weights)
        voice = VoiceEncoder(VoiceEncoderConfig(**_tupled(self._meta["voice_encoder"])))
        face = FaceEncoder(FaceEncoderConfig(**_tupled(self._meta["face_encoder"])))
        fill(voice, parts["voice"], "voice")
        fill(face, parts["face"], "face")
        return voice.eval().requires_grad_(False), face.eval().requires_grad_(False)

    @cached_property
    def _graphs(self) -> tuple[Graph, Graph]:
        voice, face = self.encoders
        return _graph(voice), _graph(face)

    def rows(self, path: Path, kind: Kind, notes: list[str]) -> Rows:
        """Rows of one file; a modality that isn't in it is left out. Raises ``data.media``.

        What is wrong with the file but doesn't stop the reading is added to ``notes``.
        """
        try:
            return self._still(path) if kind == "still" else self._media(path, kind, notes)
        except AffectError as error:
            raise AffectError("data.media", f"{path}: {error.message}") from error

    def _media(self, path: Path, kind: Kind, notes: list[str]) -> Rows:
        voice, face = self._graphs
        sound = AudioFeatures(self.audio, voice, self._audio_dim, keep_s=inf)
        faces = VisionFeatures(self.vision, face, self._vision_dim, keep_s=inf)
        rate_hz = self.vision.rate_hz if kind != "sound" else None
        with Media.open(
            path, max_video_rate_hz=rate_hz, audio=kind != "faces", video=kind != "sound"
        ) as media:
            for item in media:
                if isinstance(item, AudioChunk):
                    sound.push_audio(item.pcm, item.sample_rate_hz, item.time_s)
                else:
                    faces.push_frame(item.bgr, item.time_s)
            sound.flush()
        notes += [f"{path}: {message}" for message in media.warnings]
        found = (sound.window(-inf, inf), faces.window(-inf, inf))
        return {s.modality: s.values for s in found if len(s)}

    def _still(self, path: Path) -> Rows:
        crop = crop_face(read_image(path), self.vision)
        if crop is None:
            return {}
        (states,) = self._graphs[1](faces=crop.grey[None].astype(np.float32) / np.float32(255.0))
        return {"vision": states}


def _graph(module: torch.nn.Module) -> Graph:
    """A torch module as the extractors call their graphs."""

    @torch.no_grad()
    def run(**inputs: Any) -> tuple[FloatMatrix, ...]:
        (array,) = inputs.values()
        states: FloatMatrix = module(torch.from_numpy(np.ascontiguousarray(array))).numpy()
        return (states,)

    return run


def _tupled(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
