"""``nn.LSTM`` as an operator of ours, so that a graph holds one ``LSTM`` node and any number of steps.

Left to itself, ``torch.export`` unrolls an LSTM over the steps of its example and fixes their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from affectrt.errors import AffectError


@torch.library.custom_op("affectrt_export::lstm", mutates_args=())
def lstm(x: Tensor, w_x: Tensor, w_h: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """One layer, one direction: (B, T, I) → states (B, T, H). Weights as PyTorch has them, biases summed."""
    start = x.new_zeros(1, x.shape[0], w_h.shape[1])
    weights = [w_x, w_h, bias, torch.zeros_like(bias)]
    rows = x.flip(1) if reverse else x
    states: Tensor = torch.lstm(rows, (start, start), weights, True, 1, 0.0, False, False, True)[0]
    return (states.flip(1) if reverse else states).contiguous()


@lstm.register_fake
def _(x: Tensor, w_x: Tensor, w_h: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], w_h.shape[1])


class _Exported(nn.LSTM):
    """Computes what it computed before, through the operator; without last states, which nobody may read."""

    def forward(self, x: Tensor, hx: None = None) -> tuple[Tensor, None]:  # type: ignore[override]
        directions = 2 if self.bidirectional else 1
        for layer in range(self.num_layers):
            found = []
            for direction in range(directions):
                w_x, w_h, *biases = self.all_weights[layer * directions + direction]
                bias = biases[0] + biases[1] if biases else w_h.new_zeros(w_h.shape[0])
                found.append(lstm(x, w_x, w_h, bias, direction == 1))
            x = torch.cat(found, dim=-1) if directions == 2 else found[0]
        return x, None


@contextmanager
def through_operator(module: nn.Module) -> Iterator[None]:
    """While it lasts, every ``nn.LSTM`` in a module runs as the operator. Raises ``export.lstm``."""
    found: list[Any] = [(name, part) for name, part in module.named_modules() if type(part) is nn.LSTM]
    for name, part in found:
        if not part.batch_first or part.proj_size:
            raise AffectError(
                "export.lstm",
                f"{name}: expected an nn.LSTM with batch_first and without projection, got {part}; "
                f"affectrt_export.lstm knows no other",
            )
    try:
        for _, part in found:
            part.__class__ = _Exported
        yield
    finally:
        for _, part in found:
            part.__class__ = nn.LSTM
