"""The Triton recurrence against the float64 reference: on a GPU if there is one, else interpreted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from affectrt_kernels import reference
from affectrt_kernels import triton_gated_rnn as triton_operator
from affectrt_kernels.triton_numerics import HALF

# Largest difference from the reference, which sees the same rounded inputs: states are within ±1, gradients
# are relative to the largest entry of each.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
STEPS, HIDDEN, BATCHES = (1, 2, 63, 500, 1500), (8, 40, 64, 100, 128, 200), (1, 3, 32)
WALKED = {(500, 100): 500, (1500, 8): 130}
"""Above 63 steps only these are walked so far, others have short rows: the interpreter is slow."""
NAMES = ("x", "w_x", "w_h", "bias", "h0")

Call = Callable[..., Any]


class Case(NamedTuple):
    """One problem. Every two values of its first four fields meet in ``CASES``."""

    steps: int
    hidden: int
    batch: int
    dtype: torch.dtype
    gates: int
    reverse: bool
    streams: int

    @property
    def tiled(self) -> bool:
        """Batches of half precision go through ``tl.dot``."""
        return self.batch > 1 and triton_operator.tiles_fit(self.hidden, self.dtype, self.gates)


CASES = [
    Case(
        steps,
        hidden,
        batch=BATCHES[(t + h) % 3],
        dtype=tuple(TOLERANCE)[(t + 2 * h) % 3],
        gates=1 + (t + h // 2) % 2,
        reverse=(t + h // 3) % 2 == 1,
        streams=3 if steps < 63 else 1,
    )
    for t, steps in enumerate(STEPS)
    for h, hidden in enumerate(HIDDEN)
]


class Problem(NamedTuple):
    """Arguments of the operator, in its order."""

    x: Tensor
    w_x: Tensor
    w_h: Tensor
    bias: Tensor
    lengths: Tensor | None
    h0: Tensor | None

    def moved(self, move: Callable[[Tensor], Tensor]) -> Problem:
        """With every tensor of floating point put through ``move``."""
        x, w_x, w_h, bias = (move(part) for part in self[:4])
        return Problem(x, w_x, w_h, bias, self.lengths, None if self.h0 is None else move(self.h0))

    def beyond(self) -> Tensor:
        """(B, T): which steps are padding."""
        assert self.lengths is not None
        return torch.arange(self.x.shape[2]) >= self.lengths[:, None]


def make(case: Case, inputs: int = 5) -> Problem:
    """Random numbers, in rows of random lengths, and NaN beyond them."""
    random = torch.Generator().manual_seed(case.steps * 1000 + case.hidden)
    blocks = (case.gates + 1) * case.hidden

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random)

    lengths = torch.randint(0, min(case.steps, 2) + 1, (case.batch,), generator=random)
    lengths[0] = case.steps if case.steps <= 63 else WALKED.get((case.steps, case.hidden), 12)
    lengths[1:2] = 0
    x, w_x, w_h, bias, h0 = (
        part.to(case.dtype)
        for part in (
            normal(case.streams, case.batch, case.steps, inputs),
            normal(case.streams, blocks, inputs) * inputs**-0.5,
            normal(case.streams, blocks, case.hidden) * case.hidden**-0.5,
            normal(case.streams, blocks),
            0.5 * normal(case.streams, case.batch, case.hidden),
        )
    )
    problem = Problem(x, w_x, w_h, bias, lengths, h0)
    problem.x.masked_fill_(problem.beyond()[..., None], float("nan"))
    return problem


def differentiate(case: Case, problem: Problem) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What the float64 reference gives: outputs, random gradients of them, gradients of the inputs.

    It walks as far as the longest row goes.
    """
    lengths = problem.lengths
    beyond = 0 if lengths is None else case.steps - int(lengths.max())
    walked = case.steps - beyond
    wide = [None if part is None else part.double().requires_grad_() for part in (*problem[:4], problem.h0)]
    x, w_x, w_h, bias, h0 = wide
    assert x is not None and w_x is not None and w_h is not None and bias is not None
    y, h_n = reference.gated_rnn(
        x[:, :, :walked], w_x, w_h, bias, lengths, h0, gates=case.gates, reverse=case.reverse
    )
    outputs = [torch.nn.functional.pad(y, (0, 0, 0, beyond)), h_n]
    random = torch.Generator().manual_seed(1)
    given = [torch.randn(output.shape, generator=random).to(case.dtype) for output in outputs]
    learned = [part for part in wide if part is not None]
    gradients = torch.autograd.grad(outputs, learned, [part.double() for part in given])
    return [output.detach() for output in outputs], given, list(gradients)


