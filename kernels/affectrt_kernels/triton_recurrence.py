"""The sequential part of ``gated_rnn`` on a GPU: one kernel forwards, one backwards.

What does not depend on the state (the products with x, every gradient of a weight) is left to matrix products
outside, see ``triton_gated_rnn``; here W_h stays on chip for all steps, as in FlashRNN (arXiv:2412.07752),
wherever it fits, and the state is float32 in registers whatever the type of the tensors.

One program walks ``ROWS`` rows of one stream. With one row the products are sums on the ordinary cores and
the weights live in registers, ``LANES`` threads to a row of W; with 16 they are ``tl.dot`` on tensor cores.
``HP`` is H rounded up to a power of two. Where ``BLOCK`` is less than it, W does not fit: that many of its
rows at a time are read anew at every step.

Arguments come as pointers read, integers, pointers written, constants: a TensorRT plugin needs that order.
"""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from affectrt_kernels.triton_numerics import dot


@triton.jit
def _weights(
    w: tl.tensor,
    first: tl.tensor,
    H: tl.constexpr,
    HP: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """``BLOCK`` rows of W from ``first`` on, (HP / LANES, BLOCK, LANES); for ``tl.dot`` all of Wᵀ."""
    if ROWS == 1:
        # Neighbours on the last axis go to neighbouring threads, as their addresses rise and the pointer's
        # alignment is unknown to the compiler; the first axis is a thread's own. So sums need few shuffles.
        column = tl.arange(0, BLOCK * LANES)[None, :]
        out = first + column // LANES
        k = tl.arange(0, HP // LANES)[:, None] * LANES + column % LANES
        tile = tl.load(w + out * H + k, mask=(out < H) & (k < H), other=0.0).to(tl.float32)
        tile = tl.reshape(tile, [HP // LANES, BLOCK, LANES])
    else:
        out = tl.arange(0, HP)[None, :]
        k = tl.arange(0, HP)[:, None]
        tile = tl.load(w + out * H + k, mask=(out < H) & (k < H), other=0.0)
    return tile


@triton.jit
def _product(
    w: tl.tensor,
    h: tl.tensor,
    H: tl.constexpr,
    HP: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """W h for h (HP,) or (ROWS, HP); w: a tile of ``_weights``, or a pointer to W where that doesn't fit."""
    if ROWS > 1:
        result = dot(h.to(w.dtype), w)
    else:
        split = tl.reshape(h, [HP // LANES, LANES])[:, None, :]
        if BLOCK == HP:
            result = tl.sum(tl.sum(w * split, 0), 1)
        else:
            blocks = tl.arange(0, HP // BLOCK)[:, None]
            parts = tl.zeros([HP // BLOCK, BLOCK], tl.float32)
            for block in range((H + BLOCK - 1) // BLOCK):
                tile = _weights(w, block * BLOCK, H, HP, ROWS, LANES, BLOCK)
                part = tl.sum(tl.sum(tile * split, 0), 1)
                parts = tl.where(blocks == block, part[None, :], parts)
            result = tl.reshape(parts, [HP])
    return result


@triton.jit
def _place(
    lengths: tl.tensor, batch: tl.tensor, steps: tl.tensor, HP: tl.constexpr, ROWS: tl.constexpr
) -> tl.tensor:
    """This program's units, rows with their lengths, and its place among the (S, B) rows.

    Shapes: scalars and (HP,) for one row, else (ROWS, 1) and (1, HP).
    """
    unit = tl.arange(0, HP)
    row = tl.program_id(0)
    if ROWS > 1:
        unit = unit[None, :]
        row = (row * ROWS + tl.arange(0, ROWS))[:, None]
    here = row < batch
    if lengths is None:
        length = tl.where(here, steps, 0)
    else:
        # No length makes the kernel leave its tensors.
        length = tl.load(lengths + row, mask=here, other=0)
        length = tl.minimum(tl.maximum(length, 0), steps).to(tl.int32)
    if ROWS > 1:
        longest = tl.max(length)
        shortest = tl.min(tl.where(here, length, steps))
    else:
        longest = length
        shortest = length
    line = tl.program_id(1).to(tl.int64) * batch + row
    return unit, here, length, longest, shortest, line


@triton.jit
def _gates(
    sums: tl.tensor,
    line: tl.tensor,
    unit: tl.tensor,
    t: tl.tensor,
    steps: tl.tensor,
    mask: tl.tensor,
    GATES: tl.constexpr,
    H: tl.constexpr,
) -> tl.tensor:
    """The two or three blocks of step t; with one gate the second is the first."""
    at = sums + (line * steps + t) * ((GATES + 1) * H) + unit
    z = tl.load(at, mask=mask, other=0.0)
    r = z if GATES == 1 else tl.load(at + H, mask=mask, other=0.0)
    return z, r, tl.load(at + GATES * H, mask=mask, other=0.0)


@triton.jit
def _clear(
    tensor: tl.tensor,
    unit: tl.tensor,
    here: tl.tensor,
    length: tl.tensor,
    shortest: tl.tensor,
    line: tl.tensor,
    steps: tl.tensor,
    BLOCKS: tl.constexpr,
    H: tl.constexpr,
    HP: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Write zeros to (S, B, T, BLOCKS·H) beyond the lengths."""
    if ROWS == 1:
        stop = steps * (BLOCKS * H)
        for start in range(length * (BLOCKS * H), stop, 64 * HP):
            at = start + tl.arange(0, 64 * HP)
            tl.store(tensor + line * stop + at, tl.zeros([64 * HP], tl.float32), mask=at < stop)
    else:
        for t in range(shortest, steps):
            mask = unit < tl.where(here & (t >= length), H, 0)
            for block in tl.static_range(BLOCKS):
                at = ((line * steps + t) * BLOCKS + block) * H + unit
                tl.store(tensor + at, tl.zeros([ROWS, HP], tl.float32), mask=mask)


# Lengths change from call to call: no code of their own for multiples of 16 or for 1.
@triton.jit(do_not_specialize=["batch", "steps"], do_not_specialize_on_alignment=["w_h"])
def forward(
    sums: tl.tensor,
    w_h: tl.tensor,
    lengths: tl.tensor,
    h0: tl.tensor,
    batch: tl.tensor,
    steps: tl.tensor,
    y: tl.tensor,
    h_n: tl.tensor,
    GATES: tl.constexpr,
    REVERSE: tl.constexpr,
    H: tl.constexpr,
    HP: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """States of all steps from ``sums`` (S, B, T, (gates+1)·H) float32 = W_x x + b.

    w_h (S, (gates+1)·H, H); lengths (B,) int64 or None; h0 (S, B, H) or None; writes y (S, B, T, H), zero
    beyond a length, and h_n (S, B, H). ``reference.gated_rnn`` has the equations. Grid: (⌈B / ROWS⌉, S).
    """
    unit, here, length, longest, shortest, line = _place(lengths, batch, steps, HP, ROWS)
    inside = unit < tl.where(here, H, 0)
    w_h += tl.program_id(1).to(tl.int64) * ((GATES + 1) * H * H)
    w_r = w_h
    w_g = w_h + GATES * H * H
    if GATES == 2:
        w_r += H * H
    if BLOCK == HP:
        w_z = _weights(w_h, 0, H, HP, ROWS, LANES, BLOCK)
        w_g = _weights(w_g, 0, H, HP, ROWS, LANES, BLOCK)
        if GATES == 2:
            w_r = _weights(w_r, 0, H, HP, ROWS, LANES, BLOCK)
    else:
        w_z = w_h

    if h0 is None:
        h = tl.zeros_like(unit).to(tl.float32) + tl.zeros_like(line).to(tl.float32)
    else:
        h = tl.load(h0 + line * H + unit, mask=inside, other=0.0).to(tl.float32)
    t = length - 1 if REVERSE else 0
    z_sum, r_sum, g_sum = _gates(sums, line, unit, t, steps, unit < tl.where(length > 0, H, 0), GATES, H)
    for step in range(longest):
        # The next step's sums are asked for before this step's products, which hide the wait.
        after = length - 2 - step if REVERSE else step + 1
        z_next, r_next, g_next = _gates(
            sums, line, unit, after, steps, unit < tl.where(step + 1 < length, H, 0), GATES, H
        )
        z = 1.0 / (1.0 + tl.exp(-z_sum - _product(w_z, h, H, HP, ROWS, LANES, BLOCK)))
        r = z
        if GATES == 2:
            r = 1.0 / (1.0 + tl.exp(-r_sum - _product(w_r, h, H, HP, ROWS, LANES, BLOCK)))
        g_sum += _product(w_g, r * h, H, HP, ROWS, LANES, BLOCK)
        g = 2.0 / (1.0 + tl.exp(-2.0 * g_sum)) - 1.0  # tanh
        now = unit < tl.where(step < length, H, 0)
        h = tl.where(now, h + z * (g - h), h)
        t = length - 1 - step if REVERSE else step
        tl.store(y + (line * steps + t) * H + unit, h, mask=now)
        z_sum = z_next
        r_sum = r_next
        g_sum = g_next
    tl.store(h_n + line * H + unit, h, mask=inside)
    _clear(y, unit, here, length, shortest, line, steps, 1, H, HP, ROWS)


@triton.jit
def _taken(
    before: tl.tensor,
    dy: tl.tensor,
    line: tl.tensor,
    unit: tl.tensor,
    t: tl.tensor,
    steps: tl.tensor,
    mask: tl.tensor,
    H: tl.constexpr,
) -> tl.tensor:
    """h_{t-1} and the gradient of y_t."""
    at = (line * steps + t) * H + unit
    h = tl.load(before + at, mask=mask, other=0.0)
    return h, tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["batch", "steps"], do_not_specialize_on_alignment=["w_t"])
def backward(
    w_t: tl.tensor,
    lengths: tl.tensor,
    before: tl.tensor,
    dy: tl.tensor,
    dh_n: tl.tensor,
    batch: tl.tensor,
    steps: tl.tensor,
    sums: tl.tensor,
    dh0: tl.tensor,
    GATES: tl.constexpr,
    REVERSE: tl.constexpr,
    H: tl.constexpr,
    HP: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Back-propagation through time.

    ``sums`` holds the gates z, (r,) g of all steps and, after the call, the gradients of the sums that they
    are functions of, zero beyond a length.

    w_t (S, gates+1, H, H): the blocks of W_h, each transposed; before (S, B, T, H) float32: the state that
    each step starts from; dy (S, B, T, H), dh_n (S, B, H): gradients that come in; writes dh0 (S, B, H)
    float32. Grid as forwards.
    """
    unit, here, length, longest, shortest, line = _place(lengths, batch, steps, HP, ROWS)
    inside = unit < tl.where(here, H, 0)
    w_t += tl.program_id(1).to(tl.int64) * ((GATES + 1) * H * H)
    w_r = w_t
    w_g = w_t + GATES * H * H
    if GATES == 2:
        w_r += H * H
    if BLOCK == HP:
        w_z = _weights(w_t, 0, H, HP, ROWS, LANES, BLOCK)
        w_g = _weights(w_g, 0, H, HP, ROWS, LANES, BLOCK)
        if GATES == 2:
            w_r = _weights(w_r, 0, H, HP, ROWS, LANES, BLOCK)
    else:
        w_z = w_t

    dh = tl.load(dh_n + line * H + unit, mask=inside, other=0.0).to(tl.float32)
    t = 0 if REVERSE else length - 1
    some = unit < tl.where(length > 0, H, 0)
    z, r, g = _gates(sums, line, unit, t, steps, some, GATES, H)
    h, dy_t = _taken(before, dy, line, unit, t, steps, some, H)
    for back in range(longest):
        after = back + 1 if REVERSE else length - 2 - back
        more = unit < tl.where(back + 1 < length, H, 0)
        z_next, r_next, g_next = _gates(sums, line, unit, after, steps, more, GATES, H)
        h_next, dy_next = _taken(before, dy, line, unit, after, steps, more, H)

        dh_now = dh + dy_t
        dg = dh_now * z
        dg_sum = dg * (1.0 - g * g)
        dreset = _product(w_g, dg_sum, H, HP, ROWS, LANES, BLOCK)  # of r ∘ h
        dz = dh_now * (g - h)
        if GATES == 1:
            dz += dreset * h
        dz_sum = dz * z * (1.0 - z)
        dh_before = dh_now - dg + dreset * r + _product(w_z, dz_sum, H, HP, ROWS, LANES, BLOCK)
        now = unit < tl.where(back < length, H, 0)
        t = back if REVERSE else length - 1 - back
        at = sums + (line * steps + t) * ((GATES + 1) * H) + unit
        if GATES == 2:
            dr_sum = dreset * h * r * (1.0 - r)
            dh_before += _product(w_r, dr_sum, H, HP, ROWS, LANES, BLOCK)
            tl.store(at + H, dr_sum, mask=now)
        tl.store(at, dz_sum, mask=now)
        tl.store(at + GATES * H, dg_sum, mask=now)
        dh = tl.where(now, dh_before, dh)

        z = z_next
        r = r_next
        g = g_next
        h = h_next
        dy_t = dy_next
    tl.store(dh0 + line * H + unit, dh, mask=inside)
    _clear(sums, unit, here, length, shortest, line, steps, GATES + 1, H, HP, ROWS)
