"""MulT against its equations, written once more for one clip without padding."""

from __future__ import annotations

from math import cos, sin
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import multi_head_attention_forward, pad

from affectrt.errors import AffectError
from affectrt_training.models.mult import MulT, MulTConfig
from affectrt_training.models.registry import create

DIMS = (6, 5, 4)
CONFIG = MulTConfig(text_dim=6, audio_dim=5, vision_dim=4, model_dim=6, heads=2, layers=2, self_layers=3)
LENGTHS = [(4, 9, 5), (0, 9, 5), (7, 0, 3), (4, 2, 0), (0, 0, 0)]


def made() -> Any:
    """A model whose every parameter is random, also those that begin at 0 or 1. ``Any``: we look inside."""
    torch.manual_seed(4)
    model = MulT(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def low_level(of: Any, x: Tensor) -> Tensor:
    """(T, D) → (1 + T, d): the null slot, then eq. 2 and eq. 3 step by step."""
    padded, rows = pad(of.norm(x), (0, 0, 1, 1)), [of.null]
    d = len(of.null)
    for t in range(len(x)):
        row = of.conv.bias + sum(of.conv.weight[:, :, i] @ padded[t + i] for i in range(3))
        waves = [(sin if i % 2 == 0 else cos)(t / 10_000 ** (2 * (i // 2) / d)) for i in range(d)]
        rows.append(row + torch.tensor(waves))
    return torch.stack(rows)


def attend(of: Any, x1: Tensor, x2: Tensor) -> Tensor:
    """Eq. 1 in several heads, as torch computes it."""
    d = x1.shape[1]
    found, _ = multi_head_attention_forward(
        x1[:, None], x2[:, None], x2[:, None], d, of.heads,
        torch.cat([of.query.weight, of.key_value.weight]),
        torch.cat([of.query.bias, of.key_value.bias]),
        None, None, False, 0.0, of.out.weight, of.out.bias,
    )  # fmt: skip
    return found[:, 0]


def transformer(of: Any, p: int, x: Tensor, source: Tensor | None = None) -> Tensor:
    """Eq. 4; without a source each layer looks at its own input."""
    for layer in of.layers:
        block = layer.blocks[p]
        normed = block.attention_norm(x)
        x = x + attend(block.attention, normed, normed if source is None else block.attention_norm(source))
        x = x + block.outer(block.inner(block.forward_norm(x)).relu())
    last: Tensor = of.last_norms[p](x)
    return last


def one_clip(model: Any, clip: list[Tensor]) -> tuple[Tensor, Tensor]:
    t, a, v = (low_level(of, x) for of, x in zip((model.text, model.audio, model.vision), clip, strict=True))
    cross, own = model.cross, model.own
    to_text = torch.cat([transformer(cross, 0, t, a), transformer(cross, 1, t, v)], 1)  # eq. 5
    to_audio = torch.cat([transformer(cross, 2, a, t), transformer(cross, 3, a, v)], 1)
    to_vision = torch.cat([transformer(cross, 4, v, t), transformer(cross, 5, v, a)], 1)
    last = torch.cat([transformer(own, m, x)[-1] for m, x in enumerate((to_text, to_audio, to_vision))])
    fused = last + model.readout.outer(model.readout.inner(last).relu())
    return model.sentiment(fused).clamp(-3, 3), model.emotion(fused)


def padded(clips: list[list[Tensor]], fill: float) -> list[Tensor]:
    """The clips as a model's arguments, one row more than the longest, ``fill`` beyond each length."""
    given = []
    for m in range(3):
        lengths = torch.tensor([len(clip[m]) for clip in clips])
        rows = torch.full((len(clips), int(lengths.max()) + 1, clips[0][m].shape[1]), fill)
        for row, clip in zip(rows, clips, strict=True):
            row[: len(clip[m])] = clip[m]
        given += [rows, lengths]
    return given


@torch.no_grad()
def test_the_model_is_its_equations() -> None:
    model = made()
    clips = [[torch.randn(n, dim) for n, dim in zip(lengths, DIMS, strict=True)] for lengths in LENGTHS]
    for chosen in (clips, *([clip] for clip in clips)):
        sentiment, logits = model(*padded(chosen, float("nan")))
        for b, clip in enumerate(chosen):
            want = one_clip(model, clip)
            torch.testing.assert_close(sentiment[b : b + 1], want[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(logits[b], want[1], rtol=0, atol=1e-5)


def test_every_parameter_learns_and_padding_touches_no_gradient() -> None:
    model = made()
    clips = [[torch.randn(n, dim) for n, dim in zip(lengths, DIMS, strict=True)] for lengths in LENGTHS]
    gradients = []
    for fill in (0.0, float("nan")):
        given = padded(clips, fill)
        for rows in given[::2]:
            rows.requires_grad_()
        sentiment, logits = model(*given)
        model.zero_grad()
        (sentiment.sum() + logits.square().sum()).backward()
        gradients.append([*(p.grad for p in model.parameters()), *(rows.grad for rows in given[::2])])
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []
    for zero, nan in zip(*gradients, strict=True):
        torch.testing.assert_close(nan, zero, rtol=0, atol=1e-6)


@pytest.mark.parametrize("beyond", [-5.0, 5.0])
def test_an_answer_out_of_range_finds_back_while_training(beyond: float) -> None:
    model = made().train()
    with torch.no_grad():
        model.sentiment.bias.fill_(beyond * 10)
    clips = [[torch.randn(2, dim) for dim in DIMS]] * 3
    sentiment, _ = model(*padded(clips, 0.0))
    torch.testing.assert_close(sentiment, torch.full((3,), 3.0 if beyond > 0 else -3.0))
    sentiment.abs().mean().backward()
    assert model.sentiment.bias.grad.item() == pytest.approx(beyond / 5)


def test_the_defaults_are_the_papers() -> None:
    model = create("mult", {"text": 300, "audio": 5, "vision": 20})
    assert isinstance(model, MulT)
    c = model.config
    assert (c.model_dim, c.layers, c.heads, c.kernel_steps) == (40, 4, 10, 3)
    assert (c.text_dropout, c.block_dropout, c.output_dropout) == (0.2, 0.2, 0.1)
    assert (len(model.cross.pairs), len(model.own.pairs)) == (6, 3)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(AffectError, match="heads: expected a divisor of model_dim = 40, got 7") as refused:
        create("mult", {"text": 6, "audio": 5, "vision": 4}, {"heads": 7})
    assert refused.value.code == "config.value"