def difference(got: Tensor, want: Tensor) -> float:
    """Relative to the largest entry wanted, or 1 if that is more."""
    assert got.shape == want.shape
    return float((got.double() - want).abs().max() / want.abs().max().clamp(min=1.0)) if want.numel() else 0.0


def check(call: Call, case: Case, problem: Problem, tiled: bool | None) -> None:
    """Outputs and gradients equal those of the reference."""
    outputs, given, gradients = differentiate(case, problem)
    options: dict[str, Any] = {"gates": case.gates, "reverse": case.reverse, "tiled": tiled}
    y, h_n = call(triton_operator.forward, *problem, **options)
    for got, want in zip((y, h_n), outputs, strict=True):
        assert got.dtype == case.dtype
        assert difference(got, want) <= TOLERANCE[case.dtype]
    if problem.lengths is not None:
        given[0].masked_fill_(problem.beyond()[..., None], float("nan"))
        assert not y[problem.beyond().expand(y.shape[:-1])].any()
    parts = call(triton_operator.backward, *given, *problem, y, **options)
    assert len(parts) == len(NAMES)
    for name, got, want in zip(NAMES, parts, gradients, strict=False):  # the reference has no dh0 without h0
        assert got.dtype == case.dtype, name
        assert difference(got, want) <= TOLERANCE[case.dtype], name


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_equals_the_reference(triton_call: Call, case: Case) -> None:
    check(triton_call, case, make(case), case.tiled)


def test_the_cases_cover_what_they_should() -> None:
    for first in range(4):
        for second in range(first + 1, 4):
            values = [{case[i] for case in CASES} for i in (first, second)]
            assert len({(case[first], case[second]) for case in CASES}) == len(values[0]) * len(values[1])
    assert {(case.gates, case.reverse) for case in CASES} == {(1, False), (1, True), (2, False), (2, True)}
    assert {(case.tiled, case.gates, case.dtype) for case in CASES if case.dtype in HALF} == {
        (tiled, gates, dtype) for tiled in (False, True) for gates in (1, 2) for dtype in HALF
    }


@pytest.mark.parametrize(("gates", "reverse"), [(1, False), (2, True)])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("given", ["lengths", "h0", ""])
def test_lengths_and_initial_states_may_be_left_out(
    triton_call: Call, given: str, tiled: bool, gates: int, reverse: bool
) -> None:
    batch, dtype = (17, torch.float16) if tiled else (2, torch.float32)
    case = Case(4, 24, batch, dtype, gates, reverse, streams=2)
    problem = make(case)
    if given != "lengths":
        problem.x.nan_to_num_(0.25)
        problem = problem._replace(lengths=None)
    if given != "h0":
        problem = problem._replace(h0=None)
    check(triton_call, case, problem, tiled)


@pytest.mark.parametrize("reverse", [False, True])
def test_one_row_of_several_streams(triton_call: Call, reverse: bool) -> None:
    case = Case(6, 16, 1, torch.float32, 1, reverse, streams=3)
    problem = make(case)
    check(triton_call, case, problem._replace(lengths=None), None)


