"""The peers against their equations, written once more for one clip without padding, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from affectrt.affect import MODALITIES
from affectrt_training.models.alignment import AlignedRows, FeatureRows, pool_onto
from affectrt_training.models.ef_lstm import EfLstm
from affectrt_training.models.lf_lstm import LfLstm
from affectrt_training.models.lmf import Lmf
from affectrt_training.models.mfn import Mfn, linear_recurrence
from affectrt_training.models.registry import create
from affectrt_training.models.tfn import Pooled, Read, Tfn, TfnConfig

DIMS = (6, 5, 4)
LENGTHS = [(4, 9, 5), (0, 9, 5), (7, 0, 3), (4, 2, 0), (0, 0, 0), (1, 1, 1), (5, 5, 5)]
Clip = Sequence[Tensor]


# --- Parts, for one clip ----------------------------------------------------------------------------


def relu(layer: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = layer(x).relu()
    return result


def lstm(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Rows (T, D) → the last state and the cells of all steps."""
    assert isinstance(module, nn.LSTM)
    w_x, w_h, b_x, b_h = module.all_weights[0]
    h = c = torch.zeros(module.hidden_size)
    cells = []
    for row in x:
        i, f, g, o = (w_x @ row + b_x + w_h @ h + b_h).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        cells.append(c)
    return h, cells


def with_null(rows: nn.Module, x: Tensor) -> Tensor:
    """(T, D) → (1 + T, D)."""
    assert isinstance(rows, FeatureRows)
    return torch.cat([rows.null[None], rows.norm(x)])


def aligned(rows: AlignedRows, clip: Clip) -> Tensor:
    """Three sequences → (1 + n, sum of widths), every new row's share looked for row by row."""
    n = len(clip[0]) or max(len(clip[1]), len(clip[2]))
    columns = []
    for modality, x in zip(rows.modalities, clip, strict=True):
        assert isinstance(modality, FeatureRows)
        column: list[Tensor] = [modality.null]
        for i in range(n):
            t = len(x)
            share = [j for j in range(t) if i * t <= j * n < (i + 1) * t]
            share = share or [int((i + 0.5) * t / n)]
            column.append(modality.norm(x)[share].mean(0) if t else modality.null)
        columns.append(torch.stack(column))
    return torch.cat(columns, dim=-1)


def read_text(subnetwork: Read, x: Tensor) -> Tensor:
    return relu(subnetwork.out, lstm(subnetwork.lstm, with_null(subnetwork.rows, x))[0])


def read_mean(subnetwork: Pooled, x: Tensor) -> Tensor:
    z = with_null(subnetwork.rows, x).mean(0)
    for layer in subnetwork.layers:
        z = layer(z) if not isinstance(layer, nn.Dropout) else z
    return z


# --- The five, for one clip: clip → fused vector ------------------------------------------------------


def ef_lstm(model: EfLstm, clip: Clip) -> Tensor:
    return relu(model.fused, lstm(model.lstm, aligned(model.rows, clip))[0])


def lf_lstm(model: LfLstm, clip: Clip) -> Tensor:
    last = [lstm(m, with_null(r, x))[0] for m, r, x in zip(model.lstms, model.rows, clip, strict=True)]
    return relu(model.fused, torch.cat(last))


def tfn(model: Tfn, clip: Clip) -> Tensor:
    """The tensor built by order: 1, then z's, their products of two, of three."""
    z = (read_text(model.text, clip[0]), read_mean(model.vision, clip[2]), read_mean(model.audio, clip[1]))
    tensor = torch.zeros([len(x) + 1 for x in z])
    for t in range(tensor.shape[0]):
        for v in range(tensor.shape[1]):
            for a in range(tensor.shape[2]):
                factors = [x[i] for x, i in zip(z, (t, v, a), strict=True) if i < len(x)]
                if not factors or len(factors) in model.config.orders:
                    tensor[t, v, a] = torch.stack(factors).prod() if factors else 1.0
    return relu(model.inference[3], relu(model.inference[0], tensor.flatten()))


def lmf(model: Lmf, clip: Clip) -> Tensor:
    """Eq. 4 and 5: the weight tensor recovered from its factors, applied to the outer product."""
    z = [read_text(model.text, clip[0]), read_mean(model.audio, clip[1]), read_mean(model.vision, clip[2])]
    t, a, v = (torch.cat([x, torch.ones(1)]) for x in z)
    weight = torch.einsum("rth,rah,rvh->tavh", *model.factors)
    return torch.einsum("tavh,tav->h", weight, torch.einsum("t,a,v->tav", t, a, v)) + model.bias


