"""What a fusion model costs: its parameters, and the arithmetic of one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# The operators' registration, so that torch.ops knows them.
import affectrt_kernels.attention_ops
import affectrt_kernels.ops  # noqa: F401
from affectrt.affect import MODALITIES, Modality
from affectrt_training.models.fusion import FusionModel

Shape = Sequence[int]


def parameters(model: nn.Module) -> int:
    """How many numbers training may change."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def forward_flops(model: FusionModel, lengths: Mapping[Modality, int]) -> int:
    """Floating-point operations of one forward pass over one clip with so many rows a modality.

    Counted are the multiplications and additions, two for each pair, of matrix products, convolutions, the
    recurrences and attention, as the operators are really called; not what is done to single elements
    (biases, activations, normalisation, softmax, gating), which is little beside them. The
    counter of torch does it, with formulas for what it doesn't know: both operators of ours, and the LSTM of
    oneDNN that torch runs on CPUs, which is why the model has to be on one. 0 rows: absent, one padded row.
    """
    inputs: list[torch.Tensor] = []
    for modality in MODALITIES:
        width = getattr(model.config, f"{modality}_dim")
        inputs += [torch.zeros(1, max(1, lengths[modality]), width), torch.tensor([lengths[modality]])]
    training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        model(*inputs)
    model.train(training)
    total: int = counter.get_total_flops()
    return total


def _gated_rnn(x: Shape, w_x: Shape, w_h: Shape, *_: object, **__: object) -> int:
    """x (S, B, T, I), w_x (S, G·H, I), w_h (S, G·H, H): both products at every step of every row."""
    streams, batch, steps, width = x
    return 2 * streams * batch * steps * w_x[1] * (width + w_h[2])


def _pairwise_attention(
    q: Sequence[Shape], k: Sequence[Shape], v: Sequence[Shape], *_: object, **__: object
) -> int:
    """Per pair (B, 1 + T, N, D): the scores of every query with every key, then the sum of values."""
    return sum(2 * 2 * prod(query) * key[1] for query, key in zip(q, k, strict=True))


def _mkldnn_lstm(x: Shape, w_x: Shape, w_h: Shape, *_: object, **__: object) -> int:
    """One layer in one direction: x (T, B, I), w_x (4·H, I), w_h (4·H, H)."""
    return 2 * x[0] * x[1] * (prod(w_x) + prod(w_h))


_FORMULAS: dict[Any, Any] = {
    torch.ops.affectrt.gated_rnn: _gated_rnn,
    torch.ops.affectrt.pairwise_attention: _pairwise_attention,
    torch.ops.aten.mkldnn_rnn_layer: _mkldnn_lstm,
}
