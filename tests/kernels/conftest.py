"""What the tests of both operators share: memory full of NaN, and problems of attention."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from affectrt_kernels import _native

SIX_PAIRS = [(asking, answering) for asking in range(3) for answering in range(3) if asking != answering]


@pytest.fixture
def poisoned_scratch() -> Iterator[None]:
    """Memory that the kernels take without filling it is NaN."""
    _native.poison_scratch(True)
    yield
    _native.poison_scratch(False)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh memory is NaN: torch's, what C++ keeps between calls, and what comes from the C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    torch.use_deterministic_algorithms(True)  # with it, torch.utils.deterministic fills new tensors
    _native.poison_scratch(True)
    perturb = -6  # M_PERTURB: fill with the complement of the value's low byte, so 256 gives 0xFF
    poisoned = mallopt is not None and mallopt(perturb, 256) == 1
    try:
        assert torch.empty(1000).isnan().all()
        if not poisoned or not np.isnan(np.empty(3001, np.float32)).all():
            pytest.skip("this C library cannot fill fresh memory (glibc's M_PERTURB)")
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        _native.poison_scratch(False)
        if mallopt is not None:
            mallopt(perturb, 0)


class AttentionProblem(NamedTuple):
    """Arguments of ``pairwise_attention``, in its order."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    pairs: list[tuple[int, int]]
    lengths: Tensor | None
    windows: list[Tensor] | None

    def to(self, dtype: torch.dtype, *, learn: bool = False) -> AttentionProblem:
        """The same numbers in another type, as leaves of their own; float32 stays views of a projection."""
        q, k, v = ([x.detach().to(dtype).requires_grad_(learn) for x in tensors] for tensors in self[:3])
        return self._replace(q=q, k=k, v=v)


@pytest.fixture
def attention_problem() -> Callable[..., AttentionProblem]:
    """Makes problems of all six pairs of three modalities; see ``make`` below."""

    def make(
        steps: tuple[int, int, int] = (5, 9, 7),
        batch: int = 3,
        heads: int = 2,
        dim: int = 8,
        *,
        ragged: bool = True,
        windowed: bool = True,
        padding: float = float("nan"),
    ) -> AttentionProblem:
        """Random rows; q, k and v are views of one projection for each pair.

        Ragged: the first row of the batch is full, in the second every modality but one is absent, and what
        lies beyond a length is ``padding``. Windowed: random windows, some empty, some all.
        """
        random = torch.Generator().manual_seed(sum(steps) * 100 + dim)
        lengths = None
        if ragged:
            lengths = torch.stack(
                [torch.randint(0, count + 1, (batch,), generator=random) for count in steps]
            )
            lengths[:, :1] = torch.tensor(steps)[:, None]
            lengths[1:, 1:2] = 0

        def part(modality: int, i: int) -> Tensor:
            rows = torch.randn(batch, 1 + steps[modality], 3 * heads * dim, generator=random)
            if lengths is not None:
                beyond = torch.arange(1 + steps[modality]) > lengths[modality, :, None]
                rows.masked_fill_(beyond[..., None], padding)
            chunk: Tensor = rows.chunk(3, dim=-1)[i]
            return chunk.view(batch, 1 + steps[modality], heads, dim)

        windows = None
        if windowed:
            windows = []
            for asking, answering in SIX_PAIRS:
                size = (batch, 1 + steps[asking], 2)
                edges = torch.randint(0, 2 + steps[answering], size, generator=random).sort(-1).values
                edges[:, 1::3, 1] = edges[:, 1::3, 0]
                edges[:, 2::3] = torch.tensor([0, 1 + steps[answering]])
                windows.append(edges)
        return AttentionProblem(
            q=[part(asking, 0) for asking, _ in SIX_PAIRS],
            k=[part(answering, 1) for _, answering in SIX_PAIRS],
            v=[part(answering, 2) for _, answering in SIX_PAIRS],
            pairs=SIX_PAIRS,
            lengths=lengths,
            windows=windows,
        )

    return make


def _moved(value: Any, device: str) -> Any:
    """``value`` with every tensor in it on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(_moved(part, device) for part in value) if isinstance(value, list | tuple) else value


@pytest.fixture(scope="session")
def triton_call() -> Iterator[Callable[..., Any]]:
    """Calls a launcher of Triton kernels on CPU tensors, with fresh memory full of NaN.

    With an NVIDIA GPU it runs there. Without, in a process of its own that interprets the kernels: Triton
    decides that once, when it is imported, and here another test may have imported it.
    """
    if torch.cuda.is_available():

        def on_gpu(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            torch.use_deterministic_algorithms(True)
            try:
                return _moved(function(*_moved(arguments, "cuda"), **options), "cpu")
            finally:
                torch.use_deterministic_algorithms(False)

        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which deterministic algorithms demand
            yield on_gpu
        return

    poison = torch.use_deterministic_algorithms
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=poison, initargs=(True,)) as pool:

        def interpreted(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            return pool.submit(function, *arguments, **options).result()

        with pytest.MonkeyPatch.context() as environment:
            environment.setenv(
                "TRITON_INTERPRET", "1"
            )  # for the process that starts now, and for no other test
            assert interpreted(torch.empty, 9).isnan().all()
        yield interpreted