def test_layouts_do_not_matter(triton_call: Call) -> None:
    case = Case(5, 24, 3, torch.float32, 2, False, streams=2)
    problem = make(case)
    outputs, given, gradients = differentiate(case, problem)
    turned = problem.moved(lambda part: part.mT.contiguous().mT)
    assert not turned.x.is_contiguous() and not turned.w_h.is_contiguous()
    options = {"gates": 2, "reverse": False}
    y, h_n = triton_call(triton_operator.forward, *turned, **options)
    turned_back = triton_call(
        triton_operator.backward,
        given[0].mT.contiguous().mT,
        given[1].mT.contiguous().mT,
        *turned,
        y,
        **options,
    )
    for got, want in zip((y, h_n, *turned_back), (*outputs, *gradients), strict=True):
        assert difference(got, want) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("tiled", [False, True])
def test_lengths_out_of_range_never_leave_the_tensors(triton_call: Call, tiled: bool) -> None:
    case = Case(5, 16, 3, torch.float16, 1, True, streams=1)
    problem = make(case)
    problem.x.nan_to_num_(0.5)
    inside = problem._replace(lengths=torch.tensor([5, 0, 5]))
    outside = problem._replace(lengths=torch.tensor([2**40, -3, 6]))
    options = {"gates": 1, "reverse": True, "tiled": tiled}
    want = triton_call(triton_operator.forward, *inside, **options)
    got = triton_call(triton_operator.forward, *outside, **options)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("size", ["streams", "batch", "steps"])
def test_zero_sizes(triton_call: Call, size: str) -> None:
    case = Case(4, 8, 2, torch.float32, 1, False, streams=2)
    problem = make(case)._replace(lengths=None)
    x, h0 = problem.x.nan_to_num(0.0), problem.h0
    assert h0 is not None
    weights = list(problem[1:4])
    if size == "streams":
        x, h0, weights = x[:0], h0[:0], [part[:0] for part in weights]
    elif size == "batch":
        x, h0 = x[:, :0], h0[:, :0]
    else:
        x = x[:, :, :0]
    given = (x, *weights, None, h0)
    options = {"gates": 1, "reverse": False}
    y, h_n = triton_call(triton_operator.forward, *given, **options)
    assert y.shape == (*x.shape[:3], 8)
    assert torch.equal(h_n, h0)
    parts = triton_call(triton_operator.backward, y, h_n, *given, y, **options)
    for part, like in zip(parts, (x, *weights, h0), strict=True):
        assert part.shape == like.shape
        assert part.isfinite().all()
    assert torch.equal(parts[4], h_n)  # what comes in for h_n goes out for h0


def test_the_choice_of_a_kernel() -> None:
    def chosen(streams: int, batch: int, hidden: int, dtype: torch.dtype, gates: int = 1) -> int:
        x = torch.empty(streams, batch, 1, 1, dtype=dtype)
        return triton_operator.choose(x, hidden, gates, None).rows

    assert chosen(3, 1, 64, torch.float16) == 1
    assert chosen(3, 2000, 64, torch.float16) == 16
    assert chosen(3, 2000, 64, torch.float32) == 1  # tensor cores would round its factors
    assert chosen(3, 2000, 128, torch.bfloat16) == 16
    assert chosen(3, 2000, 128, torch.bfloat16, gates=2) == 1  # more than 99 KiB
    assert chosen(3, 2000, 200, torch.bfloat16) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_cuda_graph_replays_the_same_bits(dtype: torch.dtype) -> None:
    case = Case(40, 64, 5, dtype, 1, False, streams=3)
    problem = make(case).moved(Tensor.cuda)
    problem = problem._replace(lengths=None if problem.lengths is None else problem.lengths.cuda())
    dy, dh_n = (torch.randn(3, 5, *rest, device="cuda").to(dtype) for rest in ((40, 64), (64,)))

    def both() -> list[Tensor]:
        y, h_n = triton_operator.forward(*problem, gates=1, reverse=False)
        gradients = triton_operator.backward(dy, dh_n, *problem, y, gates=1, reverse=False)
        return [y, h_n, *gradients]

    want = both()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = both()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = both()
    graph.replay()
    for a, b, c in zip(want, again, got, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
