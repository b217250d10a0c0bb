"""``affectrt::gated_rnn``: the recurrence as one operator that trains, compiles and exports.

Forward runs in C++ on the CPU; backward is back-propagation through time written out, where only the two
products with W_h that each step needs stay in the loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from affectrt_kernels import native, reference


def gated_rnn(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    lengths: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    gates: int = 1,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """``reference.gated_rnn`` as a differentiable operator; arguments and results are described there.

    Half-precision inputs are computed in float32 and rounded at the end. Second derivatives are not defined.
    """
    y, h_n = torch.ops.affectrt.gated_rnn(x, w_x, w_h, bias, lengths, h0, gates=gates, reverse=reverse)
    return y, h_n


@torch.library.custom_op("affectrt::gated_rnn", mutates_args=())
def _forward(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    lengths: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    gates: int = 1,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    reference.check_shapes(x, w_x, w_h, bias, lengths, h0, gates)
    dtype = x.dtype
    x, w_x, w_h, bias, h0 = _widened(x, w_x, w_h, bias, h0)
    if x.device.type == "cpu" and x.dtype == torch.float32:
        outputs = native.gated_rnn(
            _numpy(x),
            _numpy(w_x),
            _numpy(w_h),
            _numpy(bias),
            None if lengths is None else _numpy(lengths),
            None if h0 is None else _numpy(h0),
            gates=gates,
            reverse=reverse,
            threads=torch.get_num_threads(),
        )
        y, h_n = (torch.from_numpy(output) for output in outputs)
    else:
        y, h_n = reference.gated_rnn(x, w_x, w_h, bias, lengths, h0, gates=gates, reverse=reverse)
    return y.to(dtype), h_n.to(dtype)


@_forward.register_fake
def _forward_fake(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    lengths: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    gates: int = 1,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    reference.check_shapes(x, w_x, w_h, bias, lengths, h0, gates)
    streams, batch, steps, _ = x.shape
    hidden = w_h.shape[2]
    return x.new_empty(streams, batch, steps, hidden), x.new_empty(streams, batch, hidden)


@torch.library.custom_op("affectrt::gated_rnn_backward", mutates_args=())
def _backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w_x, w_h, bias and h0 (the last also when ``h0`` is None).

    The states are in ``y``, so the gates of all steps come from two large products instead of a second pass.
    Where a row is over, x, dy and z count as 0: then every term below vanishes there and dh passes through.
    """
    dtype = x.dtype
    x, w_x, w_h, bias, h0, y, dy, dh = _widened(x, w_x, w_h, bias, h0, y, dy, dh_n)
    streams, batch, steps, inputs = x.shape
    hidden = w_h.shape[2]
    cut = gates * hidden
    over = None
    if lengths is not None:
        over = (torch.arange(steps, device=x.device) >= lengths[:, None])[..., None]  # (B, T, 1)
        x, dy = x.masked_fill(over, 0.0), dy.masked_fill(over, 0.0)

    # Pre-activations, then gates, of all steps: rows are (B, T) flattened.
    flat_x = x.reshape(streams, batch * steps, inputs)
    before = _states_before(y, lengths, h0, reverse)
    flat_before = before.reshape(streams, batch * steps, hidden)
    sums = torch.baddbmm(bias[:, None], flat_x, w_x.mT)
    gate = torch.baddbmm(sums[..., :cut], flat_before, w_h[:, :cut].mT).sigmoid_()
    z, r = gate[..., :hidden], gate[..., cut - hidden :]
    reset_before = r * flat_before
    g = torch.baddbmm(sums[..., cut:], reset_before, w_h[:, cut:].mT).tanh_()
    if over is not None:
        z = z.view(streams, batch, steps, hidden).masked_fill(over, 0.0).view_as(g)

    # With dh the gradient of h_t and dq that of r ∘ h_{t-1}: what each is multiplied by, for all steps at once.
    def by_step(rows: Tensor) -> Tensor:
        return rows.view(streams, batch, steps, hidden).permute(2, 0, 1, 3).contiguous()

    z_slope = z * (1 - z)
    to_candidate = by_step(z * (1 - g * g))
    to_z = by_step((g - flat_before) * z_slope)
    to_reset = by_step(flat_before * (z_slope if gates == 1 else r * (1 - r)))
    keep = by_step(1 - z)
    reset_gate = by_step(r)
    w_gates, w_candidate = w_h[:, :cut], w_h[:, cut:]

    dsums = x.new_empty(streams, batch, steps, cut + hidden)
    for t in range(steps) if reverse else reversed(range(steps)):
        dh = dh + dy[:, :, t]
        dcandidate = dh * to_candidate[t]
        dq = torch.bmm(dcandidate, w_candidate)
        dgate = dh * to_z[t]
        if gates == 1:
            dgate = dgate.addcmul_(dq, to_reset[t])
        else:
            dgate = torch.cat((dgate, dq * to_reset[t]), dim=-1)
        dh = torch.baddbmm((dh * keep[t]).addcmul_(dq, reset_gate[t]), dgate, w_gates)
        dsums[:, :, t, :cut] = dgate
        dsums[:, :, t, cut:] = dcandidate

    flat = dsums.view(streams, batch * steps, cut + hidden)
    dx = torch.bmm(flat, w_x).view_as(x)
    dw_x = torch.bmm(flat.mT, flat_x)
    dw_h = torch.cat(
        (torch.bmm(flat[..., :cut].mT, flat_before), torch.bmm(flat[..., cut:].mT, reset_before)), dim=1
    )
    gradients = (dx, dw_x, dw_h, flat.sum(1), dh.clone())
    dx, dw_x, dw_h, dbias, dh0 = (gradient.to(dtype) for gradient in gradients)
    return dx, dw_x, dw_h, dbias, dh0


