"""CM-MSF against its equations, written once more for one clip without padding."""

from __future__ import annotations

from dataclasses import replace
from math import cos, sin
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from affectrt.errors import AffectError
from affectrt_training.models.cm_msf import CmMsf, CmMsfConfig, MaskGate
from affectrt_training.models.registry import create

DIMS = (6, 5, 4)
CONFIG = CmMsfConfig(
    text_dim=6,
    audio_dim=5,
    vision_dim=4,
    model_dim=8,
    heads=2,
    cascade=2,
    transformer_layers=2,
    transformer_heads=4,
    fused_dim=9,
    mask_threshold=0.9,
)
VARIANTS = {
    "both": CONFIG,
    "every": replace(CONFIG, bilstm="every", kernel_steps=1, mask_threshold=0.0),
    "none": replace(CONFIG, bilstm="none", mask_gate=False),
    "I": replace(CONFIG, text_encoders="bert", audio_encoders="transformer", vision_encoders="transformer"),
    "II": replace(CONFIG, text_encoders="lstm", audio_encoders="bigru", vision_encoders="resnet"),
}
LENGTHS = [(4, 9, 5), (0, 9, 5), (7, 0, 3), (4, 2, 0), (0, 0, 0)]
T, A, V = range(3)


def made(config: CmMsfConfig) -> Any:
    """A model whose every parameter is random, also those that begin at 0 or 1. ``Any``: we look inside."""
    torch.manual_seed(4)
    model = CmMsf(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def attend(of: Any, query: Tensor, memory: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √d) V, one head after the other, stitched together and mapped once more."""
    q, (k, v) = of.query(query), of.key_value(memory).chunk(2, -1)
    heads = [
        ((a @ b.T) / a.shape[1] ** 0.5).softmax(-1) @ c
        for a, b, c in zip(*(x.chunk(of.heads, -1) for x in (q, k, v)), strict=True)
    ]
    attended: Tensor = of.out(torch.cat(heads, -1))
    return attended


def transformer(of: Any, rows: Tensor) -> Tensor:
    """Pre-norm layers over rows with sinusoids on all but the null slot."""
    x = rows.clone()
    for t in range(len(x) - 1):
        for i in range(0, x.shape[1], 2):
            x[1 + t, i] += sin(t / 10_000 ** (i / x.shape[1]))
            x[1 + t, i + 1] += cos(t / 10_000 ** (i / x.shape[1]))
    for layer in of.layers.layers:
        [block] = layer.blocks
        normed = block.attention_norm(x)
        x = x + attend(block.attention, normed, normed)
        x = x + block.outer(block.inner(block.forward_norm(x)).relu())
    last: Tensor = of.layers.last_norms[0](x)
    return last


def lstm(of: Any, rows: Tensor) -> Tensor:
    """The states of an LSTM; torch orders its blocks input, forget, candidate, output."""
    h = c = torch.zeros(of.hidden_size)
    states = []
    for x in rows:
        summed = of.weight_ih_l0 @ x + of.bias_ih_l0 + of.weight_hh_l0 @ h + of.bias_hh_l0
        i, f, g, o = summed.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states)


def gru(of: Any, rows: Tensor, direction: int = 0) -> Tensor:
    """Eq. 15–18, the reset before the product."""
    w_z, w_r, w_h = of.w_x[direction][0].chunk(3)
    u_z, u_r, u_h = of.w_h[direction][0].chunk(3)
    b_z, b_r, b_h = of.bias[direction][0].chunk(3)
    h, states = torch.zeros(u_z.shape[1]), []
    for x in rows:
        r = torch.sigmoid(w_r @ x + u_r @ h + b_r)
        z = torch.sigmoid(w_z @ x + u_z @ h + b_z)
        h = (1 - z) * h + z * torch.tanh(w_h @ x + u_h @ (r * h) + b_h)
        states.append(h)
    return torch.stack(states)


def encoded(of: Any, rows: Tensor) -> Tensor:
    kind = type(of).__name__
    if kind == "Given":
        return rows
    if kind == "Lstm":
        return lstm(of.lstm, rows)
    if kind == "BiGru":
        return torch.cat([gru(of.gru, rows), gru(of.gru, rows.flip(0), 1).flip(0)], -1)
    return transformer(of, rows)


def cross_modal(of: Any, rows: Tensor, memory: Tensor) -> Tensor:
    """Eq. 8, 10 and 11."""
    hat = of.norms[0](attend(of.projections, rows, memory)) + of.norms[1](rows)
    kernel = of.conv.weight
    width = kernel.shape[2] // 2
    around = pad(hat, (0, 0, width, width))
    local = torch.stack(
        [
            of.conv.bias + sum(kernel[:, :, i] @ around[t + i] for i in range(kernel.shape[2]))
            for t in range(len(hat))
        ]
    )
    rows = of.norms[2](local) + of.norms[3](hat)
    if len(of.directions):
        rows = lstm(of.directions[0], rows) + lstm(of.directions[1], rows.flip(0)).flip(0)
    return rows


def one_clip(model: Any, clip: list[Tensor]) -> tuple[Tensor, Tensor]:
    config = model.config
    u = []
    for projection, alignment, x in zip(model.projections, model.alignments, clip, strict=True):
        given = projection.norm(x) @ projection.conv.weight[:, :, 0].T + projection.conv.bias
        halves = [encoded(of, torch.cat([projection.null[None], given])) for of in alignment.encoders]
        h = halves[0]
        if len(halves) == 2:
            a, b = halves
            c = [attend(alignment.a_to_b, a, b), attend(alignment.b_to_a, b, a)]  # eq. 1–5
            h = alignment.joined(torch.cat(c, -1))  # eq. 6
        u.append(alignment.outer(alignment.inner(h).relu()))  # eq. 7

    # Eq. 12: the two updates of one modality, each half as wide, side by side.
    updated = []
    for m, pairs in ((T, {A: 0, V: 1}), (A, {T: 2, V: 3}), (V, {T: 4, A: 5})):
        parts = []
        for source, p in pairs.items():
            rows = u[m]
            for level in model.cascade:
                rows = cross_modal(level.encoders[p], rows, u[source])
            parts.append(model.reductions[p](rows))
        updated.append(torch.cat(parts, -1))

    pooled = []
    for m, rows in enumerate(updated):
        if config.mask_gate:
            gate = model.gates[m]
            strength = rows.abs().mean(1)
            kept = rows * torch.sigmoid(gate.gate(rows))  # eq. 13–14
            for t in range(1, len(rows)):
                if m != T and strength[t] < config.mask_threshold * strength.mean():
                    kept[t] = 0
            rows = gru(gate.gru, kept) + kept  # eq. 19
        pooled.append(rows.max(0).values)
    fused = model.fused(torch.cat(pooled)).relu()  # eq. 20
    return model.sentiment(fused).clamp(-3, 3), model.emotion(fused)


def padded(clips: list[list[Tensor]], fill: float) -> list[Tensor]:
    """The clips as a model's arguments, one row more than the longest, ``fill`` beyond each length."""
    given = []
    for m in range(3):
        lengths = torch.tensor([len(clip[m]) for clip in clips])
        rows = torch.full((len(clips), int(lengths.max()) + 1, DIMS[m]), fill)
        for row, clip in zip(rows, clips, strict=True):
            row[: len(clip[m])] = clip[m]
        given += [rows, lengths]
    return given


def clips() -> list[list[Tensor]]:
    torch.manual_seed(5)
    return [[torch.randn(n, dim) for n, dim in zip(lengths, DIMS, strict=True)] for lengths in LENGTHS]


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_is_its_equations(variant: str) -> None:
    model = made(VARIANTS[variant])
    for chosen in (clips(), *([clip] for clip in clips())):
        sentiment, logits = model(*padded(chosen, float("nan")))
        for b, clip in enumerate(chosen):
            want = one_clip(model, clip)
            torch.testing.assert_close(sentiment[b : b + 1], want[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(logits[b], want[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns_and_padding_touches_no_gradient(variant: str) -> None:
    model = made(VARIANTS[variant])
    gradients = []
    for fill in (0.0, float("nan")):
        given = padded(clips(), fill)
        for rows in given[::2]:
            rows.requires_grad_()
        sentiment, logits = model(*given)
        model.zero_grad()
        (sentiment.sum() + logits.square().sum()).backward()
        gradients.append([*(p.grad for p in model.parameters()), *(rows.grad for rows in given[::2])])
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []
    for zero, nan in zip(*gradients, strict=True):
        torch.testing.assert_close(nan, zero, rtol=0, atol=1e-6)


def test_weak_rows_are_masked_and_the_null_slot_never() -> None:
    rows = torch.tensor([[[0.1, 0.1], [4.0, -4.0], [-1.9, 1.9], [2.1, -2.1], [90.0, 90.0]]])
    mask = MaskGate(2, threshold=0.99).mask(rows, torch.tensor([4]))  # mean of the four valid: 2.025
    assert mask.flatten()[:4].tolist() == [1, 1, 0, 1]
    assert MaskGate(2, threshold=0.0).mask(rows, torch.tensor([4])).all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"heads": 3}, "heads"),
        ({"transformer_heads": 7}, "transformer_heads"),
        ({"model_dim": 5, "transformer_heads": 5}, "model_dim"),
        ({"kernel_steps": 2}, "kernel_steps"),
        ({"audio_encoders": "bert"}, "audio_encoders"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(AffectError, match=named) as refused:
        create("cm-msf", {"text": 6, "audio": 5, "vision": 4}, settings)
    assert refused.value.code == "config.value"
