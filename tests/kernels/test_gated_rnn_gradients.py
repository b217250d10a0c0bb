"""The operator's derivatives, and what torch demands of an operator that compiles and exports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from affectrt_kernels import ops, reference

# Gradients sum over rows and steps: relative to the largest entry of each.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
NAMES = ["x", "w_x", "w_h", "bias", "h0"]


def make(shape: tuple[int, ...], gates: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    streams, batch, steps, inputs, hidden = shape
    random = torch.Generator().manual_seed(steps)
    blocks = (gates + 1) * hidden
    sizes = [
        (streams, batch, steps, inputs),
        (streams, blocks, inputs),
        (streams, blocks, hidden),
        (streams, blocks),
        (streams, batch, hidden),
    ]
    scales = [1.0, inputs**-0.5, hidden**-0.5, 1.0, 0.5]
    tensors = [
        (torch.randn(size, generator=random) * scale).to(dtype).requires_grad_()
        for size, scale in zip(sizes, scales, strict=True)
    ]
    lengths = torch.randint(0, steps + 1, (batch,), generator=random)
    lengths[:1], lengths[1:2] = steps, 0
    return tensors, lengths


def gradients(
    function: Callable[..., tuple[Tensor, Tensor]],
    tensors: list[Tensor],
    lengths: Tensor | None,
    with_h0: bool,
    **options: object,
) -> dict[str, Tensor]:
    x, w_x, w_h, bias, h0 = tensors
    y, h_n = function(x, w_x, w_h, bias, lengths, h0 if with_h0 else None, **options)
    random = torch.Generator().manual_seed(1)
    loss = (y * torch.randn(y.shape, generator=random).to(y)).sum()
    loss = loss + (h_n * torch.randn(h_n.shape, generator=random).to(y)).sum()
    names, wanted = (NAMES, tensors) if with_h0 else (NAMES[:4], tensors[:4])
    return dict(zip(names, torch.autograd.grad(loss, wanted), strict=True))


@pytest.fixture
def poisoned_tensors() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("with_h0", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gates", [1, 2])
def test_gradcheck(gates: int, reverse: bool, ragged: bool, with_h0: bool) -> None:
    tensors, lengths = make((2, 3, 4, 3, 2), gates, torch.float64)

    def function(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        x, w_x, w_h, bias, *h0 = inputs
        return ops.gated_rnn(
            x, w_x, w_h, bias, lengths if ragged else None, *h0, gates=gates, reverse=reverse
        )

    assert torch.autograd.gradcheck(function, tensors if with_h0 else tensors[:4])


def assert_gradients_equal_the_reference(
    shape: tuple[int, ...], gates: int, reverse: bool, dtype: torch.dtype
) -> None:
    tensors, lengths = make(shape, gates, dtype)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    want = gradients(reference.gated_rnn, wide, lengths, True, gates=gates, reverse=reverse)
    got = gradients(ops.gated_rnn, tensors, lengths, True, gates=gates, reverse=reverse)
    for name in NAMES:
        assert got[name].dtype == dtype
        scale = float(want[name].abs().max())
        difference = float((got[name].double() - want[name]).abs().max())
        assert difference <= TOLERANCE[dtype] * scale, name


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gates", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (3, 8, 40, 20, 12), (1, 3, 130, 17, 33)], ids=str)
@pytest.mark.usefixtures("poisoned_tensors")
def test_gradients_equal_the_reference(
    shape: tuple[int, ...], gates: int, reverse: bool, dtype: torch.dtype
) -> None:
    assert_gradients_equal_the_reference(shape, gates, reverse, dtype)


COVERING = [  # T, H, B: every size of the forward tests, longest with widest
    (1, 8, 32),
    (2, 40, 3),
    (63, 64, 32),
    (500, 100, 3),
    (500, 128, 1),
    (1500, 200, 1),
    (1500, 8, 3),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gates", [1, 2])
@pytest.mark.parametrize(("steps", "hidden", "batch"), COVERING)
@pytest.mark.usefixtures("poisoned_tensors")
def test_gradients_at_every_size(steps: int, hidden: int, batch: int, gates: int, dtype: torch.dtype) -> None:
    assert_gradients_equal_the_reference((1, batch, steps, 24, hidden), gates, hidden % 3 == 1, dtype)


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_never_reaches_a_gradient(reverse: bool) -> None:
    tensors, lengths = make((2, 5, 9, 4, 6), 1, torch.float32)
    want = gradients(ops.gated_rnn, tensors, lengths, True, reverse=reverse)
    beyond = (torch.arange(9) >= lengths[:, None])[..., None]
    poisoned = [tensors[0].detach().masked_fill(beyond, float("nan")).requires_grad_(), *tensors[1:]]
    got = gradients(ops.gated_rnn, poisoned, lengths, True, reverse=reverse)
    for name in NAMES:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 5), (1, 0, 4, 3, 3), (2, 3, 0, 3, 3)], ids=str)
def test_gradients_of_zero_sizes(shape: tuple[int, ...]) -> None:
    tensors, lengths = make(shape, 1, torch.float32)
    got = gradients(ops.gated_rnn, tensors, lengths, True)
    for name, tensor in zip(NAMES, tensors, strict=True):
        assert got[name].shape == tensor.shape
        assert got[name].isfinite().all()


@pytest.mark.parametrize("gates", [1, 2])
def test_opcheck(gates: int) -> None:
    tensors, lengths = make((2, 3, 4, 3, 5), gates, torch.float32)
    x, w_x, w_h, bias, h0 = tensors
    for optional in [(None, None), (lengths, h0)]:
        torch.library.opcheck(
            torch.ops.affectrt.gated_rnn.default,
            (x, w_x, w_h, bias, *optional),
            {"gates": gates, "reverse": gates == 2},
        )


def test_compiles_whole_and_trains() -> None:
    tensors, lengths = make((3, 4, 11, 6, 8), 1, torch.float32)

    def double(*inputs: Any, **options: Any) -> tuple[Tensor, Tensor]:
        y, h_n = ops.gated_rnn(*inputs, **options)
        return y * 2, h_n * 2

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager", dynamic=True)
    want = gradients(double, tensors, lengths, True, gates=1)
    got = gradients(compiled, tensors, lengths, True, gates=1)
    for name in NAMES:
        torch.testing.assert_close(got[name], want[name])


def test_exports_as_one_operator() -> None:
    tensors, lengths = make((3, 4, 11, 6, 8), 1, torch.float32)
    x, w_x, w_h, bias, _ = (tensor.detach() for tensor in tensors)

    class Model(torch.nn.Module):
        def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            return ops.gated_rnn(x, w_x, w_h, bias, lengths)

    batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps")
    program = torch.export.export(
        Model(), (x, lengths), dynamic_shapes=({1: batch, 2: steps}, {0: batch}), strict=False
    )
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.affectrt.gated_rnn.default) == 1
    other = x[:, :2, :7].contiguous()
    torch.testing.assert_close(
        program.module()(other, lengths[:2].clamp(max=7)),
        ops.gated_rnn(other, w_x, w_h, bias, lengths[:2].clamp(max=7)),
    )
