"""The attention's derivatives, and what torch demands of an operator that compiles and exports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from affectrt_kernels import reference
from affectrt_kernels.attention_ops import pairwise_attention

# Relative to the largest entry of all: those of q and k are differences of products as large as those of v.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
MASKS = [(False, False), (True, False), (False, True), (True, True)]
SHAPES: list[tuple[Any, ...]] = [  # steps, B, N, D
    ((1, 1, 1), 1, 1, 1),
    ((0, 3, 2), 2, 1, 4),
    ((63, 2, 20), 8, 2, 8),
    ((50, 500, 375), 1, 4, 32),
    ((20, 1500, 63), 1, 2, 16),
    ((5, 40, 9), 3, 1, 64),
]
Make = Callable[..., Any]
Gradients = list[Tensor]


def gradients(function: Callable[..., Any], problem: Any) -> Gradients:
    """Of every q, k and v, for random gradients of the outputs."""
    outputs = function(*problem)
    if isinstance(outputs, tuple):
        outputs, _ = outputs  # the reference's log-sums
    random = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=random).to(y)).sum() for y in outputs)
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, [*problem.q, *problem.k, *problem.v]))


@pytest.mark.parametrize(("ragged", "windowed"), MASKS)
def test_gradcheck(attention_problem: Make, ragged: bool, windowed: bool) -> None:
    problem = attention_problem((1, 2, 1), 2, 1, 2, ragged=ragged, windowed=windowed, padding=0.5)
    problem = problem.to(torch.float64, learn=True)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (list(tensors[i * 6 : (i + 1) * 6]) for i in range(3))
        return tuple(pairwise_attention(q, k, v, *problem[3:]))

    assert torch.autograd.gradcheck(function, (*problem.q, *problem.k, *problem.v))


@pytest.mark.parametrize(("ragged", "windowed"), MASKS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_gradients_equal_the_reference(
    attention_problem: Make, shape: tuple[Any, ...], dtype: torch.dtype, ragged: bool, windowed: bool
) -> None:
    problem = attention_problem(*shape, ragged=ragged, windowed=windowed).to(dtype, learn=True)
    want = gradients(reference.pairwise_attention, problem.to(torch.float64, learn=True))
    got = gradients(pairwise_attention, problem)
    largest = max(float(exact.abs().max()) for exact in want)
    for gradient, exact in zip(got, want, strict=True):
        assert gradient.dtype == dtype
        assert float((gradient.double() - exact).abs().max()) <= TOLERANCE[dtype] * largest


def test_padding_has_no_part_in_any_gradient(attention_problem: Make) -> None:
    clean = attention_problem(padding=0.0).to(torch.float32, learn=True)
    poisoned = attention_problem().to(torch.float32, learn=True)
    want, got = gradients(pairwise_attention, clean), gradients(pairwise_attention, poisoned)
    modalities = [pair[0] for pair in clean.pairs] + [pair[1] for pair in clean.pairs] * 2
    for gradient, same, modality in zip(got, want, modalities, strict=True):
        assert torch.equal(gradient, same)
        beyond = torch.arange(gradient.shape[1]) > clean.lengths[modality, :, None]
        assert beyond.any() and not gradient[beyond].any()


def test_gradients_that_arrive_in_padding_are_not_read(attention_problem: Make) -> None:
    problem = attention_problem().to(torch.float32, learn=True)
    outputs = pairwise_attention(*problem)
    random = torch.Generator().manual_seed(1)
    arriving = [torch.randn(y.shape, generator=random) for y in outputs]
    wanted = [*problem.q, *problem.k, *problem.v]
    want = torch.autograd.grad(outputs, wanted, arriving, retain_graph=True)
    for gradient, (asking, _) in zip(arriving, problem.pairs, strict=True):
        beyond = torch.arange(gradient.shape[1]) > problem.lengths[asking, :, None]
        gradient[beyond] = float("nan")
    got = torch.autograd.grad(outputs, wanted, arriving)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("shape", [((3, 4, 5), 0, 2, 8), ((3, 4, 5), 2, 0, 8), ((0, 0, 0), 1, 1, 4)], ids=str)
def test_gradients_of_zero_sizes(attention_problem: Make, shape: tuple[Any, ...]) -> None:
    problem = attention_problem(*shape).to(torch.float32, learn=True)
    for gradient, tensor in zip(
        gradients(pairwise_attention, problem), [*problem.q, *problem.k, *problem.v], strict=True
    ):
        assert gradient.shape == tensor.shape and gradient.isfinite().all()


@pytest.mark.parametrize(("ragged", "windowed"), MASKS)
def test_opcheck(attention_problem: Make, ragged: bool, windowed: bool) -> None:
    problem = attention_problem(ragged=ragged, windowed=windowed, padding=0.0)
    problem = problem.to(torch.float32, learn=True)
    flat = [modality for pair in problem.pairs for modality in pair]
    arguments = (*problem[:3], flat, problem.lengths, problem.windows or [])
    torch.library.opcheck(torch.ops.affectrt.pairwise_attention.default, arguments)


class Attention(nn.Module):
    """Two pairs share the queries' modality; q, k and v are views of joint projections."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(2)
        self.query = nn.Parameter(torch.randn(6, 2 * 8, generator=random))
        self.key_value = nn.Parameter(torch.randn(6, 2 * 8, generator=random))

    def forward(self, rows: list[Tensor], lengths: Tensor | None, windows: list[Tensor] | None) -> Tensor:
        q = [x.view(*x.shape[:2], 2, 4) for x in (rows[0] @ self.query).chunk(2, -1)]
        memories = [(x @ self.key_value).chunk(2, -1) for x in rows[1:]]
        k, v = ([m[i].view(*m[i].shape[:2], 2, 4) for m in memories] for i in range(2))
        voice, face = pairwise_attention(q, k, v, [(0, 1), (0, 2)], lengths, windows)
        return torch.cat([voice.flatten(2), face.flatten(2)], -1) * 2