def mfn(model: Mfn, clip: Clip) -> Tensor:
    def net(layers: nn.Sequential, x: Tensor) -> Tensor:
        result: Tensor = layers[3](layers[0](x).relu())
        return result

    sequences = torch.split(aligned(model.rows, clip), list(DIMS), dim=-1)
    runs = [lstm(m, x) for m, x in zip(model.lstms, sequences, strict=True)]
    last = [h for h, _ in runs]
    if model.config.memory:
        cells = [torch.cat(c) for c in zip(*(cells for _, cells in runs), strict=True)]
        u, before = torch.zeros(model.config.memory_dim), torch.zeros_like(cells[0])
        for now in cells:
            watched = torch.cat([before, now]) if model.config.delta else now
            seen = net(model.attention, watched).softmax(0) * watched
            kept, let_in = net(model.retain, seen).sigmoid(), net(model.admit, seen).sigmoid()
            u = kept * u + let_in * net(model.update, seen).tanh()
            before = now
        last.append(u)
    return relu(model.fused, torch.cat(last))


SMALL: dict[str, object] = {"text_out_dim": 4, "audio_out_dim": 3, "vision_out_dim": 2}
CASES: dict[str, tuple[str, dict[str, object], Callable[..., Tensor]]] = {
    "ef-lstm": ("ef-lstm", {"hidden_dim": 7}, ef_lstm),
    "lf-lstm": ("lf-lstm", {"text_hidden_dim": 7, "audio_hidden_dim": 3}, lf_lstm),
    "tfn": ("tfn", SMALL, tfn),
    "tfn without trimodal": ("tfn", {**SMALL, "orders": [1, 2]}, tfn),
    "lmf": ("lmf", SMALL, lmf),
    "mfn": ("mfn", {"text_hidden_dim": 7, "memory_dim": 9}, mfn),
    "mfn without delta": ("mfn", {"memory_dim": 9, "delta": False}, mfn),
    "mfn without memory": ("mfn", {"memory": False}, mfn),
}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_the_model_is_its_equations(case: str) -> None:
    torch.manual_seed(4)
    name, settings, one_clip = CASES[case]
    model = create(name, dict(zip(MODALITIES, DIMS, strict=True)), settings).eval()
    for name, parameter in model.named_parameters():
        if "null" in name or "bias" in name:
            parameter.normal_()  # what starts near zero could be wrong unseen
    clips = [[torch.randn(t, d) for t, d in zip(lengths, DIMS, strict=True)] for lengths in LENGTHS]
    given = []
    for m in range(3):
        rows = nn.utils.rnn.pad_sequence([clip[m] for clip in clips], batch_first=True, padding_value=7.0)
        given += [rows, torch.tensor(LENGTHS)[:, m]]
    sentiment, logits = model(*given)
    fused = torch.stack([one_clip(model, clip) for clip in clips])
    torch.testing.assert_close(logits, model.emotion(fused), rtol=0, atol=2e-5)
    torch.testing.assert_close(sentiment, model.sentiment(fused)[:, 0].clamp(-3, 3), rtol=0, atol=2e-5)
    assert fused.std(0).max() > 1e-3, "clips differ"


# --- Alignment and the recurrence ---------------------------------------------------------------------


def test_rows_are_pooled_by_their_share_of_the_time() -> None:
    rows = torch.tensor([0.0, 1, 2, 3, 4, 5, 6])[None, :, None]

    def pooled(old: int, new: int) -> list[float]:
        out = pool_onto(rows, torch.tensor([old]), torch.tensor([new]), new)
        return [round(float(x), 6) for x in out[0, :, 0]]

    assert pooled(7, 7) == [0, 1, 2, 3, 4, 5, 6]
    assert pooled(6, 3) == [0.5, 2.5, 4.5]
    assert pooled(7, 3) == [1.0, 3.5, 5.5]  # shares [0, 2⅓), [2⅓, 4⅔), [4⅔, 7)
    assert pooled(3, 6) == [0, 0, 1, 1, 2, 2]
    assert pooled(3, 5) == [0, 1, 1, 2, 2]  # the shares [1.2, 1.8) and [2.4, 3) hold no row: their middles do
    assert pooled(0, 2) == [0, 0]


def test_the_linear_recurrence_is_its_loop() -> None:
    torch.manual_seed(1)
    for steps in (1, 2, 3, 8, 21):
        decay, drive = torch.rand(2, steps, 3).round(decimals=1), torch.randn(2, steps, 3)
        y, now = linear_recurrence(decay, drive), torch.zeros(2, 3)
        for t in range(steps):
            now = decay[:, t] * now + drive[:, t]
            torch.testing.assert_close(y[:, t], now)


def test_a_tensor_of_no_order_is_refused() -> None:
    with pytest.raises(ValueError, match="expected some of 1, 2 and 3, got \\[4\\]"):
        TfnConfig(orders=(4,))
