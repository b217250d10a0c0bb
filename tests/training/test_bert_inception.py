"""BERT-Inception against its equations one sample at a time, and what unlike lengths must not do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from affectrt_training.encoders.face import BatchNorm2d, Inception2d
from affectrt_training.models.bert_inception import (
    BertInception,
    BertInceptionConfig,
)

SMALL = BertInceptionConfig(
    text_dim=6, audio_dim=5, vision_dim=4, model_dim=8, text_layers=2, heads=2, map_width=6, dropout=0.0
)
DIMS = {"text": 6, "audio": 5, "vision": 4}
LENGTHS = {"text": (3, 1, 0, 5), "audio": (7, 0, 1, 4), "vision": (2, 5, 0, 3)}


def batch(padding: float = 0.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    made: dict[str, Tensor] = {}
    for name, dim in DIMS.items():
        steps = torch.tensor(LENGTHS[name])
        rows = torch.randn(len(steps), 8, dim, generator=generator)
        rows[torch.arange(8) >= steps[:, None]] = padding
        made |= {name: rows[:, : max(1, int(steps.max()))], f"{name}_lengths": steps}
    return made


def alone(whole: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """One sample without any padding but the one row that an absent modality needs."""
    made: dict[str, Tensor] = {}
    for name in DIMS:
        length = whole[f"{name}_lengths"][index : index + 1]
        made |= {name: whole[name][index : index + 1, : max(1, int(length))], f"{name}_lengths": length}
    return made


def trained(config: BertInceptionConfig = SMALL, seed: int = 0) -> BertInception:
    """In evaluation mode, its normalisations no longer the identity."""
    torch.manual_seed(seed)
    model = BertInception(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                assert tensor is not None
                tensor.data.normal_()
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def plain_block(block: Any, x: Tensor) -> Tensor:
    """§3.2.1 for one map (1, C, H, W): three branches side by side, normalised."""

    def norm(bn: nn.BatchNorm2d, y: Tensor) -> Tensor:
        mean, var, weight, bias = (
            t.view(1, -1, 1, 1)
            for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
            if t is not None
        )
        return (y - mean) / (var + bn.eps).sqrt() * weight + bias

    d = block.near[3].weight.shape[-1]
    near = F.conv2d(
        norm(block.near[1], F.conv2d(x, block.near[0].weight)).relu(), block.near[3].weight, padding=d // 2
    )
    wide = norm(block.wide[1], F.conv2d(x, block.wide[0].weight)).relu()
    wide = F.conv2d(F.pad(wide, (d, d - 1, d, d - 1)), block.wide[4].weight)
    reach = block.pooled[0].kernel_size // 2
    pooled = torch.empty_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            around = x[:, :, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
            pooled[:, :, i, j] = around.mean((2, 3))
    y = norm(block.norm, torch.cat([near, wide, F.conv2d(pooled, block.pooled[1].weight)], 1))
    return (x + y if x.shape == y.shape else y).relu()


def plain_attention(attention: Any, x: Tensor) -> Tensor:
    """Eq. 5 for one map (1, C, H, W)."""
    places = x[0].flatten(1)  # (C, N)
    f, g, h = (attention.fgh.weight @ places + attention.fgh.bias.unsqueeze(1)).chunk(3)
    found = torch.zeros_like(h)
    for j in range(places.shape[1]):
        scores = (f.T @ g[:, j]).exp()
        found[:, j] = h @ (scores / scores.sum())
    out = attention.out.weight @ found + attention.out.bias.unsqueeze(1)
    added: Tensor = x + out.view_as(x)
    return added


def plain_map(encoder: Any, rows: Tensor) -> Tensor:
    """Fig. 3 for the rows (T, D) of one sample."""
    projection = encoder.rows
    laid = projection.norm(rows) @ projection.conv.weight[:, :, 0].T + projection.conv.bias
    x = plain_block(encoder.first, torch.cat([projection.null[None], laid])[None, None])
    height = (x.shape[2] + 1) // 2
    halved = [
        x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
        for i in range(height)
        for j in range(x.shape[3] // 2)
    ]
    x = encoder.norm(torch.stack(halved, -1).view(1, x.shape[1], height, -1))
    x = plain_block(encoder.second, plain_attention(encoder.attention, x))
    view: Tensor = encoder.out(x.mean((2, 3)))[0]
    return view


def plain_text(model: Any, rows: Tensor) -> Tensor:
    """Pre-norm self-attention layers over the rows (T, D) of one sample, then eq. 2."""
    laid = model.text.norm(rows) @ model.text.conv.weight[:, :, 0].T + model.text.conv.bias
    x = torch.cat([model.text.null[None], laid])
    for layer in model.text_attention.layers:
        [block] = layer.blocks
        y = block.attention_norm(x)
        q, (k, v) = block.attention.query(y), block.attention.key_value(y).chunk(2, -1)
        heads = [
            (a @ b.T / a.shape[1] ** 0.5).softmax(-1) @ c
            for a, b, c in zip(*(t.chunk(SMALL.heads, -1) for t in (q, k, v)), strict=True)
        ]
        x = x + block.attention.out(torch.cat(heads, -1))
        x = x + block.outer(block.inner(block.forward_norm(x)).relu())
    view: Tensor = model.text_attention.last_norms[0](x).mean(0)
    return view


@torch.no_grad()
def test_each_sample_follows_the_equations() -> None:
    model, whole = trained(), batch(padding=float("nan"))
    fused = model.fuse(**whole)
    for index in range(4):
        t, a, v = (whole[n][index, : int(whole[f"{n}_lengths"][index])] for n in DIMS)
        views = {
            "text": plain_text(model, t),
            "audio": plain_map(model.audio, a),
            "vision": plain_map(model.vision, v),
        }
        for name, view in views.items():
            torch.testing.assert_close(fused.views[name][index], view, atol=1e-5, rtol=1e-4)  # type: ignore[index]
        joint = model.fused(torch.cat(list(views.values()))).relu()
        sentiment = model.sentiment(joint)[0].clamp(-3, 3)
        torch.testing.assert_close(fused.sentiment[index], sentiment, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(fused.emotion_logits[index], model.emotion(joint), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("flags", [{"inception": False}, {"map_attention": False}, {"text_layers": 0}])
def test_flags_change_the_model_and_a_sample_alone_gives_what_it_gives_in_a_batch(
    flags: dict[str, Any],
) -> None:
    model, whole = trained(replace(SMALL, **flags)), batch()
    sentiment, logits = model(**whole)
    assert (logits - trained()(**whole)[1]).abs().max() > 1e-3
    for index in range(4):
        single = model(**alone(whole, index))
        torch.testing.assert_close(single[0][0], sentiment[index], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(single[1][0], logits[index], atol=1e-5, rtol=1e-5)


def test_padding_reaches_neither_gradients_nor_statistics() -> None:
    """In training too: normalisation sees the batch, but never what lies past a length."""
    found = []
    for padding in (0.0, float("nan")):
        torch.manual_seed(1)
        model, whole = BertInception(SMALL), batch(padding=padding)
        rows = [whole[name].requires_grad_() for name in DIMS]
        fused = model.fuse(**whole)
        (fused.sentiment.sum() + fused.emotion_logits.square().sum()).backward()  # type: ignore[no-untyped-call]
        assert all(r.grad is not None for r in rows)
        for name, r in zip(DIMS, rows, strict=True):
            past = torch.arange(r.shape[1]) >= whole[f"{name}_lengths"][:, None]
            assert r.grad is not None and not r.grad[past].any() and r.grad[~past].any()
        found.append({n: p.grad for n, p in model.named_parameters()} | dict(model.named_buffers()))
    assert [n for n, g in found[0].items() if g is None or not g.any()] == []
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], atol=0, rtol=0, msg=name)


def test_statistics_are_of_valid_places_alone() -> None:
    """Maps of unlike heights, cut apart: the normal layer over their places gives the same numbers."""
    torch.manual_seed(0)
    heights, width = (1, 4, 2), 3
    x, valid = torch.randn(3, 5, 4, width) * 2 + 1, torch.zeros(3, 1, 4, 1)
    for index, height in enumerate(heights):
        valid[index, :, :height] = 1
    ours, normal = BatchNorm2d(5), nn.BatchNorm1d(5)
    for module in (ours, normal):
        module.weight.data, module.bias.data = torch.arange(1.0, 6), torch.arange(5.0)
    places = torch.cat([x[i, :, :h].flatten(1).T for i, h in enumerate(heights)])
    for _ in range(2):
        got, expected = ours(x * valid, valid), normal(places)
    got_places = torch.cat([got[i, :, :h].flatten(1).T for i, h in enumerate(heights)])
    torch.testing.assert_close(got_places, expected)
    assert not (got * (1 - valid)).any()
    torch.testing.assert_close(ours.running_mean, normal.running_mean)
    torch.testing.assert_close(ours.running_var, normal.running_var)
    ours.eval(), normal.eval()
    got = ours(x * valid, valid)
    torch.testing.assert_close(
        torch.cat([got[i, :, :h].flatten(1).T for i, h in enumerate(heights)]), normal(places)
    )


def test_blocks_without_lengths_are_blocks_of_whole_maps() -> None:
    torch.manual_seed(0)
    block, x = Inception2d(3, 48, 3), torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(block(x), block(x, torch.ones(2, 1, 5, 1)), atol=1e-5, rtol=1e-5)


def test_views_are_alike_in_width() -> None:
    views = trained().fuse(**batch()).views
    assert {name: view.shape for name, view in views.items()} == dict.fromkeys(DIMS, (4, SMALL.model_dim))


@pytest.mark.parametrize(
    ("field", "value"), [("heads", 3), ("channels", (48, 16)), ("base_width", 2), ("map_width", 1)]
)
def test_shapes_that_make_no_sense_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        replace(SMALL, **{field: value})
