"""What ``benchmarks.gpu`` times: the recurrence, the attention and the whole fusion, ours and others'."""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from affectrt_kernels import attention_ops, ops, reference

INPUTS = 128
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3}
SIX_PAIRS = [(asking, answering) for asking in range(3) for answering in range(3) if asking != answering]
Run = Callable[[], Sequence[Tensor]]


class Contender(NamedTuple):
    """One way to compute a case; ``right`` is None where it computes something else on purpose."""

    name: str
    run: Run
    right: Run | None


class Case(NamedTuple):
    """One problem; ours comes first among those who compute it."""

    operator: str
    shape: str
    contenders: list[Contender]


@triton.jit
def _exchange(out: tl.tensor, steps: tl.tensor, H: tl.constexpr) -> None:
    unit = tl.arange(0, H)
    there = (unit * 37 + 11) % H
    h = unit.to(tl.float32)
    for _ in range(steps):
        h = tl.gather(h, there, 0) + 1.0
        h = tl.gather(h, there, 0) + 1.0
    tl.store(out + unit, h)


def exchange(steps: int, hidden: int) -> Run:
    """The floor of a recurrence: two dependent passes of the state through shared memory a step."""
    out = torch.empty(hidden, device="cuda")

    def run() -> Sequence[Tensor]:
        _exchange[(1,)](out, steps, H=hidden, num_warps=4, enable_fp_fusion=True)
        return [out]

    return run


def recurrences() -> Iterator[Case]:
    """One stream, one gate. cuDNN's GRU has the same shapes and other mathematics: its reset comes after."""
    for dtype in TOLERANCE:
        for steps in (50, 500):
            for batch in (1, 32):
                for hidden in (64, 128):
                    yield from _recurrence(dtype, steps, batch, hidden)


