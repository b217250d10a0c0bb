"""Image encoders: frames of a clip to feature rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from affectrt.errors import AffectError
from affectrt_training.encoders.face import FaceEncoder
from affectrt_training.encoders.folders import pretrained, read_config, weight_files

BATCH_FRAMES = 32
"""Frames per pass: bounds the memory."""
FACE_PX = 48
"""Side of what :class:`FaceEncoder` reads."""
GREY_OF_BGR = (0.114, 0.587, 0.299)
"""Luma of ITU-R BT.601, as the device's crops are made grey."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue: what ResNets learned from, unless their folder says otherwise."""


class ImageEncoder(Protocol):
    """Whatever makes a row of a frame."""

    dim: int
    """Features per row."""

    def __call__(self, frames: Tensor) -> Tensor:
        """Frames (N, H, W, 3) uint8, BGR as the SDK decodes them → rows (N, dim) float32."""
        ...


class ResNetEncoder(nn.Module):
    """The globally pooled features of a ResNet (arXiv:1512.03385), what CM-MSF reads of images.

    The folder is of Hugging Face's layout: ``config.json`` (``model_type`` resnet), ``model.safetensors``
    and, where there is one, ``preprocessor_config.json`` with size, mean and deviation. Frames are brought to
    that size by their shorter side and cut to the square in the middle. Frozen, unless ``tuned``: then its
    weights have gradients and its normalisation follows :meth:`train`.
    """

    WHO = "image encoder"

    def __init__(self, folder: Path, *, tuned: bool = False) -> None:
        """Raises ``encoder.folder``, ``encoder.unsupported``."""
        super().__init__()
        folder = Path(folder).expanduser()
        config = read_config(folder, self.WHO, ["resnet"])
        weight_files(folder, self.WHO)
        self.resnet: Any = pretrained(folder, self.WHO)
        self.dim = int(config["hidden_sizes"][-1])
        self.tuned = tuned
        self.side_px, mean, std = _preparation(folder)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.requires_grad_(tuned).train(tuned)

    def train(self, mode: bool = True) -> ResNetEncoder:
        """As of any module, but a frozen encoder stays in evaluation mode."""
        super().train(mode and self.tuned)
        return self

    def forward(self, frames: Tensor) -> Tensor:
        _check(frames)
        rows = [
            self.resnet(pixel_values=self._prepared(part)).pooler_output.flatten(1)
            for part in torch.split(frames, BATCH_FRAMES)
        ]
        return torch.cat(rows)

    def _prepared(self, frames: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 BGR → (N, 3, side, side) normalised RGB."""
        x = frames.flip(-1).permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        scale = self.side_px / min(x.shape[2:])
        height, width = (max(self.side_px, round(length * scale)) for length in x.shape[2:])
        x = F.interpolate(x, size=(height, width), mode="bilinear", antialias=True)
        top, left = (height - self.side_px) // 2, (width - self.side_px) // 2
        x = x[:, :, top : top + self.side_px, left : left + self.side_px]
        return (x - self.mean) / self.std


class InceptionEncoder(nn.Module):
    """Face crops through the 2D-Inception encoder (bert_inception §3.2): grey, 48 × 48, as on the device.

    Frames are faces already: ``affectrt.features.vision`` finds them.
    """

    def __init__(self, face: FaceEncoder) -> None:
        super().__init__()
        self.face = face
        self.dim = face.config.dim

    def forward(self, frames: Tensor) -> Tensor:
        _check(frames)
        weights = torch.tensor(GREY_OF_BGR, device=frames.device)
        rows = []
        for part in torch.split(frames, BATCH_FRAMES):
            grey = (part.to(weights.dtype) @ weights / 255).unsqueeze(1)
            grey = F.interpolate(grey, size=(FACE_PX, FACE_PX), mode="bilinear", antialias=True)
            rows.append(self.face(grey.squeeze(1)))
        return torch.cat(rows)


def _check(frames: Tensor) -> None:
    """Raises ``encoder.frames``."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape:
        raise AffectError(
            "encoder.frames",
            f"image encoder: expected at least one frame, (N, H, W, 3) uint8, got {tuple(frames.shape)} "
            f"{frames.dtype}; stack frames as they are decoded",
        )


def _preparation(folder: Path) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side in pixels, mean and deviation of ``preprocessor_config.json``, or those usual for ImageNet."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return 224, IMAGENET_MEAN, IMAGENET_STD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        size = found.get("size", 224)
        side = size if isinstance(size, int) else size.get("shortest_edge") or size["height"]
        mean, std = (
            tuple(map(float, found.get(key, usual)))
            for key, usual in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
        )
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or int(side) < 1:
            raise ValueError(f"size {size}, image_mean {mean}, image_std {std}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AffectError(
            "encoder.folder",
            f"image encoder {path}: expected size, image_mean and image_std of three channels ({error!r}); "
            "save the preprocessor again",
        ) from error
    return int(side), mean, std
