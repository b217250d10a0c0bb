"""GHRNN-CMA against its equations, written once more for one clip without padding."""

from __future__ import annotations

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


def one_clip(model: GhrnnCma, text: Tensor, audio: Tensor, vision: Tensor) -> tuple[Tensor, Tensor]:
    t, a, v = rows(model.text, text), rows(model.audio, audio), rows(model.vision, vision)
    c = [t, attend(model.text_to_audio, t, a), attend(model.text_to_vision, t, v)]
    t, at, vt = (norm(x) for norm, x in zip(model.norms, c, strict=True))
    pairs = torch.stack([torch.cat(pair, -1) for pair in ((t, at), (t, vt), (at, vt))])  # eq. 9
    _, last = reference.gated_rnn(pairs[:, None], model.w_x, model.w_h, model.bias)  # eq. 10, 12
    fused = torch.relu(model.fused(last.flatten()))  # eq. 11
    return model.sentiment(fused).clamp(-3, 3), model.emotion(fused)


@torch.no_grad()
@pytest.mark.parametrize("together", [False, True])
def test_the_model_is_its_equations(together: bool) -> None:
    torch.manual_seed(4)
    model = GhrnnCma(CONFIG).eval()
    clips = [
        [torch.randn(length, dim) for length, dim in zip(lengths, (6, 5, 4), strict=True)]
        for lengths in LENGTHS
    ]
    for chosen in [list(range(len(clips)))] if together else [[i] for i in range(len(clips))]:
        given = []
        for m in range(3):
            lengths = torch.tensor([LENGTHS[i][m] for i in chosen])
            padded = torch.full((len(chosen), max(1, int(lengths.max())), clips[0][m].shape[1]), 7.0)
            for row, i in zip(padded, chosen, strict=True):
                row[: LENGTHS[i][m]] = clips[i][m]
            given += [padded, lengths]
        sentiment, logits = model(*given)
        for place, i in enumerate(chosen):
            want = one_clip(model, *clips[i])
            torch.testing.assert_close(sentiment[place : place + 1], want[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(logits[place], want[1], rtol=0, atol=1e-5)
