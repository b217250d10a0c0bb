"""The Triton attention against the float64 reference: on a GPU if there is one, else interpreted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from affectrt_kernels import reference
from affectrt_kernels import triton_attention as triton_operator

# Largest difference from the reference, which sees the same rounded inputs, relative to the largest entry.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}

Call = Callable[..., Any]
Tensors = Sequence[Tensor]


class Case(NamedTuple):
    """A problem of the fixture ``attention_problem``, and which of its pairs are asked for."""

    steps: tuple[int, int, int]
    batch: int
    heads: int
    dim: int
    dtype: torch.dtype
    windowed: bool
    many: bool
    pairs: slice = slice(None)


CASES = [
    Case((0, 0, 0), 1, 1, 8, torch.float32, False, False),
    Case((1, 2, 0), 3, 4, 8, torch.float16, True, False, slice(0, 2)),
    Case((2, 63, 1), 2, 1, 16, torch.float32, True, False),
    Case((5, 16, 33), 3, 2, 10, torch.bfloat16, True, True),
    Case((63, 5, 16), 2, 1, 32, torch.float16, False, True),
    Case((17, 40, 64), 1, 1, 40, torch.float16, True, False),
    Case((7, 31, 9), 2, 2, 64, torch.bfloat16, False, False),
    Case((64, 3, 20), 1, 4, 64, torch.float32, True, False, slice(0, 3)),
    Case((50, 500, 375), 1, 1, 16, torch.float32, False, False, slice(0, 2)),
    Case((50, 500, 375), 2, 1, 16, torch.float16, True, True, slice(0, 4)),
    Case((2, 1500, 63), 1, 1, 8, torch.float32, True, False, slice(0, 1)),
    Case((63, 1, 1500), 2, 1, 32, torch.bfloat16, False, True, slice(4, 5)),
]


@pytest.fixture
def make(attention_problem: Callable[..., Any]) -> Callable[[Case], Any]:
    """Makes the problem of a case, with NaN in its padding."""

    def problem(case: Case) -> Any:
        whole = attention_problem(case.steps, case.batch, case.heads, case.dim, windowed=case.windowed)
        cut = whole._replace(
            pairs=whole.pairs[case.pairs],
            windows=whole.windows and whole.windows[case.pairs],
            **{name: getattr(whole, name)[case.pairs] for name in "qkv"},
        )
        return cut.to(case.dtype)

    return problem


def differentiate(problem: Any, dtype: torch.dtype) -> tuple[Tensors, Tensors, Tensors, Tensors]:
    """What the float64 reference gives: outputs, log-sums, random gradients of the outputs, of q, k and v.

    The random ones are NaN in padding.
    """
    wide = problem.to(torch.float64, learn=True)
    outputs, log_sums = reference.pairwise_attention(*wide)
    random = torch.Generator().manual_seed(1)
    given = [torch.randn(output.shape, generator=random).to(dtype) for output in outputs]
    learned = [*wide.q, *wide.k, *wide.v]
    gradients = torch.autograd.grad(outputs, learned, [part.double() for part in given])
    for part, log_sum in zip(given, log_sums, strict=True):
        part.masked_fill_(log_sum.isinf().mT[..., None], float("nan"))
    return [x.detach() for x in outputs], [x.detach() for x in log_sums], given, gradients


def difference(got: Tensor, want: Tensor) -> float:
    """Relative to the largest entry wanted, or 1 if that is more."""
    assert got.shape == want.shape
    assert torch.equal(got.isinf(), want.isinf())
    got, want = got.double().masked_fill(want.isinf(), 0.0), want.masked_fill(want.isinf(), 0.0)
    return float((got - want).abs().max() / want.abs().max().clamp(min=1.0))


def check(call: Call, problem: Any, dtype: torch.dtype, many: bool | None) -> None:
    """Outputs, log-sums and gradients equal those of the reference."""
    outputs, log_sums, given, gradients = differentiate(problem, dtype)
    got_outputs, got_sums = call(triton_operator.forward, *problem, many=many)
    for got, want in zip(got_outputs, outputs, strict=True):
        assert got.dtype == dtype
        assert difference(got, want) <= TOLERANCE[dtype]
    for got, want in zip(got_sums, log_sums, strict=True):
        assert got.dtype == torch.float32
        assert difference(got, want) <= TOLERANCE[torch.float32]
    parts = call(
        triton_operator.backward,
        given,
        *problem[:3],
        got_outputs,
        got_sums,
        *problem[3:],
        many=many,
    )
    for got, want in zip((part for side in parts for part in side), gradients, strict=True):
        assert got.dtype == dtype
        assert difference(got, want) <= TOLERANCE[dtype]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:-1])))
def test_equals_the_reference(triton_call: Call, make: Callable[[Case], Any], case: Case) -> None:
    check(triton_call, make(case), case.dtype, case.many)


def test_lengths_may_be_left_out(triton_call: Call, attention_problem: Callable[..., Any]) -> None:
    problem = attention_problem((5, 9, 7), 2, 2, 8, ragged=False)
    check(triton_call, problem, torch.float32, None)


def test_more_than_six_pairs_take_more_launches(
    triton_call: Call, attention_problem: Callable[..., Any]
) -> None:
    problem = attention_problem((5, 9, 7), 2, 1, 8)
    doubled = problem._replace(
        **{name: getattr(problem, name) * 2 for name in ("q", "k", "v", "pairs", "windows")}
    )
    check(triton_call, doubled, torch.float32, None)


def test_rows_in_pieces_are_copied(triton_call: Call, attention_problem: Callable[..., Any]) -> None:
    problem = attention_problem((5, 9, 7), 2, 2, 8)
    turned = problem._replace(q=[x.mT.contiguous().mT for x in problem.q])
    assert turned.q[0].stride(3) != 1
    for got, want in zip(
        triton_call(triton_operator.forward, *turned)[0],
        triton_call(triton_operator.forward, *problem)[0],
        strict=True,
    ):
        assert torch.equal(got, want)


def test_keys_that_no_query_sees_are_not_looked_at(triton_call: Call) -> None:
    q, k, v = (torch.randn(1, rows, 1, 8) for rows in (40, 400, 400))
    windows = torch.tensor([70, 90]).expand(1, 40, 2)
    hidden = torch.ones(400, dtype=torch.bool)
    hidden[[0, *range(70, 90)]] = False
    want = triton_call(triton_operator.forward, [q], [k], [v], [(0, 1)], None, [windows])
    loud = v.masked_fill(hidden[:, None, None], 1e30)
    got = triton_call(triton_operator.forward, [q], [k], [loud], [(0, 1)], None, [windows])
    assert torch.equal(got[0][0], want[0][0])
    # A block of keys that all windows leave out is not even read: zero times NaN would show.
    loud[:, 128:] = float("nan")
    got = triton_call(triton_operator.forward, [q], [k], [loud], [(0, 1)], None, [windows])
    assert torch.equal(got[0][0], want[0][0])


def test_lengths_and_windows_out_of_range_never_leave_the_tensors(
    triton_call: Call, attention_problem: Callable[..., Any]
) -> None:
    problem = attention_problem((5, 9, 7), 2, 1, 8, ragged=False, windowed=False)
    full = torch.tensor([[5, 5], [9, 0], [7, 7]])
    beyond = torch.tensor([[2**40, 6], [10, -4], [7, 99]])
    wide = [torch.tensor([-(2**40), 2**40]).expand(*x.shape[:2], 2) for x in problem.q]
    want = triton_call(triton_operator.forward, *problem._replace(lengths=full))
    got = triton_call(triton_operator.forward, *problem._replace(lengths=beyond, windows=wide))
    for a, b in zip([x for side in got for x in side], [x for side in want for x in side], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("axis", [0, 2, 3], ids=["batch", "heads", "dim"])
def test_zero_sizes(triton_call: Call, axis: int) -> None:
    empty = [torch.zeros(2, 4, 3, 8).narrow(axis, 0, 0)]
    outputs, log_sums = triton_call(triton_operator.forward, empty, empty, empty, [(0, 0)], None, None)
    assert outputs[0].shape == empty[0].shape
    assert log_sums[0].shape == (empty[0].shape[0], empty[0].shape[2], 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_cuda_graph_replays_the_same_bits(make: Callable[[Case], Any], dtype: torch.dtype) -> None:
    problem = make(Case((50, 500, 375), 2, 4, 16, dtype, True, True))
    q, k, v, pairs, lengths, windows = problem
    q, k, v, windows = ([x.cuda() for x in xs] for xs in (q, k, v, windows))
    lengths = lengths.cuda()
    given = [torch.randn_like(x).nan_to_num(0.0) for x in q]

    def both() -> list[Tensor]:
        outputs, log_sums = triton_operator.forward(q, k, v, pairs, lengths, windows)
        parts = triton_operator.backward(given, q, k, v, outputs, log_sums, pairs, lengths, windows)
        return [*outputs, *log_sums, *(x for side in parts for x in side)]

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
