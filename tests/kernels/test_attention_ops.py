"""Every forward pass of the attention against the float64 reference, and that against the equation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from affectrt_kernels import attention_ops, native, reference

# Largest difference from the float64 reference on the same (rounded) inputs, over 1 + its size.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

SHAPES: list[tuple[Any, ...]] = [  # steps, B, N, D
    ((1, 1, 1), 1, 1, 1),
    ((2, 3, 1), 3, 2, 8),
    ((63, 2, 20), 32, 1, 8),
    ((50, 500, 375), 1, 4, 8),
    ((50, 500, 375), 3, 4, 32),
    ((20, 1500, 63), 1, 4, 16),
    ((1, 1500, 500), 2, 2, 64),
    ((500, 63, 17), 3, 3, 40),
    ((130, 66, 33), 2, 2, 7),
]
NO_STEPS: list[tuple[Any, ...]] = [
    ((0, 3, 0), 2, 2, 8),
    ((0, 0, 0), 1, 1, 4),
    ((3, 4, 5), 0, 2, 8),
    ((3, 4, 5), 2, 0, 8),
]
MASKS = [(False, False), (True, False), (False, True), (True, True)]
Make = Callable[..., Any]


def run_native(problem: Any, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    q, k, v = ([x.detach().numpy() for x in tensors] for tensors in problem[:3])
    lengths = None if problem.lengths is None else problem.lengths.numpy()
    windows = None if problem.windows is None else [window.numpy() for window in problem.windows]
    found = native.pairwise_attention(q, k, v, problem.pairs, lengths, windows, **options)
    outputs, log_sums = ([torch.from_numpy(array) for array in arrays] for arrays in found)
    return outputs, log_sums


def assert_close(got: list[Tensor], want: list[Tensor], dtype: torch.dtype) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_reference_is_the_equation() -> None:
    """One head of width 1, scalars only: eq. 5–7 of MulG, typed again; the third key is out of the window."""
    q, k, v = [0.5, -2.0], [0.1, 1.5, 9.0, -0.7], [3.0, -1.0, 100.0, 2.0]
    rows = [torch.tensor(x, dtype=torch.float64).view(1, -1, 1, 1) for x in (q, k, v)]
    windows = [torch.tensor([[[3, 4], [1, 2]]])]
    (output,), (log_sum,) = reference.pairwise_attention(
        rows[:1], rows[1:2], rows[2:], [(0, 1)], torch.tensor([[1], [3]]), windows
    )
    for i, seen in enumerate([[0, 3], [0, 1]]):
        weights = np.exp([q[i] * k[j] for j in seen])
        assert float(output[0, i]) == pytest.approx(weights @ [v[j] for j in seen] / weights.sum(), abs=1e-14)
        assert float(log_sum[0, 0, i]) == pytest.approx(np.log(weights.sum()), abs=1e-14)


def test_windows_are_half_open_in_time() -> None:
    times = torch.tensor([[0.0, 0.5, 1.0, 1.0, 2.0, 0.1]], dtype=torch.float64)
    queries = torch.tensor([[-0.1, 0.0, 1.0, 1.5, 2.0, 9.0]], dtype=torch.float64)
    windows = reference.key_windows(queries, times, torch.tensor([5]), 1.0)
    assert windows.tolist() == [[[1, 1], [1, 1], [1, 2], [2, 5], [3, 5], [5, 6], [6, 6]]]


@pytest.mark.parametrize(("ragged", "windowed"), MASKS)
@pytest.mark.parametrize("shape", SHAPES + NO_STEPS, ids=str)
@pytest.mark.parametrize("instruction_set", native.instruction_sets())
@pytest.mark.usefixtures("poisoned_memory")
def test_native(
    attention_problem: Make, instruction_set: str, shape: tuple[Any, ...], ragged: bool, windowed: bool
) -> None:
    problem = attention_problem(*shape, ragged=ragged, windowed=windowed)
    outputs, log_sums = reference.pairwise_attention(*problem.to(torch.float64))
    for threads in (1, 3):
        found = run_native(problem, instruction_set=instruction_set, threads=threads)
        assert_close(found[0], outputs, torch.float32)
        assert_close(found[1], log_sums, torch.float32)


@pytest.mark.parametrize(("ragged", "windowed"), MASKS)
@pytest.mark.parametrize("shape", SHAPES[:4] + NO_STEPS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_operator(
    attention_problem: Make, dtype: torch.dtype, shape: tuple[Any, ...], ragged: bool, windowed: bool
) -> None:
    problem = attention_problem(*shape, ragged=ragged, windowed=windowed).to(dtype)
    outputs, log_sums = reference.pairwise_attention(*problem.to(torch.float64))
    assert_close(attention_ops.pairwise_attention(*problem), outputs, dtype)
    flat = [modality for pair in problem.pairs for modality in pair]
    results = torch.ops.affectrt.pairwise_attention(
        *problem[:3], flat, problem.lengths, problem.windows or []
    )
    assert_close(results[6:], log_sums, torch.promote_types(dtype, torch.float32))


def test_large_scores_neither_overflow_nor_vanish(attention_problem: Make) -> None:
    problem = attention_problem((20, 90, 33), 2, 2, 16)
    large = problem._replace(q=[q * 300 for q in problem.q])
    outputs, log_sums = run_native(large)
    want = reference.pairwise_attention(*large.to(torch.float64))
    # Sums of products in the thousands are known to a few 1e-4, and so are the weights.
    for got, exact in zip(log_sums, want[1], strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=5e-6, atol=1e-3)
    for got, exact in zip(outputs, want[0], strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=5e-3)


def test_windows_beyond_the_keys_are_as_wide_as_the_keys(attention_problem: Make) -> None:
    problem = attention_problem()
    problem.windows[0][:] = torch.tensor([-5, 2**40])
    problem.windows[1][:] = torch.tensor([2**40, 2**41])
    problem.windows[2][:] = torch.tensor([4, -3])
    problem.windows[3][:] = torch.tensor([-(2**62), 1])
    outputs, log_sums = reference.pairwise_attention(*problem.to(torch.float64))
    for instruction_set in native.instruction_sets():
        found = run_native(problem, instruction_set=instruction_set)
        assert_close(found[0], outputs, torch.float32)
        assert_close(found[1], log_sums, torch.float32)


def test_nan_stays_in_its_row_and_head(attention_problem: Make) -> None:
    problem = attention_problem(ragged=False, windowed=False)
    problem.q[0][1, 2, 0, 3] = float("nan")
    (output, *_), _ = run_native(problem)
    assert output[1, 2, 0].isnan().all()
    output[1, 2, 0] = 0.0
    assert output.isfinite().all()


WRONG: list[tuple[str, Callable[[Any], Any], str]] = [
    (
        "rank",
        lambda p: {"q": [p.q[0][0], *p.q[1:]]},
        r"q\[0\]: expected \(B, 1\+T, N, D\), got shape \(6, 2, 8\)",
    ),
    (
        "keys",
        lambda p: {"k": [p.k[0][:, :-1], *p.k[1:]]},
        r"v\[0\]: expected \(B, 1\+T, N, D\) = \(3, 9, 2, 8\), got shape \(3, 10, 2, 8\)",
    ),
    ("rows", lambda p: {"v": [*p.v[:5], p.v[5][:, :0]]}, r"v\[5\]: expected "),
    ("count", lambda p: {"k": p.k[:5]}, r"k: expected one .* for each of 6 pairs, got 5"),
    (
        "none",
        lambda p: {"q": [], "k": [], "v": [], "pairs": [], "windows": None},
        "pairs: expected at least one",
    ),
    (
        "modality",
        lambda p: {"pairs": [(0, 3), *p.pairs[1:]]},
        r"pairs\[0\]: expected modalities that are rows of lengths, got \(0, 3\)",
    ),
    ("negative", lambda p: {"pairs": [(-1, 1), *p.pairs[1:]]}, r"pairs\[0\]: expected modalities"),
    ("batch", lambda p: {"lengths": p.lengths[:, :2]}, r"lengths: expected \(M, B\)"),
    (
        "integer",
        lambda p: {"lengths": p.lengths.int()},
        r"lengths: expected (torch\.)?int64, got (torch\.)?int32",
    ),
    (
        "length",
        lambda p: {"lengths": p.lengths + torch.tensor([[0], [1], [0]])},
        r"lengths.*expected 0\.\.9, got 10",
    ),
    ("below", lambda p: {"lengths": p.lengths - 1}, r"lengths.*expected 0\.\.5, got -1"),
    (
        "window",
        lambda p: {"windows": [p.windows[0][:, 1:], *p.windows[1:]]},
        r"windows\[0\]: expected \(B, 1\+T, 2\) = \(3, 6, 2\), got (shape )?\(3, 5, 2\)",
    ),
    (
        "edges",
        lambda p: {"windows": [p.windows[0].int(), *p.windows[1:]]},
        r"windows\[0\]: expected (torch\.)?int64, got (torch\.)?int32",
    ),
    ("windows", lambda p: {"windows": p.windows[:5]}, r"windows: expected one .* for each of 6 pairs, got 5"),
]


@pytest.mark.parametrize(("change", "message"), [entry[1:] for entry in WRONG], ids=[e[0] for e in WRONG])
def test_what_does_not_fit_is_refused_with_expected_and_got(
    attention_problem: Make, change: Callable[[Any], Any], message: str
) -> None:
    problem = attention_problem()
    broken = problem._replace(**change(problem))
    for implementation in (reference.pairwise_attention, attention_ops.pairwise_attention):
        with pytest.raises(ValueError, match=f"pairwise_attention: .*{message}"):
            implementation(*broken)
    with pytest.raises(ValueError, match=message):
        run_native(broken)


def test_native_refuses_other_types_and_layouts(attention_problem: Make) -> None:
    problem = attention_problem()
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (problem.to(torch.float64), {}, r"q\[0\]: expected float32, got float64"),
        (
            problem._replace(v=[x.transpose(2, 3).contiguous().transpose(2, 3) for x in problem.v]),
            {},
            r"v\[0\]: expected heads and their width to lie contiguously, got strides",
        ),
        (problem, {"threads": 0}, r"threads: expected 1\.\.1024, got 0"),
        (problem, {"instruction_set": "mmx"}, r"instruction_set: expected one of .*baseline, got mmx"),
    ]
    for broken, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            run_native(broken, **options)
    mixed = problem._replace(k=[x.double() for x in problem.k])
    with pytest.raises(
        ValueError, match=r"k\[0\]: expected the type of q\[0\], torch.float32, got torch.float64"
    ):
        attention_ops.pairwise_attention(*mixed)
