"""One process's tensors become all processes', with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


class _Gather(torch.autograd.Function):
    """(…) of each process → (world, …) on all. The gradient is the sum of what the processes ask of it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, tensor)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous()
        distributed.all_reduce(total)
        return total[distributed.get_rank()]


def gathered(tensor: Tensor, world: int) -> Tensor:
    """(B / world, …) of each of ``world`` processes → (B, …) on all, in the order they were dealt out in."""
    if world == 1:
        return tensor
    together: Tensor = _Gather.apply(tensor.contiguous())  # type: ignore[no-untyped-call]
    return together.transpose(0, 1).flatten(0, 1)
