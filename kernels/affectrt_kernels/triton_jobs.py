"""Which kernels a model needs compiled ahead of time, with which arguments, constants and grids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from affectrt_kernels import (
    triton_attention,
    triton_flash,
    triton_flash_backward,
    triton_gated_rnn,
    triton_recurrence,
)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
BYTES = {"fp32": 4, "fp16": 2, "i64": 8}
ALIGNED = 16
"""What Triton's compiler distinguishes: whether a pointer or an integer is a multiple of this."""


@dataclass(frozen=True)
class Shapes:
    """What of a model's shape is compiled in; batch, steps, streams, heads and input width are not."""

    hidden: int
    """State size of the recurrences."""
    dim: int
    """Width of an attention head."""
    row: int
    """Width of all heads."""
    pairs: tuple[tuple[int, int], ...]
    """Which modality asks and which answers, as rows of the lengths."""
    windowed: bool = False
    """Whether time limits attention."""


class Argument(NamedTuple):
    """One parameter of a compiled kernel."""

    name: str
    type: str
    """As Triton writes it: ``*fp16`` is a pointer, ``i32`` an integer."""
    access: str
    """``read``, ``write``, ``read, write``, or ``value`` for an integer."""
    divisible_by: int
    """What a pointer, in bytes, or an integer was taken to be a multiple of: anything else is undefined."""


@dataclass(frozen=True)
class Job:
    """One kernel to compile."""

    name: str
    kernel: Any
    types: Mapping[str, str | tuple[str, ...]]
    """Of the arguments; those with more than one entry come as a tuple, one a pair."""
    unaligned: frozenset[str]
    written: frozenset[str]
    constants: Mapping[str, Any]
    options: Mapping[str, int | bool]
    grid: str
    hidden: int

    def signature(self) -> dict[str, str | tuple[str, ...]]:
        """As Triton's compiler wants it."""
        return {name: self.types.get(name, "constexpr") for name in self.kernel.arg_names}

    def attributes(self) -> dict[tuple[int, ...], list[list[Any]]]:
        """What the compiler may take for granted, by place."""
        return {
            place: [["tt.divisibility", argument.divisible_by]]
            for place, argument in self._places()
            if argument.divisible_by == ALIGNED
        }

    def arguments(self) -> list[Argument]:
        """The compiled kernel's parameters in order, but for what Triton appends."""
        return [argument for _, argument in self._places()]

    def _places(self) -> Iterator[tuple[tuple[int, ...], Argument]]:
        for position, name in enumerate(self.kernel.arg_names):
            types = self.types.get(name, ())
            if isinstance(types, str):
                yield (position,), self._argument(name, name, types)
            else:
                for pair, type_ in enumerate(types):
                    yield (position, pair), self._argument(name, f"{name}[{pair}]", type_)

    def _argument(self, name: str, label: str, type_: str) -> Argument:
        pointer = type_.startswith("*")
        access = "value"
        if pointer:
            both = name == "sums" and self.kernel is triton_recurrence.backward
            access = "read, write" if both else "write" if name in self.written else "read"
        divisible_by = ALIGNED
        if name in self.unaligned:
            divisible_by = BYTES[type_[1:]] if pointer else 1
        return Argument(label, type_, access, divisible_by)


def jobs(shapes: Sequence[Shapes]) -> list[Job]:
    """Both operators, forwards and backwards, in float32 and float16, for each of ``shapes`` once."""
    found = {job.name: job for one in shapes for dtype in DTYPES for job in _of(one, dtype)}
    return list(found.values())


def _of(shapes: Shapes, dtype: str) -> Iterator[Job]:
    for tiled in (False, True):
        if not tiled or triton_gated_rnn.tiles_fit(shapes.hidden, DTYPES[dtype], gates=1):
            yield _recurrence(triton_recurrence.forward, shapes, dtype, tiled)
            yield _recurrence(triton_recurrence.backward, shapes, dtype, tiled)
    for many in (False, True):
        if many and triton_attention.plan(DTYPES[dtype], shapes.dim, many=True) == triton_attention.plan(
            DTYPES[dtype], shapes.dim, many=False
        ):
            continue
        yield _attention(triton_flash.forward, shapes, dtype, many)
        yield _attention(triton_flash_backward.backward_queries, shapes, dtype, many)
        yield _attention(triton_flash_backward.backward_keys, shapes, dtype, many)


def _recurrence(kernel: Any, shapes: Shapes, dtype: str, tiled: bool) -> Job:
    plan = triton_gated_rnn.plan(shapes.hidden, gates=1, tiled=tiled)
    wide = {
        "sums": "*fp32",
        "before": "*fp32",
        "dh0": "*fp32",
        "lengths": "*i64",
        "batch": "i32",
        "steps": "i32",
    }
    same = dict.fromkeys(("w_h", "w_t", "h0", "y", "h_n", "dy", "dh_n"), f"*{dtype}")
    rows = f"{plan.rows}_row{'s' if tiled else ''}"
    return Job(
        name=f"gated_rnn_{kernel.__name__}_{rows}_h{shapes.hidden}_{dtype}",
        kernel=kernel,
        types={name: type_ for name, type_ in {**wide, **same}.items() if name in kernel.arg_names},
        unaligned=frozenset({"w_h", "w_t", "batch", "steps"}),
        written=frozenset({"y", "h_n", "dh0"}),
        constants=plan.constants(shapes.hidden, gates=1, reverse=False),
        options=plan.options(),
        grid=f"(ceil(batch / {plan.rows}), streams, 1)",
        hidden=shapes.hidden,
    )


def _attention(kernel: Any, shapes: Shapes, dtype: str, many: bool) -> Job:
    plan = triton_attention.plan(DTYPES[dtype], shapes.dim, many=many)
    pairs = len(shapes.pairs)
    by_keys = kernel is triton_flash_backward.backward_keys
    types: dict[str, str | tuple[str, ...]] = {"lengths": "*i64"}
    same = ("q", "k", "v", "d_outputs", "outputs", "dq", "dk", "dv")
    strides = [f"{side}_{axis}" for side in "qkv" for axis in ("batch", "time")]
    types |= dict.fromkeys(same, (f"*{dtype}",) * pairs) | dict.fromkeys(strides, ("i32",) * pairs)
    types |= {"log_sums": ("*fp32",) * pairs}
    absent: dict[str, None] = {}
    for name in triton_flash.ROW_COUNTS:
        if int(name[-1]) < pairs:
            types[name] = "i32"
        else:
            absent[name] = None
    if shapes.windowed:
        types["windows"] = ("*i64",) * pairs
    else:
        absent["windows"] = None
    return Job(
        name=f"attention_{kernel.__name__}_{plan.own}_rows_d{shapes.dim}_{dtype}",
        kernel=kernel,
        types={name: type_ for name, type_ in types.items() if name in kernel.arg_names},
        unaligned=frozenset({*triton_flash.ROW_COUNTS, *(strides if shapes.row % ALIGNED else ())}),
        written=frozenset({"dq", "dk", "dv"} if "d_outputs" in kernel.arg_names else {"outputs", "log_sums"}),
        constants={
            **triton_attention.constants(shapes.pairs, shapes.dim),
            **plan.blocks(own_queries=not by_keys),
            **absent,
        },
        options=plan.options(),
        grid=f"(sum over pairs of ceil({'k' if by_keys else 'q'}_rows / {plan.own}), heads, batch)",
        hidden=shapes.hidden,
    )
