"""GHRNN-CMA against its equations, written once more for one clip without padding."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from affectrt_kernels import reference
from affectrt_training.models.ghrnn_cma import GhrnnCma, GhrnnCmaConfig
from affectrt_training.models.parts import AttentionProjections, Projection

CONFIG = GhrnnCmaConfig(
    text_dim=6, audio_dim=5, vision_dim=4, model_dim=8, heads=2, hidden_dim=7, fused_dim=9, kernel_steps=3
)
LENGTHS = [(4, 9, 5), (0, 9, 5), (7, 0, 3), (4, 2, 0), (0, 0, 0)]
NAMES = {"t": "text", "a": "audio", "v": "vision"}
ABLATIONS: dict[str, dict[str, Any]] = {
    "the paper": {},
    "in another order": {"pairs": ("vt", "at")},
    "at": {"pairs": ("at",)},
    "av": {"pairs": ("av",)},
    "at+av": {"pairs": ("at", "av")},
    "all six": {"pairs": ("at", "vt", "av", "va", "ta", "tv")},
    "GHRNN-a": {"attention": False},
    "GHRNN-a, as eq. 9 has it": {"joint": False},
    "GHRNN-b": {"cell": "lstm"},
    "GHRNN-b, others ask": {"cell": "lstm", "pairs": ("va", "ta", "at")},
    "two gates": {"cell": "gru", "pairs": ("tv", "at")},
}


def rows(projection: Projection, x: Tensor) -> Tensor:
    """(T, D) → (1 + T, d): normalised, convolved with zeros around (eq. 2), the null slot in front."""
    weight, bias = projection.conv.weight, projection.conv.bias
    assert bias is not None
    padded = torch.nn.functional.pad(projection.norm(x), (0, 0, 1, 1))
    convolved = [bias + sum(weight[:, :, i] @ padded[t + i] for i in range(3)) for t in range(x.shape[0])]
    return torch.stack([projection.null, *convolved])


def attend(attention: AttentionProjections, query: Tensor, memory: Tensor) -> Tensor:
    """Eq. 3–4, one head after the other."""
    q, (k, v) = attention.query(query), attention.key_value(memory).chunk(2, -1)
    heads = [
        ((a @ b.T) / a.shape[1] ** 0.5).softmax(-1) @ c
        for a, b, c in zip(*(x.chunk(attention.heads, -1) for x in (q, k, v)), strict=True)
    ]
    attended: Tensor = attention.out(torch.cat(heads, -1))
    return attended


def lstm(cell: Any, rows: Tensor) -> Tensor:
    """The last state, by the equations of torch.nn.LSTM."""
    h, c = torch.zeros(cell.hidden_size), torch.zeros(cell.hidden_size)
    for x in rows:
        i, f, g, o = (
            cell.weight_ih_l0 @ x + cell.bias_ih_l0 + cell.weight_hh_l0 @ h + cell.bias_hh_l0
        ).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return h


def one_clip(model: GhrnnCma, text: Tensor, audio: Tensor, vision: Tensor) -> tuple[Tensor, Tensor]:
    """Timeline by timeline: whoever asks, and by default only the text does."""
    config, given = model.config, {"t": text, "a": audio, "v": vision}
    asked = {
        m: [p for p in ("at", "vt", "tv", "av", "ta", "va") if p in config.pairs and p[1] == m] for m in "tav"
    }
    if not config.attention:
        asked = {m: [] for m in "tav"}
    norms, last, stream = iter(model.norms), [], 0
    projected = {m: rows(getattr(model, NAMES[m]), given[m]) for m in "tav" if hasattr(model, NAMES[m])}
    for m, pairs in asked.items():
        if config.attention and not pairs:
            continue
        c = [projected[m]]
        for answers, asks in pairs:
            c.append(attend(getattr(model, f"{NAMES[asks]}_to_{NAMES[answers]}"), c[0], projected[answers]))
        c = [next(norms)(x) for x in c]
        read = [torch.cat(pair, -1) for pair in combinations(c, 2)] or c  # eq. 9
        if not config.joint:
            read = read[: len(pairs)]
        for x in read:  # eq. 10, 12
            if config.cell == "lstm":
                last.append(lstm(model.lstms[stream], x))
            else:
                weights = [w[stream : stream + 1] for w in (model.w_x, model.w_h, model.bias)]
                gates = 2 if config.cell == "gru" else 1
                last.append(reference.gated_rnn(x[None, None], *weights, gates=gates)[1].flatten())
            stream += 1
    fused = torch.relu(model.fused(torch.cat(last)))  # eq. 11
    return model.sentiment(fused).clamp(-3, 3), model.emotion(fused)


def make_batch(clips: list[list[Tensor]], chosen: list[int], padding: float) -> list[Tensor]:
    given = []
    for m in range(3):
        lengths = torch.tensor([LENGTHS[i][m] for i in chosen])
        padded = torch.full((len(chosen), max(1, int(lengths.max())), clips[0][m].shape[1]), padding)
        for row, i in zip(padded, chosen, strict=True):
            row[: LENGTHS[i][m]] = clips[i][m]
        given += [padded, lengths]
    return given


def make_clips() -> list[list[Tensor]]:
    random = torch.Generator().manual_seed(4)
    return [
        [torch.randn(n, d, generator=random) for n, d in zip(of, (6, 5, 4), strict=True)] for of in LENGTHS
    ]


@torch.no_grad()
@pytest.mark.parametrize("flags", ABLATIONS.values(), ids=ABLATIONS)
def test_the_model_is_its_equations(flags: dict[str, Any]) -> None:
    """Alone and in a batch, with modalities present and absent; padding may hold NaN."""
    torch.manual_seed(4)
    model = GhrnnCma(replace(CONFIG, **flags)).eval()
    clips = make_clips()
    together = model(*make_batch(clips, list(range(len(clips))), math.nan))
    for i, clip in enumerate(clips):
        alone = model(*make_batch(clips, [i], 7.0))
        for a, b, want in zip(together, alone, one_clip(model, *clip), strict=True):
            torch.testing.assert_close(a[i].view(-1), want, rtol=0, atol=1e-5)
            torch.testing.assert_close(b[0].view(-1), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("flags", ABLATIONS.values(), ids=ABLATIONS)
def test_every_parameter_learns_and_padding_never_does(flags: dict[str, Any]) -> None:
    torch.manual_seed(4)
    model = GhrnnCma(replace(CONFIG, dropout=0.0, **flags))
    clips = make_clips()
    given = make_batch(clips, list(range(len(clips))), math.nan)
    for features in given[::2]:
        features.requires_grad_()
    sentiment, logits = model(*given)
    (sentiment.sum() + logits.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    read = "".join(flags.get("pairs", ("at", "vt")))
    for letter, features, lengths in zip("tav", given[::2], given[1::2], strict=True):
        assert (features.grad is not None) == (letter in read)
        if features.grad is not None:
            for gradient, length in zip(features.grad, lengths.tolist(), strict=True):
                assert not gradient[length:].any() and (length == 0 or gradient[:length].any())


def test_weights_of_the_papers_own_model_keep_their_names() -> None:
    """The C++ backend and the starter's weights go by them."""
    shapes = {name: tuple(weight.shape) for name, weight in GhrnnCma(CONFIG).state_dict().items()}
    names = [name for name in shapes if name.count(".") == 0]
    assert names == ["w_x", "w_h", "bias"]
    assert [shapes[name] for name in names] == [(3, 14, 16), (3, 14, 7), (3, 14)]
    modules = dict.fromkeys(name.split(".")[0] for name in shapes if "." in name)
    assert list(modules) == [
        "text", "audio", "vision", "text_to_audio", "text_to_vision", "norms", "fused", "sentiment", "emotion"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"pairs": ()}, "pairs: expected some of at, vt, tv, av, ta, va, each once, got none"),
        ({"pairs": ("at", "at")}, "each once, got at, at"),
        ({"pairs": ("tt",)}, "each once, got tt"),
        ({"heads": 3}, "heads: expected a divisor of model_dim 8, got 3"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(CONFIG, **wrong)