def inputs(
    batch: int, steps: tuple[int, int, int], ragged: bool, windowed: bool
) -> tuple[list[Tensor], Tensor | None, list[Tensor] | None]:
    random = torch.Generator().manual_seed(batch)
    rows = [torch.randn(batch, 1 + count, 6, generator=random) for count in steps]
    lengths = torch.tensor(steps)[:, None] // torch.arange(1, batch + 1) if ragged else None
    if lengths is not None:
        lengths[1, 1:] = 0
    windows = [torch.tensor([1, 3]).expand(batch, 1 + steps[0], 2) for _ in range(2)] if windowed else None
    return rows, lengths, windows


@pytest.mark.parametrize(("ragged", "windowed"), MASKS)
def test_compiles_whole_and_trains(ragged: bool, windowed: bool) -> None:
    model = Attention()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, steps in [(2, (3, 4, 5)), (3, (7, 2, 9))]:
        given = inputs(batch, steps, ragged, windowed)
        want, got = model(*given), compiled(*given)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(
            torch.autograd.grad(got.square().sum(), list(model.parameters())),
            torch.autograd.grad(want.square().sum(), list(model.parameters())),
        )


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("ragged", "windowed"), MASKS)
def test_exports_as_one_operator(ragged: bool, windowed: bool, strict: bool) -> None:
    model = Attention()
    batch, *steps = (torch.export.Dim(name, min=2) for name in ("batch", "text", "audio", "vision"))
    program = torch.export.export(
        model,
        inputs(2, (3, 4, 5), ragged, windowed),
        dynamic_shapes=(
            [{0: batch, 1: count} for count in steps],
            {1: batch} if ragged else None,
            [{0: batch, 1: steps[0]}] * 2 if windowed else None,
        ),
        strict=strict,
    )
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.affectrt.pairwise_attention.default) == 1
    other = inputs(3, (6, 2, 9), ragged, windowed)
    torch.testing.assert_close(program.module()(*other), model(*other))


def test_log_sums_are_for_the_backward_pass_alone(attention_problem: Make) -> None:
    problem = attention_problem().to(torch.float32, learn=True)
    flat = [modality for pair in problem.pairs for modality in pair]
    results = torch.ops.affectrt.pairwise_attention(*problem[:3], flat, problem.lengths, problem.windows)
    assert [x.requires_grad for x in results] == [True] * 6 + [False] * 6
