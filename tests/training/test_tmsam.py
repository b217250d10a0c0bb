"""TMSAM against its equations, written once more for one clip without padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from affectrt.errors import AffectError
from affectrt_training.models.registry import create
from affectrt_training.models.tmsam import Tmsam, TmsamConfig, splice

DIMS = (6, 5, 4)
CONFIG = TmsamConfig(
    text_dim=6,
    audio_dim=5,
    vision_dim=4,
    conv_dim=7,
    hidden_dim=6,
    cross_heads=3,
    first_heads=2,
    second_heads=4,
    task_dim=9,
)
VARIANTS = {
    "whole": CONFIG,
    "to the letter": replace(CONFIG, residual=False, kernel_steps=1),
    "no cross-modal": replace(CONFIG, cross_modal=False),
    "no first level": replace(CONFIG, first_level=False),
    "no second level": replace(CONFIG, second_level=False),
}
LENGTHS = [(4, 9, 5), (0, 9, 5), (7, 0, 3), (4, 2, 0), (0, 0, 0)]


def made(config: TmsamConfig) -> Any:
    """A model whose every parameter is random, also those that begin at 0 or 1. ``Any``: we look inside."""
    torch.manual_seed(4)
    model = Tmsam(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def convolved(of: Any, x: Tensor) -> Tensor:
    """Eq. 2 with zeros around, (T, D) → (1 + T, d), the null slot in front."""
    kernel, bias = of.conv.weight, of.conv.bias
    steps = kernel.shape[2]
    around = pad(of.norm(x), (0, 0, steps // 2, steps // 2))
    rows = [bias + sum(kernel[:, :, i] @ around[t + i] for i in range(steps)) for t in range(len(x))]
    return torch.stack([of.null, *rows])


def gru(of: Any, rows: Tensor, direction: int) -> Tensor:
    """Eq. 3 and eq. 4 with its reset and its product."""
    u_z, u_r, u_h = of.w_x[direction][0].chunk(3)
    w_z, w_r, w_h = of.w_h[direction][0].chunk(3)
    b_z, b_r, b_h = of.bias[direction][0].chunk(3)
    h, states = torch.zeros(w_z.shape[1]), []
    for x in rows:
        r = torch.sigmoid(u_r @ x + w_r @ h + b_r)
        z = torch.sigmoid(u_z @ x + w_z @ h + b_z)
        candidate = torch.tanh(u_h @ x + w_h @ (r * h) + b_h)
        h = z * candidate + (1 - z) * h
        states.append(h)
    return torch.stack(states)


def attend(of: Any, query: Tensor, memory: Tensor) -> Tensor:
    """Eq. 6–7, one head after the other."""
    q, (k, v) = of.query(query), of.key_value(memory).chunk(2, -1)
    heads = [
        ((a @ b.T) / a.shape[1] ** 0.5).softmax(-1) @ c
        for a, b, c in zip(*(x.chunk(of.heads, -1) for x in (q, k, v)), strict=True)
    ]
    attended: Tensor = of.out(torch.cat(heads, -1))
    return attended


def kept(of: Any, rows: Tensor, told: Tensor) -> Tensor:
    result: Tensor = of.norm(rows + told) if of.residual else told
    return result


def one_clip(model: Any, clip: list[Tensor]) -> tuple[Tensor, Tensor]:
    config = model.config
    z = []
    for projection, recurrence, x in zip(model.projections, model.recurrences, clip, strict=True):
        rows = convolved(projection, x)
        both = [gru(recurrence, rows, 0), gru(recurrence, rows.flip(0), 1).flip(0)]
        z.append(torch.cat(both, -1))  # eq. 5
    if config.cross_modal:
        of = model.cross_modal
        pairs = {0: ((0, 1), (1, 2)), 1: ((2, 0), (3, 2)), 2: ((4, 0), (5, 1))}
        y = [torch.cat([attend(of.projections[p], z[m], z[n]) for p, n in pairs[m]], -1) for m in range(3)]
        z = [kept(of.told[m], z[m], y[m]) for m in range(3)]
    if config.first_level:
        z = [
            kept(of.told, rows, attend(of.projections, rows, rows))
            for of, rows in zip(model.first, z, strict=True)
        ]
    joint = torch.cat(z)
    if config.second_level:
        of = model.second
        joint = kept(of.told, joint, attend(of.projections, joint, joint))  # eq. 8
    vector = joint.mean(0)
    answers = []
    for branch, head in ((model.for_sentiment, model.sentiment), (model.for_emotion, model.emotion)):
        first, second = (layer for layer in branch if isinstance(layer, torch.nn.Linear))
        answers.append(head(second(first(vector).relu()).relu()))  # eq. 9
    return answers[0].clamp(-3, 3), answers[1]


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


def test_spliced_rows_stand_without_gaps() -> None:
    rows = [torch.tensor([[[10.0 * m + i] for i in range(1, n + 1)]] * 2) for m, n in enumerate((3, 2, 4), 1)]
    joint = splice(rows, torch.tensor([[2, 3], [1, 2], [4, 1]]))[..., 0]
    assert joint[0, :7].tolist() == [11, 12, 21, 31, 32, 33, 34]
    assert joint[1, :6].tolist() == [11, 12, 13, 21, 22, 31]


@pytest.mark.parametrize(
    "settings", [{"cross_heads": 3}, {"first_heads": 6}, {"second_heads": 7}, {"kernel_steps": 2}]
)
def test_shapes_that_do_not_fit_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(AffectError, match=next(iter(settings))) as refused:
        create("tmsam", {"text": 6, "audio": 5, "vision": 4}, settings)
    assert refused.value.code == "config.value"
