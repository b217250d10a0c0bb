"""Frames to rows: a ResNet from a folder that the tests write, and the 2D-Inception encoder of faces."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetModel

from affectrt.errors import AffectError
from affectrt.features.face_detection import to_grey
from affectrt_training.encoders import image
from affectrt_training.encoders.face import FaceEncoder, FaceEncoderConfig
from affectrt_training.encoders.image import ImageEncoder, InceptionEncoder, ResNetEncoder

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(4)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(path)
    prepared = {"size": {"shortest_edge": 32}, "image_mean": MEAN, "image_std": STD}
    (path / "preprocessor_config.json").write_text(json.dumps(prepared))
    return path


def frames(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def test_rows_are_the_pooled_features_of_normalised_rgb(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "BATCH_FRAMES", 2)
    encoder: ImageEncoder = ResNetEncoder(folder)
    bgr = frames(5, 32, 32)
    rgb = bgr.numpy()[..., ::-1].astype(np.float32) / 255
    pixels = torch.from_numpy(((rgb - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2).copy())
    expected = ResNetModel.from_pretrained(folder).eval()(pixels).pooler_output[:, :, 0, 0]
    rows = encoder(bgr)
    assert rows.shape == (5, encoder.dim) == (5, 6)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 80), (80, 32)])
def test_the_middle_of_a_frame_is_seen(height: int, width: int, folder: Path) -> None:
    encoder, whole = ResNetEncoder(folder), frames(2, height, width)
    top, left = (height - 32) // 2, (width - 32) // 2
    middle = whole[:, top : top + 32, left : left + 32]
    torch.testing.assert_close(encoder(whole), encoder(middle), atol=1e-5, rtol=1e-5)


def test_bigger_frames_are_made_smaller(folder: Path) -> None:
    """Each pixel repeated 3 × 3: the same picture, so nearly the same rows."""
    encoder = ResNetEncoder(folder)
    small = F.interpolate(torch.rand(2, 3, 4, 5), size=(32, 40), mode="bilinear")
    small = (small * 255).to(torch.uint8).permute(0, 2, 3, 1)
    big = small.repeat_interleave(3, 1).repeat_interleave(3, 2)
    rows = encoder(small)
    assert (encoder(big) - rows).abs().max() < 0.1 * (rows[0] - rows[1]).abs().max()


def test_frozen_unless_tuned(folder: Path) -> None:
    frozen = ResNetEncoder(folder).train()
    assert not frozen(frames(1, 32, 32)).requires_grad
    assert not any(m.training for m in frozen.modules())
    tuned = ResNetEncoder(folder, tuned=True).train()
    tuned(frames(2, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in tuned.parameters()) and tuned.resnet.training


def test_without_a_preprocessor_imagenet_s_numbers_serve(folder: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    encoder = ResNetEncoder(bare)
    assert encoder.side_px == 224
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


def _without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[min(tensors)]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (shutil.rmtree, "encoder.folder", "no config.json"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "vit"}'),
            "encoder.unsupported",
            "got 'vit'",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "encoder.folder", "found none"),
        (_without_a_tensor, "encoder.folder", "missing"),
        (lambda f: (f / "preprocessor_config.json").write_text("[]"), "encoder.folder", "image_mean"),
        (
            lambda f: (f / "preprocessor_config.json").write_text('{"image_std": [0, 1, 1]}'),
            "encoder.folder",
            "three channels",
        ),
    ],
)
def test_what_is_no_resnet_is_refused(
    damage: Callable[[Path], object], code: str, says: str, folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(AffectError, match=says) as caught:
        ResNetEncoder(copy)
    assert caught.value.code == code


@torch.no_grad()
def test_faces_are_read_as_on_the_device() -> None:
    torch.manual_seed(0)
    face = FaceEncoder(FaceEncoderConfig(stem=4, widths=(48, 48, 48), dim=5)).eval()
    encoder: ImageEncoder = InceptionEncoder(face)
    crops = F.interpolate(torch.rand(3, 3, 5, 5), size=48, mode="bilinear")
    crops = (crops * 255).to(torch.uint8).permute(0, 2, 3, 1)
    grey = np.stack([to_grey(crop) for crop in crops.numpy()])
    expected = face(torch.from_numpy(grey) / 255)
    rounding = 0.05 * (expected[0] - expected[1]).abs().max()

    def error(frames: torch.Tensor) -> float:
        return float((encoder(frames) - expected).abs().max())

    assert encoder(crops).shape == (3, encoder.dim) == (3, 5)
    assert error(crops) < rounding < error(crops.flip(-1)), "blue, green, red"
    assert error(crops.repeat_interleave(3, 1).repeat_interleave(3, 2)) < 2 * rounding, "of any size"


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 8, 3),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(0, 8, 8, 3, dtype=torch.uint8),
    ],
)
def test_what_are_no_frames_is_refused(wrong: torch.Tensor, folder: Path) -> None:
    face = FaceEncoder(FaceEncoderConfig(stem=4, widths=(48, 48, 48), dim=5)).eval()
    for encoder in (ResNetEncoder(folder), InceptionEncoder(face)):
        with pytest.raises(AffectError, match="expected at least one frame") as caught:
            encoder(wrong)
        assert caught.value.code == "encoder.frames"
