"""What our recurrences need in mixed precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from affectrt_training.models.parts import GatedRecurrence


@contextmanager
def wide_recurrences(model: nn.Module) -> Iterator[None]:
    """Within, recurrences run in the precision of their weights, whatever comes from the layers before.

    Autocast knows nothing of our operator, which wants one type for all its inputs. A recurrence adds up
    rounding step by step, so float32 is what it should have anyway.
    """

    def widen(module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        assert isinstance(module, GatedRecurrence)
        rows, lengths = args
        return rows.to(module.bias[0].dtype), lengths

    found = [module for module in model.modules() if isinstance(module, GatedRecurrence)]
    hooks = [module.register_forward_pre_hook(widen) for module in found]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
