"""``gated_rnn`` on an NVIDIA GPU: the kernels of ``triton_recurrence`` between matrix products of torch.

No value of a tensor is waited for on the host, so both functions can be captured in a CUDA graph, and there
are no atomic additions: the same inputs give the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from affectrt_kernels import triton_recurrence
from affectrt_kernels.triton_numerics import HALF, multiprocessors, on_device_of, options


class Plan(NamedTuple):
    """How a kernel of ``triton_recurrence``, which explains the words, is compiled and launched."""

    padded: int
    """H rounded up to a power of two."""
    rows: int
    lanes: int
    block: int
    warps: int

    def constants(self, hidden: int, gates: int, reverse: bool) -> dict[str, int | bool]:
        """The kernels' compile-time arguments."""
        return {
            "GATES": gates,
            "REVERSE": reverse,
            "H": hidden,
            "HP": self.padded,
            "ROWS": self.rows,
            "LANES": self.lanes,
            "BLOCK": self.block,
        }

    def options(self) -> dict[str, int | bool]:
        """For Triton's compiler."""
        return options(self.warps, stages=1)


def tiles_fit(hidden: int, dtype: torch.dtype, gates: int) -> bool:
    """Whether W_h and the states of 16 rows fit the 99 KiB of shared memory that every GPU here has a block.

    Float32 has no such path: its products would run on the ordinary cores all the same.
    """
    return dtype in HALF and triton.next_power_of_2(hidden) <= (128 if gates == 1 else 64)


def plan(hidden: int, gates: int, *, tiled: bool) -> Plan:
    """The static table; ``aot`` shows that one-gate kernels up to H = 128 spill no register with it."""
    padded = max(16, triton.next_power_of_2(hidden))
    if tiled:
        return Plan(padded, rows=16, lanes=1, block=padded, warps=4 if padded <= 32 else 8)
    if padded > 128:
        return Plan(padded, rows=1, lanes=8, block=32768 // padded, warps=16)
    lanes = 4 if padded == 64 or (padded == 128 and gates == 1) else 2
    return Plan(padded, rows=1, lanes=lanes, block=padded, warps=padded // 16)


def choose(x: Tensor, hidden: int, gates: int, tiled: bool | None) -> Plan:
    """Rows go one to a program as long as all programs run at once; sixteen share one when more wait."""
    if tiled is None:
        at_once = multiprocessors(x) * (4 if hidden <= 64 else 1)
        tiled = tiles_fit(hidden, x.dtype, gates) and x.shape[0] * x.shape[1] > at_once
    return plan(hidden, gates, tiled=tiled)


def forward(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    lengths: Tensor | None,
    h0: Tensor | None,
    *,
    gates: int,
    reverse: bool,
    tiled: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """``reference.gated_rnn`` for float32, float16 and bfloat16, with float32 sums and state.

    ``tiled`` chooses between one row and 16 rows to a program; None: by how many rows there are.
    Shapes and lengths are taken as checked.
    """
    streams, batch, steps, _ = x.shape
    hidden = w_h.shape[2]
    y = x.new_empty(streams, batch, steps, hidden)
    h_n = x.new_empty(streams, batch, hidden)
    if h_n.numel() == 0:
        return y, h_n
    chosen = choose(x, hidden, gates, tiled)
    # In float32 also for half precision: rounding the sums would cost more than rounding x did.
    sums = torch.baddbmm(bias.float()[:, None], _by_row(x).float(), w_x.float().mT)
    with on_device_of(x):
        triton_recurrence.forward[(triton.cdiv(batch, chosen.rows), streams)](
            sums,
            w_h.contiguous(),
            None if lengths is None else lengths.contiguous(),
            None if h0 is None else h0.contiguous(),
            batch,
            steps,
            y,
            h_n,
            **chosen.constants(hidden, gates, reverse),
            **chosen.options(),
        )
    return y, h_n


def backward(
    dy: Tensor,
    dh_n: Tensor,
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    lengths: Tensor | None,
    h0: Tensor | None,
    y: Tensor,
    *,
    gates: int,
    reverse: bool,
    tiled: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w_x, w_h, bias and h0 (the last also when ``h0`` is None), in the type of x.

    The gates of all steps follow from the states in ``y`` in two products; only the walk back through W_h is
    sequential.
    """
    streams, batch, steps, inputs = x.shape
    hidden = w_h.shape[2]
    cut = gates * hidden
    dtype = x.dtype
    chosen = choose(x, hidden, gates, tiled)
    wide_x, wide_h = w_x.float(), w_h.float()
    before = _states_before(y, lengths, h0, reverse)
    x = _by_row(x).float()
    if lengths is not None:
        beyond = torch.arange(steps, device=x.device) >= lengths[:, None]
        x = x.masked_fill(beyond.view(-1, 1), 0.0)

    sums = torch.baddbmm(bias.float()[:, None], x, wide_x.mT)
    sums[..., :cut].baddbmm_(before, wide_h[:, :cut].mT).sigmoid_()
    reset_before = sums[..., cut - hidden : cut] * before
    sums[..., cut:].baddbmm_(reset_before, wide_h[:, cut:].mT).tanh_()

    dh0 = torch.empty(streams, batch, hidden, device=x.device)
    if dh0.numel():
        with on_device_of(x):
            triton_recurrence.backward[(triton.cdiv(batch, chosen.rows), streams)](
                w_h.reshape(streams, gates + 1, hidden, hidden).mT.contiguous(),
                None if lengths is None else lengths.contiguous(),
                before,
                dy.contiguous(),
                dh_n.contiguous(),
                batch,
                steps,
                sums,
                dh0,
                **chosen.constants(hidden, gates, reverse),
                **chosen.options(),
            )
    dx = torch.bmm(sums, wide_x).view(streams, batch, steps, inputs)
    dw_x = torch.bmm(sums.mT, x)
    dw_h = torch.cat(
        (torch.bmm(sums[..., :cut].mT, before), torch.bmm(sums[..., cut:].mT, reset_before)), dim=1
    )
    return dx.to(dtype), dw_x.to(dtype), dw_h.to(dtype), sums.sum(1).to(dtype), dh0.to(dtype)


def _states_before(y: Tensor, lengths: Tensor | None, h0: Tensor | None, reverse: bool) -> Tensor:
    """(S, B·T, H) float32: the state that each step starts from, anything finite beyond a length."""
    start = y.new_zeros(*y.shape[:2], 1, y.shape[3]) if h0 is None else h0[:, :, None]
    if not reverse:
        before = torch.cat((start, y), dim=2)[:, :, :-1]
    else:
        before = torch.cat((y, start), dim=2)[:, :, 1:]
        if lengths is not None:
            last = torch.arange(y.shape[2], device=y.device) == lengths[:, None] - 1
            before = torch.where(last[..., None], start, before)
    return _by_row(before.float().contiguous())


def _by_row(tensor: Tensor) -> Tensor:
    """(S, B, T, N) with its rows and steps flattened into one."""
    return tensor.reshape(tensor.shape[0], tensor.shape[1] * tensor.shape[2], tensor.shape[3])
