"""INPNRLN-MD against its equations, written once more for one clip without padding."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from affectrt_training.models.inpnrln_md import ExpressionAttention, InpnrlnMd, InpnrlnMdConfig
from affectrt_training.models.parts import Projection

TextState = Literal["mean", "first"]
CONFIG = InpnrlnMdConfig(text_dim=6, audio_dim=5, vision_dim=4, model_dim=8, heads=2, fused_dim=9)
LENGTHS = [(4, 9, 5), (0, 9, 5), (7, 0, 3), (4, 2, 0), (0, 0, 0)]


def make_model(config: InpnrlnMdConfig = CONFIG) -> InpnrlnMd:
    torch.manual_seed(5)
    return InpnrlnMd(config).eval()


def make_batch(padding: float, rows: list[tuple[int, int, int]]) -> list[Tensor]:
    """Arguments of the model; a clip has the same features in whatever batch it is."""
    given = []
    for m, dim in enumerate((6, 5, 4)):
        lengths = torch.tensor([of[m] for of in rows])
        padded = torch.full((len(rows), max(1, int(lengths.max())), dim), padding)
        for row, of in zip(padded, rows, strict=True):
            generator = torch.Generator().manual_seed(10 * LENGTHS.index(of) + m)
            row[: of[m]] = torch.randn(of[m], dim, generator=generator)
        given += [padded, lengths]
    return given


def project(projection: Projection, x: Tensor) -> list[Tensor]:
    """Eq. 2 of rows (T, D) as a list, with zeros around; the null slot first."""
    weight, bias = projection.conv.weight, projection.conv.bias
    assert bias is not None
    reach = weight.shape[2] // 2
    padded = torch.nn.functional.pad(projection.norm(x), (0, 0, reach, reach))
    return [
        projection.null,
        *(bias + sum(weight[:, :, i] @ padded[t + i] for i in range(weight.shape[2])) for t in range(len(x))),
    ]


def express(module: ExpressionAttention, rows: list[Tensor]) -> Tensor:
    """Eq. 3–4 head by head, then the weighted mean."""
    for place, row in enumerate(rows):
        angles = [place / 10_000 ** (2 * i / 8) for i in range(4)]
        rows[place] = row + torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
    x = torch.stack(rows)
    q, (k, v) = module.projections.query(x), module.projections.key_value(x).chunk(2, -1)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        heads.append((q[:, part] @ k[:, part].T / math.sqrt(4)).softmax(-1) @ v[:, part])
    states = layer_norm(
        x + module.projections.out(torch.cat(heads, -1)), (8,), module.norm.weight, module.norm.bias
    )
    return torch.softmax(module.weight(states)[:, 0], 0) @ states


def one_clip(model: InpnrlnMd, text: Tensor, audio: Tensor, vision: Tensor) -> tuple[Tensor, Tensor]:
    rows = project(model.text, text)
    mean = model.config.text_state == "mean"
    c_t = torch.stack(rows).mean(0) if mean else rows[min(1, len(text))]
    c_a = express(model.express_audio, project(model.audio, audio))
    c_v = express(model.express_vision, project(model.vision, vision))
    c_z = torch.cat([torch.outer(c_a, c_t).flatten(), torch.outer(c_v, c_t).flatten()])  # eq. 6
    fused = torch.relu(model.project(c_z))  # eq. 7
    return model.sentiment(fused).clamp(-3, 3), model.emotion(fused)


@torch.no_grad()
@pytest.mark.parametrize("text_state", ["mean", "first"])
def test_the_model_is_its_equations(text_state: TextState) -> None:
    """Alone and in a batch, with modalities present and absent; padding may hold NaN."""
    model = make_model(replace(CONFIG, text_state=text_state))
    together = model(*make_batch(math.nan, LENGTHS))
    for place, lengths in enumerate(LENGTHS):
        given = make_batch(7.0, [lengths])
        want = one_clip(model, *(rows[0, :length] for rows, length in zip(given[::2], lengths, strict=True)))
        alone = model(*given)
        for got in ((x[0] for x in alone), (x[place] for x in together)):
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a.view(-1), b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("text_state", ["mean", "first"])
def test_every_parameter_learns_and_padding_never_does(text_state: TextState) -> None:
    model = make_model(replace(CONFIG, text_state=text_state)).train()
    given = make_batch(math.nan, LENGTHS)
    for features in given[::2]:
        features.requires_grad_()
    sentiment, logits = model(*given)
    (sentiment.sum() + logits.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    for features, lengths in zip(given[::2], given[1::2], strict=True):
        assert features.grad is not None
        for gradient, length in zip(features.grad, lengths.tolist(), strict=True):
            assert not gradient[length:].any()
            assert text_state == "first" or length == 0 or gradient[:length].any()


@torch.no_grad()
def test_views_are_of_each_modality_alone() -> None:
    """A change in one modality moves its own view and no other."""
    model = make_model()
    given = make_batch(0.0, LENGTHS[:1])
    before = model.fuse(*given).views
    assert list(before) == ["text", "audio", "vision"]
    for m, modality in enumerate(before):
        changed = [x * -2 + 1 if i == 2 * m else x for i, x in enumerate(given)]
        after = model.fuse(*changed).views
        assert before[modality].shape == (1, 8)
        assert [other for other in after if not torch.equal(after[other], before[other])] == [modality]


@pytest.mark.parametrize(("dim", "heads"), [(9, 3), (8, 3)])
def test_widths_that_do_not_divide(dim: int, heads: int) -> None:
    with pytest.raises(
        ValueError, match=rf"model_dim: expected an even multiple of heads \({heads}\), got {dim}"
    ):
        InpnrlnMdConfig(model_dim=dim, heads=heads)
