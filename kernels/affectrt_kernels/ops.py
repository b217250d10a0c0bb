"""``affectrt::gated_rnn``: the recurrence as one operator that trains, compiles and exports.

Forward runs in C++ on the CPU and in Triton on NVIDIA GPUs. Backward is back-propagation through time written
out, where only the two products with W_h that each step needs stay in the loop.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from affectrt_kernels import checks, native, reference


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
    checks.gated_rnn(x, w_x, w_h, bias, lengths, h0, gates)
    dtype = x.dtype
    if x.device.type == "cuda" and dtype != torch.float64:
        forward = triton_kernels("triton_gated_rnn").forward
        y, h_n = forward(x, w_x, w_h, bias, lengths, h0, gates=gates, reverse=reverse)
        return y, h_n
    x, w_x, w_h, bias, h0 = widened(x, w_x, w_h, bias, h0)
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
    return y.to(dtype), h_n.to(dtype).contiguous()


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
    checks.gated_rnn(x, w_x, w_h, bias, lengths, h0, gates)
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

    Works on packed rows: only valid steps, those of the first step walked first, and within a step the
    rows still running, longest first. So a step is one slice, and padding is neither read nor multiplied.
    The states are in ``y``; the gates of all steps follow from them in two products, without a second pass.
    """
    dtype = x.dtype
    if x.device.type == "cuda" and dtype != torch.float64:
        backward = triton_kernels("triton_gated_rnn").backward
        dx, dw_x, dw_h, dbias, dh0 = backward(
            dy, dh_n, x, w_x, w_h, bias, lengths, h0, y, gates=gates, reverse=reverse
        )
        return dx, dw_x, dw_h, dbias, dh0
    x, w_x, w_h, bias, h0, y, dy, dh_n = widened(x, w_x, w_h, bias, h0, y, dy, dh_n)
    streams, batch, steps, inputs = x.shape
    hidden = w_h.shape[2]
    cut = gates * hidden
    w_gates, w_candidate = w_h[:, :cut], w_h[:, cut:]

    order, index, counts = _packed_rows(lengths, batch, steps, reverse, x.device)
    first = counts[0] if counts else 0
    packed_x = _by_row(x).index_select(1, index)
    before = x.new_empty(streams, len(index), hidden)  # h_{t-1}
    before[:, :first] = 0.0 if h0 is None else h0[:, order[:first]]
    before[:, first:] = _by_row(y).index_select(1, index[first:] + (1 if reverse else -1))

    sums = torch.baddbmm(bias[:, None], packed_x, w_x.mT)
    sums[..., :cut].baddbmm_(before, w_gates.mT).sigmoid_()
    reset_before = sums[..., cut - hidden : cut] * before
    sums[..., cut:].baddbmm_(reset_before, w_candidate.mT).tanh_()

    # From the last step walked to the first, the activations in `sums` give way to the gradients of the sums.
    packed_dy = _by_row(dy).index_select(1, index)
    dh = dh_n[:, order]
    stop = len(index)
    for count in reversed(counts):
        start = stop - count
        here = sums[:, start:stop]
        z, r, g = here[..., :hidden], here[..., cut - hidden : cut], here[..., cut:]
        h = before[:, start:stop]
        dh_now = dh[:, :count] + packed_dy[:, start:stop]
        dg = dh_now * z
        dcandidate = dg.addcmul(dg * g, g, value=-1)
        dreset = torch.bmm(dcandidate, w_candidate)  # of r ∘ h
        dz = dh_now * (g - h)
        dh_before = (dh_now - dg).addcmul_(dreset, r)
        if gates == 1:
            dz.addcmul_(dreset, h)
        else:
            here[..., hidden:cut] = dreset * h * r * (1 - r)
        here[..., :hidden] = dz * z * (1 - z)
        here[..., cut:] = dcandidate
        dh[:, :count] = dh_before.baddbmm_(here[..., :cut], w_gates)
        stop = start

    dx = x.new_zeros(streams, batch * steps, inputs)
    dx.index_copy_(1, index, torch.bmm(sums, w_x))
    dw_x = torch.bmm(sums.mT, packed_x)
    dw_h = torch.cat(
        (torch.bmm(sums[..., :cut].mT, before), torch.bmm(sums[..., cut:].mT, reset_before)), dim=1
    )
    dh0 = torch.empty_like(dh)
    dh0[:, order] = dh
    dx, dw_x, dw_h, dbias, dh0 = (part.to(dtype) for part in (dx.view_as(x), dw_x, dw_h, sums.sum(1), dh0))
    return dx, dw_x, dw_h, dbias, dh0


def _packed_rows(
    lengths: Tensor | None, batch: int, steps: int, reverse: bool, device: torch.device
) -> tuple[Tensor, Tensor, list[int]]:
    """Where the valid steps lie, in the order walked.

    Returns the rows longest first (B,), the place of every valid step in the flattened (B, T), and how many
    rows run at each step.
    """
    if lengths is None:
        lengths = torch.full((batch,), steps, device=device)
    lengths, order = lengths.sort(descending=True, stable=True)
    runs = torch.arange(steps, device=device)[:, None] < lengths  # (T, B)
    step, place = runs.nonzero(as_tuple=True)
    t = lengths[place] - 1 - step if reverse else step
    counts = [count for count in runs.sum(1).tolist() if count]
    return order, order[place] * steps + t, counts


def _by_row(tensor: Tensor) -> Tensor:
    """(S, B, T, N) with its rows and steps flattened into one."""
    return tensor.reshape(tensor.shape[0], tensor.shape[1] * tensor.shape[2], tensor.shape[3])


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


def triton_kernels(module: str) -> Any:
    """A module of GPU kernels, imported when the first tensor needs it: Triton is no dependency on a CPU.

    Raises:
        ImportError: Triton is missing. There is no silent fallback to something a hundred times slower.
    """
    try:
        import_module("triton")
    except ImportError as error:
        raise ImportError(
            f"tensors on an NVIDIA GPU need Triton, which can't be imported ({error}); "
            "install it with: pip install affectrt[kernels], or use float64, which runs the reference"
        ) from error
    return import_module(f"affectrt_kernels.{module}")


def widened(*tensors: Tensor | None) -> Any:
    """The tensors in at least float32: half precision would lose the state over many steps."""
    return tuple(
        tensor.float() if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for tensor in tensors
    )


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()
