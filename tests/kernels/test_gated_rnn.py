"""Every implementation of the recurrence against the float64 reference, and that against the equations."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from affectrt_kernels import native, ops, reference

# Largest absolute difference from the float64 reference on the same (rounded) inputs; states are within ±1.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

SHAPES = [  # S, B, T, I, H
    (1, 1, 1, 1, 1),
    (3, 5, 7, 6, 4),
    (2, 19, 33, 5, 40),
    (3, 4, 40, 128, 64),
    (1, 1, 63, 80, 100),
    (1, 3, 300, 17, 65),
    (2, 33, 2, 3, 8),
]
STEPS, HIDDEN, BATCHES = [1, 2, 63, 500, 1500], [8, 40, 64, 100, 128, 200], [1, 3, 32]
ZERO_SIZES = [(0, 2, 3, 4, 5), (1, 0, 4, 3, 3), (2, 3, 0, 3, 3), (2, 2, 3, 0, 5), (1, 2, 3, 4, 0)]


class Problem(NamedTuple):
    x: Tensor
    w_x: Tensor
    w_h: Tensor
    bias: Tensor
    lengths: Tensor | None
    h0: Tensor | None

    def double(self) -> Problem:
        x, w_x, w_h, bias, lengths, h0 = self
        return Problem(
            x.double(),
            w_x.double(),
            w_h.double(),
            bias.double(),
            lengths,
            None if h0 is None else h0.double(),
        )


def make(
    shape: tuple[int, ...], gates: int, *, ragged: bool = True, dtype: torch.dtype = torch.float32
) -> Problem:
    """Random weights and inputs; ragged rows have lengths 0 and T among them, and NaN beyond their end."""
    streams, batch, steps, inputs, hidden = shape
    random = torch.Generator().manual_seed(hash((shape, gates)) % 2**32)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=random) * scale).to(dtype)

    blocks = (gates + 1) * hidden
    problem = Problem(
        x=normal(streams, batch, steps, inputs),
        w_x=normal(streams, blocks, inputs, scale=max(inputs, 1) ** -0.5),
        w_h=normal(streams, blocks, hidden, scale=max(hidden, 1) ** -0.5),
        bias=normal(streams, blocks),
        lengths=None,
        h0=None,
    )
    if not ragged:
        return problem
    lengths = torch.randint(0, steps + 1, (batch,), generator=random)
    lengths[:1], lengths[1:2] = steps, 0
    beyond = torch.arange(steps) >= lengths[:, None]
    return problem._replace(
        x=problem.x.masked_fill(beyond[..., None], float("nan")),
        lengths=lengths,
        h0=normal(streams, batch, hidden).clamp(-1, 1),
    )


def run_native(problem: Problem, **options: object) -> tuple[Tensor, Tensor]:
    arrays = (None if t is None else t.numpy() for t in problem)
    y, h_n = native.gated_rnn(*arrays, **options)  # type: ignore[arg-type]
    return torch.from_numpy(y), torch.from_numpy(h_n)


def assert_close(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("gates", [1, 2])
def test_reference_is_the_equations(gates: int) -> None:
    """One unit, scalars only: eq. 12 of GHRNN-CMA and eq. 1–4 of MulG, typed again from the papers."""
    problem = make((1, 1, 5, 1, 1), gates, ragged=False, dtype=torch.float64)
    w_x, w_h, bias = (t.flatten().tolist() for t in (problem.w_x, problem.w_h, problem.bias))
    h = 0.0
    for x, y in zip(
        problem.x.flatten().tolist(), reference.gated_rnn(*problem, gates=gates)[0].flatten(), strict=True
    ):
        z = 1 / (1 + np.exp(-(w_x[0] * x + w_h[0] * h + bias[0])))
        r = z if gates == 1 else 1 / (1 + np.exp(-(w_x[1] * x + w_h[1] * h + bias[1])))
        candidate = np.tanh(w_x[-1] * x + w_h[-1] * (r * h) + bias[-1])
        h = (1 - z) * h + z * candidate
        assert float(y) == pytest.approx(h, abs=1e-15)


def test_reference_reverse_walks_each_row_from_its_own_end() -> None:
    problem = make((2, 4, 6, 3, 5), 2, dtype=torch.float64)
    assert problem.lengths is not None
    y, h_n = reference.gated_rnn(*problem, gates=2, reverse=True)
    for row, length in enumerate(problem.lengths.tolist()):
        alone = problem._replace(
            x=problem.x[:, row : row + 1, :length].flip(2),
            lengths=None,
            h0=None if problem.h0 is None else problem.h0[:, row : row + 1],
        )
        y_alone, h_alone = reference.gated_rnn(*alone, gates=2)
        torch.testing.assert_close(y[:, row, :length], y_alone[:, 0].flip(1), rtol=0, atol=1e-14)
        torch.testing.assert_close(h_n[:, row], h_alone[:, 0], rtol=0, atol=1e-14)
        assert not y[:, row, length:].any()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gates", [1, 2])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("shape", SHAPES + ZERO_SIZES, ids=str)
@pytest.mark.parametrize("instruction_set", native.instruction_sets())
@pytest.mark.usefixtures("poisoned_memory")
def test_native(
    instruction_set: str, shape: tuple[int, ...], ragged: bool, gates: int, reverse: bool
) -> None:
    problem = make(shape, gates, ragged=ragged)
    want = reference.gated_rnn(*problem.double(), gates=gates, reverse=reverse)
    got = run_native(problem, gates=gates, reverse=reverse, instruction_set=instruction_set)
    assert_close(got, want, torch.float32)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.usefixtures("poisoned_memory")
def test_operator_at_every_size(steps: int, hidden: int, batch: int) -> None:
    place = STEPS.index(steps) + HIDDEN.index(hidden) + BATCHES.index(batch)
    gates, reverse = 1 + place % 2, place % 3 == 0  # in turn, along every axis
    problem = make((1, batch, steps, 24, hidden), gates, ragged=batch > 1)
    want = reference.gated_rnn(*problem.double(), gates=gates, reverse=reverse)
    assert_close(ops.gated_rnn(*problem, gates=gates, reverse=reverse), want, torch.float32)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gates", [1, 2])
@pytest.mark.parametrize("shape", SHAPES + ZERO_SIZES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_operator(dtype: torch.dtype, shape: tuple[int, ...], gates: int, reverse: bool) -> None:
    problem = make(shape, gates, dtype=dtype)
    want = reference.gated_rnn(*problem.double(), gates=gates, reverse=reverse)
    assert_close(ops.gated_rnn(*problem, gates=gates, reverse=reverse), want, dtype)


@pytest.mark.parametrize("shape", [(2, 37, 21, 9, 24), (3, 16, 40, 80, 64), (1, 2, 9, 17, 65)], ids=str)
@pytest.mark.parametrize("instruction_set", native.instruction_sets())
def test_native_result_does_not_depend_on_threads(instruction_set: str, shape: tuple[int, ...]) -> None:
    problem = make(shape, 1)
    y, h_n = run_native(problem, instruction_set=instruction_set)
    for threads in (2, 3, 7):
        shared = run_native(problem, instruction_set=instruction_set, threads=threads)
        assert torch.equal(y, shared[0]) and torch.equal(h_n, shared[1])


def test_native_row_is_the_same_alone_and_in_a_batch() -> None:
    """Up to rounding: one row is summed in another order than several."""
    problem = make((2, 37, 21, 9, 24), 1)
    y, h_n = run_native(problem)
    for row in (0, 1, 16, 36):
        here = slice(row, row + 1)
        assert problem.lengths is not None and problem.h0 is not None
        alone = problem._replace(
            x=problem.x[:, here].contiguous(),
            lengths=problem.lengths[here],
            h0=problem.h0[:, here].contiguous(),
        )
        for got, want in zip((y[:, here], h_n[:, here]), run_native(alone), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE[torch.float32])


def test_native_saturates_and_keeps_nan_in_its_row() -> None:
    problem = make((1, 3, 5, 4, 6), 2, ragged=False)
    problem.x[:, 0] *= 1e30
    problem.x[0, 1, 2, 0] = float("nan")
    y, _ = run_native(problem, gates=2)
    assert y[:, 0].abs().max() <= 1
    assert y[:, 1, 2:].isnan().all() and not y[:, 1, :2].isnan().any()
    assert not y[:, 2].isnan().any()


def test_native_lets_other_threads_run() -> None:
    problem = make((1, 16, 4000, 64, 128), 1, ragged=False)
    seconds = []

    def compute() -> None:
        start = time.perf_counter()
        run_native(problem, instruction_set=native.instruction_sets()[-1])
        seconds.append(time.perf_counter() - start)

    worker = threading.Thread(target=compute)
    longest, last = 0.0, time.perf_counter()
    worker.start()
    while worker.is_alive():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    worker.join()
    assert longest < seconds[0] / 2


ARRAYS = ["x", "w_x", "w_h", "bias", "lengths", "h0"]
WRONG_SHAPES = [
    ("x", (3, 5, 7), r"x: expected \(S, B, T, I\), got shape \(3, 5, 7\)"),
    ("w_x", (3, 8, 5), r"w_x: expected \(S, \(gates\+1\)·H, I\) = \(3, 8, 6\), got shape \(3, 8, 5\)"),
    ("w_h", (3, 4), r"w_h: expected \(S, \(gates\+1\)·H, H\), got shape \(3, 4\)"),
    ("w_h", (3, 4, 4), r"w_h: expected \(S, \(gates\+1\)·H, H\) = \(3, 8, 4\), got shape \(3, 4, 4\)"),
    ("bias", (3, 4), r"bias: expected \(S, \(gates\+1\)·H\) = \(3, 8\), got shape \(3, 4\)"),
    ("h0", (3, 4, 4), r"h0: expected \(S, B, H\) = \(3, 5, 4\), got shape \(3, 4, 4\)"),
    ("lengths", (4,), r"lengths: expected \(B,\) = \(5,\), got shape \(4,\)"),
]


@pytest.mark.parametrize(("name", "shape", "message"), WRONG_SHAPES)
def test_wrong_shape_says_expected_and_got(name: str, shape: tuple[int, ...], message: str) -> None:
    problem = make((3, 5, 7, 6, 4), 1)
    dtype = torch.int64 if name == "lengths" else torch.float32
    broken = problem._replace(**{name: torch.zeros(shape, dtype=dtype)})
    for implementation in (reference.gated_rnn, ops.gated_rnn):
        with pytest.raises(ValueError, match=message):
            implementation(*broken)
    if name == "w_x":  # in C++ the weights come first, so then it is x that doesn't fit
        message = r"x: expected \(S, B, T, I\) = \(3, 5, 7, 5\), got shape \(3, 5, 7, 6\)"
    with pytest.raises(ValueError, match=message):
        run_native(broken)


@pytest.mark.parametrize("length", [-1, 8, 2**62])
def test_wrong_length_names_its_row(length: int) -> None:
    problem = make((3, 5, 7, 6, 4), 1)
    assert problem.lengths is not None
    problem.lengths[3] = length
    message = rf"lengths\[3\]: expected 0\.\.7, got {length}"
    for implementation in (reference.gated_rnn, ops.gated_rnn):
        with pytest.raises(ValueError, match=message):
            implementation(*problem)
    with pytest.raises(ValueError, match=message):
        run_native(problem)


def test_wrong_type_layout_and_options_are_refused() -> None:
    problem = make((3, 5, 7, 6, 4), 1)
    arrays: dict[str, Any] = {
        name: t.numpy() for name, t in zip(ARRAYS, problem, strict=True) if t is not None
    }
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"w_x": arrays["w_x"].astype(np.float64)}, "w_x: expected float32, got float64"),
        ({"lengths": arrays["lengths"].astype(np.int32)}, "lengths: expected int64, got int32"),
        ({"bias": arrays["bias"].astype(">f4")}, "bias: expected float32, got >f4"),
        ({"h0": arrays["h0"][..., ::-1]}, "h0: expected a C-contiguous array"),
        ({"x": arrays["x"].tolist()}, "x: expected a numpy array, got <class 'list'>"),
        ({"gates": 3}, "gates: expected 1 or 2, got 3"),
        ({"threads": 0}, r"threads: expected 1\.\.1024, got 0"),
        ({"instruction_set": "mmx"}, "instruction_set: expected one of .*baseline, got mmx"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            native.gated_rnn(**{**arrays, **change})
    with pytest.raises(ValueError, match=r"gates: expected 1 or 2, got 3"):
        ops.gated_rnn(*problem, gates=3)
    with pytest.raises(ValueError, match=r"w_h: expected the type of x, torch.float32, got torch.float64"):
        ops.gated_rnn(*problem._replace(w_h=problem.w_h.double()))
    assert problem.lengths is not None
    with pytest.raises(ValueError, match=r"lengths: expected torch.int64, got torch.int32"):
        ops.gated_rnn(*problem._replace(lengths=problem.lengths.int()))


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_native_needs_no_torch() -> None:
    code = "import sys, affectrt_kernels.native; print(sorted({'torch', 'affectrt'} & set(sys.modules)))"
    assert run_python(code) == "[]\n"


def test_missing_extension_says_how_to_build_it() -> None:
    code = "import sys; sys.modules['affectrt_kernels._native'] = None; import affectrt_kernels.native"
    assert "_native is not built" in (out := run_python(code)) and "pip install -e ." in out


def test_missing_triton_says_how_to_install_it() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; from affectrt_kernels import ops; "
        "ops.triton_kernels('triton_gated_rnn')"
    )
    out = run_python(code)
    assert "ImportError: tensors on an NVIDIA GPU need Triton" in out
    assert "pip install affectrt[kernels]" in out
