"""What both Triton operators need around and inside their kernels."""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def multiprocessors(x: Tensor) -> int:
    """Of the GPU that holds ``x``; where there is none to ask 16, as many as a Jetson Orin has."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 16


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Where to launch a kernel on ``x``: Triton takes the current device, wherever its arguments lie."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def options(warps: int, stages: int) -> dict[str, int | bool]:
    """Options of Triton's compiler. Multiply-adds are fused whatever the installed Triton does by default."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


@triton.jit
def dot(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """a b with float32 sums; float32 factors are not rounded to TF32."""
    if INTERPRETED:  # it keeps bfloat16 as bit patterns and would multiply those
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")
