"""The starter's weights on disk: safetensors, a JSON sidecar and a model card, side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from affectrt.errors import AffectError
from affectrt_training.encoders.face import FaceEncoder, FaceEncoderConfig
from affectrt_training.encoders.text import LoraSettings, TextEncoder, TextSettings, minilm_folder
from affectrt_training.encoders.voice import VoiceEncoder, VoiceEncoderConfig
from affectrt_training.models.ghrnn_cma import GhrnnCma, GhrnnCmaConfig
from affectrt_training.models.ghrnn_cma_causal import CausalGhrnnCma
from affectrt_training.recipes.starter.fit import save_tensors

CARD = "MODEL_CARD.md"
"""The model card's name, beside the weights."""

COMMITTED = Path(__file__).parent / "weights" / "starter.safetensors"
"""The weights that this repository ships."""

PARTS = ("text", "voice", "face", "fusion", "causal")
"""Prefixes of the tensors' names."""


@dataclass(frozen=True)
class Starter:
    """Every part of the starter in evaluation mode, and what its bundle's manifest says."""

    text_encoder: nn.Module
    """A plain BERT (adapter merged): input_ids, attention_mask (B, T) → last_hidden_state (B, T, 384)."""
    voice_encoder: VoiceEncoder
    face_encoder: FaceEncoder
    fusion: GhrnnCma
    """Reads windows."""
    causal: CausalGhrnnCma
    """Reads ticks."""
    tokenizer_json: bytes
    meta: dict[str, Any]
    """The sidecar, with the model card's text under "model_card"."""


def save_weights(parts: dict[str, dict[str, Tensor]], meta: dict[str, Any], path: Path) -> None:
    """Write all parts as float16 and the sidecar beside them. ``meta`` without the model card's text."""
    tensors = {
        f"{part}.{name}": tensor.half()
        for part in PARTS
        for name, tensor in parts[part].items()
        if tensor.is_floating_point()  # BatchNorm's step counters are of no use after training
    }
    save_tensors(tensors, path)
    write_meta(meta, path)


def write_meta(meta: dict[str, Any], path: Path) -> None:
    """Write the JSON sidecar of the weights at ``path``."""
    meta = {key: value for key, value in meta.items() if key != "model_card"}
    path.with_suffix(".json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def read_parts(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of every part as float32. Raises ``weights.not_found``, ``weights.invalid``."""
    if not path.is_file():
        raise AffectError(
            "weights.not_found", f"expected starter weights at {path}; run: affectrt train --recipe starter"
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise AffectError("weights.invalid", f"{path} is no readable safetensors file: {error}") from error
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise AffectError(
                "weights.invalid", f"{path} holds '{name}'; expected names in {', '.join(PARTS)}"
            )
        parts[part][rest] = tensor.float()
    return parts


def fill(module: nn.Module, tensors: dict[str, Tensor], part: str) -> None:
    """Load tensors into a module. Raises ``weights.mismatch`` on a missing, foreign or misshapen tensor."""
    try:
        found = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise AffectError("weights.mismatch", f"{part} weights don't fit the model: {error}") from error
    missing = [name for name in found.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or found.unexpected_keys:
        raise AffectError(
            "weights.mismatch",
            f"{part} weights don't fit the model: missing {missing[:3]}, foreign {found.unexpected_keys[:3]}",
        )


def read_meta(path: Path) -> dict[str, Any]:
    """The sidecar of the weights at ``path``, with the model card's text. Raises ``weights.invalid``."""
    try:
        meta: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise AffectError("weights.invalid", f"the sidecar of {path} can't be read: {error}") from error
    card = path.with_name(CARD)
    return {**meta, "model_card": card.read_text(encoding="utf-8") if card.is_file() else ""}


@dataclass(frozen=True)
class Kept:
    """Parts of whole weights, to be taken as they are."""

    parts: dict[str, dict[str, Tensor]]
    """Those that the weights hold."""
    meta: dict[str, Any]
    """Their sidecar, with the model card's text under "model_card"."""


def read_kept(path: Path) -> Kept:
    """The weights at ``path``, of every stage or of some. Raises as :func:`read_parts`."""
    parts = {part: tensors for part, tensors in read_parts(path).items() if tensors}
    return Kept(parts, read_meta(path))


def load_starter(path: Path | None = None) -> Starter:
    """Rebuild the starter from its weights, the committed ones by default.

    Raises ``weights.not_found``, ``weights.invalid``, ``weights.mismatch`` and, where they have no causal
    model yet, ``weights.no_causal``.
    """
    path = path or COMMITTED
    parts, meta = read_parts(path), read_meta(path)
    if not parts["causal"] or "causal" not in meta:
        raise AffectError(
            "weights.no_causal",
            f"{path} holds no causal model; add one: affectrt train --recipe starter --keep {path} -o NEW",
        )
    text = TextEncoder(TextSettings(tuning="lora", lora=LoraSettings(**meta["lora"])))
    text.load_adapter(parts["text"])
    voice = VoiceEncoder(VoiceEncoderConfig(**_tupled(meta["voice_encoder"])))
    face = FaceEncoder(FaceEncoderConfig(**_tupled(meta["face_encoder"])))
    fusion = GhrnnCma(GhrnnCmaConfig(**_tupled(meta["config"])))
    causal = CausalGhrnnCma(GhrnnCmaConfig(**_tupled(meta["causal"]["config"])))
    for module, part in ((voice, "voice"), (face, "face"), (fusion, "fusion"), (causal, "causal")):
        fill(module, parts[part], part)
        module.eval().requires_grad_(False)
    merged = text.merged().requires_grad_(False)
    return Starter(
        text_encoder=merged,
        voice_encoder=voice,
        face_encoder=face,
        fusion=fusion,
        causal=causal,
        tokenizer_json=(minilm_folder() / "tokenizer.json").read_bytes(),
        meta=meta,
    )


def _tupled(config: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


def rounded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they come back from disk: rounded to float16. Fusion learns from what will be shipped."""
    return {name: t.half().float() if t.is_floating_point() else t for name, t in tensors.items()}
