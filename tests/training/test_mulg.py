"""MulG against its equations, written once more for one clip without padding."""

from __future__ import annotations

from dataclasses import replace
from math import cos, sin
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from affectrt.errors import AffectError
from affectrt_training.models.mulg import MulG, MulGConfig
from affectrt_training.models.registry import create

DIMS = (6, 5, 4)
CONFIG = MulGConfig(
    text_dim=6, audio_dim=5, vision_dim=4, model_dim=8, heads=2, hidden_dim=7, layers=2, gru_layers=2
)
LENGTHS = [(4, 9, 5), (0, 9, 5), (7, 0, 3), (4, 2, 0), (0, 0, 0)]
CROSS = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
VARIANTS = {
    "pre": CONFIG,
    "post": replace(CONFIG, norm="post"),
    "dual": replace(CONFIG, norm="dual"),
    "no positions": replace(CONFIG, positions=False, kernel_steps=1),
    "self": replace(CONFIG, attention="self"),
    "none": replace(CONFIG, attention="none", gru_layers=1),
}


def made(config: MulGConfig) -> Any:
    """A model whose every parameter is random, also those that begin at 0 or 1. ``Any``: we look inside."""
    torch.manual_seed(4)
    model = MulG(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def projected(of: Any, x: Tensor) -> Tensor:
    """(T, D) → (1 + T, d): normalised, convolved with zeros around, the null slot in front."""
    kernel, bias = of.conv.weight, of.conv.bias
    steps = kernel.shape[2]
    padded = pad(of.norm(x), (0, 0, steps // 2, steps // 2))
    convolved = [bias + sum(kernel[:, :, i] @ padded[t + i] for i in range(steps)) for t in range(len(x))]
    return torch.stack([of.null, *convolved])


def placed(x: Tensor) -> Tensor:
    """Sinusoids on every step but the null slot."""
    x = x.clone()
    for t in range(len(x) - 1):
        for i in range(0, x.shape[1], 2):
            x[1 + t, i] += sin(t / 10_000 ** (i / x.shape[1]))
            x[1 + t, i + 1] += cos(t / 10_000 ** (i / x.shape[1]))
    return x


def attend(of: Any, x1: Tensor, x2: Tensor) -> Tensor:
    """Eq. 5 with the bilinear W of each head written out, eq. 6 and eq. 7 over projected values."""
    d = x1.shape[1]
    size = d // of.heads
    heads = []
    for n in range(of.heads):
        part = slice(n * size, (n + 1) * size)
        w_q, b_q = of.query.weight[part], of.query.bias[part]
        w_k = of.key_value.weight[:d][part]  # its bias cancels in the softmax
        w_v, b_v = of.key_value.weight[d:][part], of.key_value.bias[d:][part]
        scores = (x1 @ (w_q.T @ w_k) @ x2.T + b_q @ w_k @ x2.T) / size**0.5
        heads.append(scores.softmax(-1) @ (x2 @ w_v.T + b_v))
    attended: Tensor = of.out(torch.cat(heads, -1))
    return attended


def transformer(of: Any, p: int, x: Tensor, memory: Tensor | None) -> Tensor:
    """Figure 5 (a), (b) and, from the ResiDual paper, (c)."""
    both = x
    for layer in of.layers:
        block = layer.blocks[p]
        sublayers = [
            (block.attention_norm, lambda y, m, block=block: attend(block.attention, y, m)),
            (block.forward_norm, lambda y, _, block=block: block.outer(block.inner(y).relu())),
        ]
        f: Any
        for norm, f in sublayers:
            if of.norm == "pre":
                m = norm(x) if memory is None else norm(memory)
                x = x + f(norm(x), m)
            else:
                change = f(x, x if memory is None else memory)
                x, both = norm(x + change), both + change
    if of.norm == "pre":
        x = of.last_norms[p](x)
    if of.norm == "dual":
        x = x + of.last_norms[p](both)
    return x


def gru(of: Any, rows: Tensor) -> Tensor:
    """Eq. 1–4 with biases, layer on layer; the last state."""
    for w_x, w_h, bias in zip(of.w_x, of.w_h, of.bias, strict=True):
        xz, xr, xs = w_x[0].chunk(3)
        hz, hr, hs = w_h[0].chunk(3)
        bz, br, bs = bias[0].chunk(3)
        h, states = torch.zeros(hz.shape[1]), []
        for x in rows:
            r = torch.sigmoid(xr @ x + hr @ h + br)
            z = torch.sigmoid(xz @ x + hz @ h + bz)
            h = (1 - z) * h + z * torch.tanh(xs @ x + hs @ (r * h) + bs)
            states.append(h)
        rows = torch.stack(states)
    return rows[-1]


def one_clip(model: Any, clip: list[Tensor]) -> tuple[Tensor, Tensor]:
    config = model.config
    rows = [projected(of, x) for of, x in zip((model.text, model.audio, model.vision), clip, strict=True)]
    if config.attention != "none" and config.positions:
        rows = [placed(x) for x in rows]
    if config.attention == "self":
        rows = [transformer(model.transformers, m, rows[m], None) for m in range(3)]
    if config.attention == "cross":
        found = [transformer(model.transformers, p, rows[a], rows[b]) for p, (a, b) in enumerate(CROSS)]
        rows = [torch.cat(found[2 * m : 2 * m + 2], -1) for m in range(3)]
    concat = torch.cat([gru(of, x) for of, x in zip(model.recurrences, rows, strict=True)])  # eq. 8
    reduced = model.reduce(concat)  # eq. 9
    fused = reduced + model.readout.outer(model.readout.inner(reduced).relu())
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
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_is_its_equations(variant: str) -> None:
    model = made(VARIANTS[variant])
    clips = [[torch.randn(n, dim) for n, dim in zip(lengths, DIMS, strict=True)] for lengths in LENGTHS]
    for chosen in (clips, *([clip] for clip in clips)):
        sentiment, logits = model(*padded(chosen, float("nan")))
        for b, clip in enumerate(chosen):
            want = one_clip(model, clip)
            torch.testing.assert_close(sentiment[b : b + 1], want[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(logits[b], want[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns_and_padding_touches_no_gradient(variant: str) -> None:
    model = made(VARIANTS[variant])
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


def test_the_defaults_are_the_papers() -> None:
    model = create("mulg", {"text": 300, "audio": 5, "vision": 20})
    assert isinstance(model, MulG) and model.transformers is not None
    c = model.config
    assert (c.model_dim, c.heads, c.layers, c.hidden_dim, c.gru_layers) == (40, 4, 2, 40, 2)
    assert (c.text_dropout, c.block_dropout, c.output_dropout) == (0.2, 0.1, 0.1)
    assert len(model.transformers.pairs) == 6


@pytest.mark.parametrize("settings", [{"heads": 3}, {"kernel_steps": 2}, {"norm": "after"}])
def test_shapes_that_do_not_fit_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(AffectError, match=next(iter(settings))) as refused:
        create("mulg", {"text": 6, "audio": 5, "vision": 4}, settings)
    assert refused.value.code == "config.value"