@_backward.register_fake
def _backward_fake(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, dw_x, dw_h, dbias, dh0 = (x.new_empty(like.shape) for like in (x, w_x, w_h, bias, dh_n))
    return dx, dw_x, dw_h, dbias, dh0


def _states_before(y: Tensor, lengths: Tensor | None, h0: Tensor | None, reverse: bool) -> Tensor:
    """h_{t-1} of every step in the direction walked, (S, B, T, H), from the states after every step."""
    streams, batch, steps, hidden = y.shape
    before = torch.empty_like(y)
    if steps == 0:
        return before
    first = y.new_zeros(streams, batch, hidden) if h0 is None else h0
    if not reverse:
        before[:, :, 0] = first
        before[:, :, 1:] = y[:, :, :-1]
        return before
    before[:, :, -1] = first
    before[:, :, :-1] = y[:, :, 1:]
    if lengths is not None:
        rows = torch.arange(batch, device=y.device)
        # A row of length 0 has no first step; its last step is masked later, so it may hold anything finite.
        before[:, rows, lengths - 1] = first
    return before


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: tuple[Tensor, Tensor]
) -> None:
    x, w_x, w_h, bias, lengths, h0 = inputs
    ctx.save_for_backward(x, w_x, w_h, bias, lengths, h0, output[0])
    ctx.gates, ctx.reverse = keyword_only_inputs["gates"], keyword_only_inputs["reverse"]


def _apply_backward(ctx: Any, dy: Tensor, dh_n: Tensor) -> tuple[Tensor | None, ...]:
    x, w_x, w_h, bias, lengths, h0, y = ctx.saved_tensors
    dx, dw_x, dw_h, dbias, dh0 = torch.ops.affectrt.gated_rnn_backward(
        dy, dh_n, x, w_x, w_h, bias, lengths, h0, y, gates=ctx.gates, reverse=ctx.reverse
    )
    return dx, dw_x, dw_h, dbias, None, None if h0 is None else dh0


_forward.register_autograd(_apply_backward, setup_context=_setup_context)


def _widened(*tensors: Tensor | None) -> Any:
    """The tensors in at least float32: half precision would lose the state over many steps."""
    return tuple(
        tensor.float() if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for tensor in tensors
    )


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()
