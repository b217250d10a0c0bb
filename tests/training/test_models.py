"""Shapes, invariances and padding rules of the encoders and the fusion model."""

from __future__ import annotations

import pytest
import torch

from affectrt_training.encoders.face import FaceEncoder, FaceEncoderConfig, Inception2d
from affectrt_training.encoders.voice import VoiceEncoder, VoiceEncoderConfig
from affectrt_training.models.ghrnn_cma import GhrnnCma, GhrnnCmaConfig

SMALL = GhrnnCmaConfig(text_dim=6, audio_dim=5, vision_dim=4, model_dim=8, heads=2, hidden_dim=8, fused_dim=8)


def _inputs(lengths: tuple[int, int, int], batch: int = 1, pad: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    made = {}
    dims = (("text", 6), ("audio", 5), ("vision", 4))
    for (name, dim), length in zip(dims, lengths, strict=True):
        rows = torch.randn(batch, max(1, length), dim, generator=generator)
        made[name] = torch.nn.functional.pad(rows, (0, 0, 0, pad), value=7.0)
        made[f"{name}_lengths"] = torch.full((batch,), length)
    return made


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 100, 399])
def test_voice_states_are_one_per_eight_frames(frames: int) -> None:
    encoder = VoiceEncoder(VoiceEncoderConfig(channels=(4, 4, 4), dim=6)).eval()
    assert encoder(torch.randn(2, frames, 64)).shape == (2, -(-frames // 8), 6)


def test_face_states_ignore_brightness() -> None:
    encoder = FaceEncoder(FaceEncoderConfig(stem=4, widths=(48, 48, 48), dim=5)).eval()
    faces = torch.nn.functional.interpolate(torch.rand(3, 1, 6, 6), size=48, mode="bilinear")[:, 0] * 0.6
    states = encoder(faces)
    assert states.shape == (3, 5)
    assert (states[0] - states[1]).abs().max() > 1e-4, "other faces give other states"
    torch.testing.assert_close(encoder(faces + 0.4), states, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder(faces[1:2]), states[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("d", [1, 3, 5])
@pytest.mark.parametrize("size", [6, 7])
def test_inception_keeps_the_map_size(d: int, size: int) -> None:
    block = Inception2d(8, 48, d).eval()
    assert block(torch.randn(1, 8, size, size)).shape == (1, 48, size, size)


@pytest.mark.parametrize("lengths", [(4, 9, 5), (0, 9, 5), (4, 0, 0), (0, 0, 3), (0, 0, 0), (1, 1, 1)])
def test_fusion_ignores_what_lies_past_the_lengths(lengths: tuple[int, int, int]) -> None:
    model = GhrnnCma(SMALL).eval()
    plain, padded = model(**_inputs(lengths)), model(**_inputs(lengths, pad=5))
    for a, b in zip(plain, padded, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    sentiment, logits = plain
    assert sentiment.shape == (1,) and logits.shape == (1, 7)
    assert sentiment.abs().max() <= 3


def test_fusion_hears_every_modality() -> None:
    """Each modality moves the result alone, without text too: it speaks through the text's null slot."""
    model = GhrnnCma(SMALL).eval()
    nothing = model(**_inputs((0, 0, 0)))[1]
    for lengths in ((4, 0, 0), (0, 9, 0), (0, 0, 5)):
        assert (model(**_inputs(lengths))[1] - nothing).abs().max() > 1e-4


def test_every_parameter_of_the_fusion_gets_a_gradient() -> None:
    model = GhrnnCma(SMALL)
    sentiment, logits = model(**_inputs((4, 9, 5), batch=2))
    (sentiment.sum() + logits.square().sum()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