def _recurrence(dtype: torch.dtype, steps: int, batch: int, hidden: int) -> Iterator[Case]:
    torch.manual_seed(steps + batch + hidden)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(size, device="cuda") * scale).to(dtype).requires_grad_()

    x = normal(1, batch, steps, INPUTS)
    w_x, bias = normal(1, 2 * hidden, INPUTS, scale=INPUTS**-0.5), normal(1, 2 * hidden)
    w_h = normal(1, 2 * hidden, hidden, scale=hidden**-0.5)
    inputs = (x, w_x, w_h, bias)
    wide = tuple(part.detach().double().requires_grad_() for part in inputs)
    dy = torch.randn(1, batch, steps, hidden, device="cuda").to(dtype)
    gru = torch.nn.GRU(INPUTS, hidden, batch_first=True, device="cuda", dtype=dtype)
    step = torch.compile(_step, fullgraph=True, dynamic=False)

    def stepwise(x: Tensor, w_x: Tensor, w_h: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        sums = torch.baddbmm(bias[:, None], x[0], w_x[0].mT.expand(batch, -1, -1))
        h, states = x.new_zeros(batch, hidden), []
        for t in range(steps):
            h = step(sums[:, t], h, w_h[0, :hidden].mT, w_h[0, hidden:].mT)
            states.append(h)
        return torch.stack(states, 1)[None], h[None]

    def forwards(function: Callable[..., tuple[Tensor, Tensor]], arguments: Sequence[Tensor]) -> Run:
        def run() -> Sequence[Tensor]:
            with torch.no_grad():
                return function(*arguments)[:1]

        return run

    def both(function: Callable[..., tuple[Tensor, Tensor]], arguments: Sequence[Tensor]) -> Run:
        learned = arguments if len(arguments) > 1 else [*arguments, *gru.parameters()]

        def run() -> Sequence[Tensor]:
            y = function(*arguments)[0]
            return torch.autograd.grad(y, learned, dy.view_as(y).to(y.dtype))

        return run

    shape = f"{_name(dtype)} T={steps} B={batch} H={hidden}"
    for way, bound in (("forward", forwards), ("forward and backward", both)):
        right = bound(reference.gated_rnn, wide)
        yield Case(
            f"ghrnn {way}",
            shape,
            [
                Contender("affectrt", bound(ops.gated_rnn, inputs), right),
                Contender(
                    "cuDNN GRU (other mathematics)", bound(gru, (x[0].detach().requires_grad_(),)), None
                ),
                Contender("torch.compile of a step", bound(stepwise, inputs), right),
                Contender("eager", bound(reference.gated_rnn, inputs), right),
                Contender(
                    "floor: state exchange", exchange(steps * (2 if bound is both else 1), hidden), None
                ),
            ],
        )


def _step(sums: Tensor, h: Tensor, w_z: Tensor, w_g: Tensor) -> Tensor:
    sum_z, sum_g = sums.chunk(2, dim=-1)
    z = torch.sigmoid(sum_z + h @ w_z)
    return h + z * (torch.tanh(sum_g + (z * h) @ w_g) - h)


def attentions() -> Iterator[Case]:
    """Six pairs, four heads: ours in one launch, SDPA pair by pair."""
    for dtype in TOLERANCE:
        for batch in (1, 32):
            for dim in (8, 32):
                torch.manual_seed(batch + dim)
                rows = [torch.randn(batch, 1 + t, 4, dim, device="cuda").to(dtype) for t in (50, 500, 375)]
                q = [rows[asking].clone() for asking, _ in SIX_PAIRS]
                k, v = ([rows[answering].clone() for _, answering in SIX_PAIRS] for _ in range(2))
                qkv = (q, k, v)
                wide = tuple([part.double() for part in parts] for parts in qkv)

                def bind(function: Callable[..., Any], arguments: Sequence[Sequence[Tensor]]) -> Run:
                    return lambda: list(function(*arguments))

                yield Case(
                    "pairwise_attention forward",
                    f"{_name(dtype)} 50×500×375 B={batch} N=4 D={dim}",
                    [
                        Contender("affectrt", bind(_ours, qkv), bind(_reference, wide)),
                        Contender("SDPA for each pair", bind(_sdpa, qkv), bind(_reference, wide)),
                        Contender("eager", bind(_reference, qkv), bind(_reference, wide)),
                    ],
                )


def _ours(q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    return attention_ops.pairwise_attention(q, k, v, SIX_PAIRS)


def _reference(q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    return reference.pairwise_attention(q, k, v, SIX_PAIRS)[0]


def _sdpa(q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    attend = torch.nn.functional.scaled_dot_product_attention
    turned = [[x.transpose(1, 2) for x in parts] for parts in zip(q, k, v, strict=True)]
    return [attend(query, key, value).transpose(1, 2) for query, key, value in turned]


def fusions() -> Iterator[Case]:
    """The whole ghrnn-cma at batch 1, float32: ours is to take at most 100 µs as a graph on an H200."""
    from affectrt_training.models import ghrnn_cma, parts

    recurrence: Any = ghrnn_cma
    attention: Any = parts
    torch.manual_seed(0)
    model = ghrnn_cma.GhrnnCma().cuda().eval().requires_grad_(False)
    lengths = {"text": 50, "audio": 500, "vision": 375}
    given = [
        part
        for name, steps in lengths.items()
        for part in (
            torch.randn(1, steps, getattr(model.config, f"{name}_dim"), device="cuda"),
            torch.tensor([steps], device="cuda"),
        )
    ]
    wide = ghrnn_cma.GhrnnCma(model.config).cuda().eval().requires_grad_(False).double()
    wide.load_state_dict({name: part.double() for name, part in model.state_dict().items()})

    def eager() -> Sequence[Tensor]:
        ours = recurrence.gated_rnn, attention.pairwise_attention
        recurrence.gated_rnn = reference.gated_rnn
        attention.pairwise_attention = lambda *arguments: reference.pairwise_attention(*arguments)[0]
        try:
            outputs: Sequence[Tensor] = model(*given)
            return outputs
        finally:
            recurrence.gated_rnn, attention.pairwise_attention = ours

    def right() -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = wide(*(x.double() if x.is_floating_point() else x for x in given))
        return outputs

    yield Case(
        "fusion forward",
        "fp32 50×500×375 B=1",
        [Contender("affectrt", lambda: model(*given), right), Contender("eager", eager, right)],
    )


def cases() -> Iterator[Case]:
    """All of them, made anew at each call."""
    yield from recurrences()
    yield from attentions()
    yield from fusions()


def tolerance(case: Case) -> float:
    """How far a case may be from float64."""
    return TOLERANCE[torch.float16 if case.shape.startswith("fp16") else torch.float32]


def _name(dtype: torch.dtype) -> str:
    return "fp32" if dtype == torch.float32 else "fp16"
