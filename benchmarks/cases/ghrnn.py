"""The recurrence of GHRNN-CMA (eq. 12), and its sibling with two gates: random weights, float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from affectrt_kernels import native, reference
from benchmarks.peers import eager, onednn
from benchmarks.peers.onnx_runtime import Array, Session, tied_gru
from benchmarks.timing import Arrays, Case, Contender, difference, difference_of


@dataclass(frozen=True)
class Size:
    """One problem."""

    streams: int
    """Independent recurrences, S; GHRNN-CMA has three."""
    batch: int
    """Sequences, B. Four is what one live result takes: the fusion, and again without each modality."""
    steps: int
    """Length, T."""
    inputs: int
    """Features per step, I."""
    hidden: int = 64
    """State size, H."""
    gates: int = 1
    held_to_target: bool = False
    """Whether the project's targets are set for this size."""

    def __str__(self) -> str:
        sizes = f"S={self.streams} B={self.batch} T={self.steps} I={self.inputs} H={self.hidden}"
        return f"{sizes} gates={self.gates}"


SIZES = (
    Size(1, 1, 50, 80, held_to_target=True),
    Size(1, 1, 500, 80, held_to_target=True),
    Size(3, 1, 51, 128),
    Size(3, 1, 500, 128),
    Size(3, 4, 51, 128),
    Size(1, 32, 50, 80),
    Size(1, 1, 500, 80, gates=2),
)
COMPILED_WHOLE = 64
"""Steps up to which ``torch.compile`` gets the whole loop, which it unrolls: 50 take half a minute."""


def cases(threads: Iterable[int], quick: bool) -> list[Case]:
    """Every size with every number of threads; ``quick``: the first size, nothing compiled."""
    sizes = SIZES[:1] if quick else SIZES
    return [_case(size, count, compiles=not quick) for size in sizes for count in threads]


def _case(size: Size, threads: int, compiles: bool) -> Case:
    generator = np.random.default_rng(0)

    def draw(scale: float, *shape: int) -> Array:
        return (scale * generator.standard_normal(shape)).astype(np.float32)

    streams, batch, hidden, gates = size.streams, size.batch, size.hidden, size.gates
    blocks = (gates + 1) * hidden
    arrays: tuple[Array, Array, Array, Array] = (
        draw(1.0, streams, batch, size.steps, size.inputs),
        draw(size.inputs**-0.5, streams, blocks, size.inputs),
        draw(hidden**-0.5, streams, blocks, hidden),
        draw(0.1, streams, blocks),
    )
    x, *weights = arrays
    tensors = [torch.from_numpy(array) for array in arrays]
    truth = [y.numpy() for y in reference.gated_rnn(*(t.double() for t in tensors), gates=gates)]

    prepared = native.GatedRnn(*weights, gates=gates)
    out = (
        np.empty((streams, batch, size.steps, hidden), np.float32),
        np.empty((streams, batch, hidden), np.float32),
    )

    held = size.held_to_target and threads == 1
    peers = [
        _unprepared(arrays, gates, threads, truth),
        _onnx_runtime(arrays, gates, threads, truth, 2.0 if held else None),
        _torch(
            "torch eager, reference loop", reference.gated_rnn, tensors, gates, truth, 10.0 if held else None
        ),
        _torch("torch eager, lean loop", eager.gated_rnn, tensors, gates, truth, 10.0 if held else None),
    ]
    if compiles and size.held_to_target:
        peers.append(_torch(*_compiled(size), tensors, gates, truth))
    if gates == 1:
        peers.append(_torch_gru(tensors, hidden))
    if onednn.library() is not None:
        gru = onednn.Gru(*arrays, gates=gates, threads=threads)
        peers.append(Contender(f"oneDNN {onednn.version()} GRU", gru, difference_of(gru, gru.outputs, truth)))
    return Case(
        operator="ghrnn",
        shape=str(size),
        threads=threads,
        ours=Contender(
            "native",
            lambda: prepared(x, threads=threads, out=out),
            lambda: difference(prepared(x, threads=threads, out=out), truth),
        ),
        peers=peers,
        ours_threads=threads,
    )


def _unprepared(arrays: Sequence[Array], gates: int, threads: int, truth: Arrays) -> Contender:
    """Ours, packing its weights in every call."""

    def run() -> tuple[Array, Array]:
        x, w_x, w_h, bias = arrays
        return native.gated_rnn(x, w_x, w_h, bias, gates=gates, threads=threads)

    return Contender("native, weights packed in every call", run, lambda: difference(run(), truth))


def _onnx_runtime(
    arrays: Sequence[Array], gates: int, threads: int, truth: Arrays, target: float | None
) -> Contender:
    x, w_x, w_h, bias = arrays
    streams, batch, steps, _ = x.shape
    hidden = w_h.shape[2]
    session = Session(
        tied_gru(w_x, w_h, bias, gates),
        {f"x{s}": x[s].swapaxes(0, 1) for s in range(streams)},
        {f"y{s}": (steps, 1, batch, hidden) for s in range(streams)}
        | {f"h{s}": (1, batch, hidden) for s in range(streams)},
        threads,
    )

    def outputs() -> list[Array]:
        got = session.outputs()
        states = np.stack([y[:, 0].swapaxes(0, 1) for y in got[:streams]])
        return [states, np.concatenate(got[streams:])]

    return Contender("onnxruntime GRU, tied weights", session, difference_of(session, outputs, truth), target)


def _torch(
    name: str,
    gated_rnn: Callable[..., tuple[Tensor, Tensor]],
    tensors: Sequence[Tensor],
    gates: int,
    truth: Arrays,
    target: float | None = None,
) -> Contender:
    def run() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return gated_rnn(*tensors, gates=gates)

    return Contender(name, run, lambda: difference([y.numpy() for y in run()], truth), target)


def _compiled(size: Size) -> tuple[str, Callable[..., tuple[Tensor, Tensor]]]:
    """The lean loop compiled whole; where it is too long for that, its step alone."""
    if size.steps <= COMPILED_WHOLE:
        return "torch.compile of the lean loop", torch.compile(eager.gated_rnn, dynamic=False, fullgraph=True)
    step = torch.compile(eager.step, dynamic=False, fullgraph=True)
    return "torch.compile of its step, looped", partial(eager.gated_rnn, step=step)


def _torch_gru(tensors: Sequence[Tensor], hidden: int) -> Contender:
    """Resets after the product, so its numbers are others whatever its weights."""
    x = [rows.transpose(0, 1).contiguous() for rows in tensors[0]]
    grus = [torch.nn.GRU(x[0].shape[2], hidden).eval().requires_grad_(False) for _ in x]

    def run() -> None:
        with torch.inference_mode():
            for gru, rows in zip(grus, x, strict=True):
                gru(rows)

    return Contender("torch.nn.GRU (same shapes, other mathematics)", run, None)
