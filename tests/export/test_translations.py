"""The ONNX forms of the two operators, run by ONNX Runtime, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from affectrt_export import opset
from affectrt_export.translations import TRANSLATIONS, simplify
from affectrt_kernels import attention_ops, ops, reference

pytestmark = [
    # Said by torch's own exporter about its own code.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript"),
]
TOLERANCE = 1e-5


class Recurrence(nn.Module):
    def __init__(self, streams: int, inputs: int, hidden: int, gates: int, reverse: bool) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(hidden)
        blocks = (gates + 1) * hidden

        def parameter(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(size, generator=random) * size[-1] ** -0.5)

        self.gates, self.reverse = gates, reverse
        self.w_x = parameter(streams, blocks, inputs)
        self.w_h = parameter(streams, blocks, hidden)
        self.bias = parameter(streams, blocks)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, h0: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return ops.gated_rnn(
            x, self.w_x, self.w_h, self.bias, lengths, h0, gates=self.gates, reverse=self.reverse
        )


def inputs_of(
    streams: int, batch: int, steps: int, inputs: int, hidden: int, with_lengths: bool, with_h0: bool
) -> dict[str, Tensor]:
    given = {"x": torch.randn(streams, batch, steps, inputs)}
    if with_lengths:
        given["lengths"] = torch.randint(0, steps + 1, (batch,))
        given["lengths"][:1], given["lengths"][1:2] = 0, steps
    if with_h0:
        given["h0"] = torch.randn(streams, batch, hidden)
    return given


FREE = torch.export.Dim.DYNAMIC
AXES: dict[str, Any] = {"x": {1: FREE, 2: FREE}, "lengths": {0: FREE}, "h0": {1: FREE}}


def export(model: nn.Module, given: dict[str, Any], axes: dict[str, Any], outputs: list[str]) -> Any:
    """``given``: tensors and lists of them, ``axes``: which of theirs vary; inputs are named by ``flat``."""
    program = torch.onnx.export(
        model.eval(),
        kwargs=given,
        dynamo=True,
        opset_version=opset.FROM,
        custom_translation_table=TRANSLATIONS,
        dynamic_shapes={name: axes[name] for name in given},
        input_names=list(flat(given)),
        output_names=outputs,
        verbose=False,
    )
    assert program is not None
    simplify(program)
    proto = program.model_proto
    opset.downgrade(proto)
    return proto


def flat(given: dict[str, Any]) -> dict[str, Tensor]:
    """Lists taken apart: their tensors are called name_0, name_1 …"""
    tensors = {}
    for name, value in given.items():
        several = {f"{name}_{i}": tensor for i, tensor in enumerate(value)} if isinstance(value, list) else {}
        tensors.update(several or {name: value})
    return tensors


def run(proto: Any, given: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    results: list[Any] = session.run(None, {name: tensor.numpy() for name, tensor in flat(given).items()})
    return results


@pytest.mark.parametrize(
    ("gates", "reverse", "with_lengths", "with_h0"),
    [
        (1, False, False, False),
        (1, False, True, True),
        (1, True, True, False),
        (2, False, False, True),
        (2, False, True, False),
        (2, True, True, True),
    ],
)
def test_onnx_runtime_equals_the_reference(
    gates: int, reverse: bool, with_lengths: bool, with_h0: bool
) -> None:
    torch.manual_seed(0)
    streams, inputs, hidden = 3, 10, 8
    model = Recurrence(streams, inputs, hidden, gates, reverse)
    given = inputs_of(streams, 2, 5, inputs, hidden, with_lengths, with_h0)
    proto = export(model, given, AXES, ["y", "h_n"])
    for batch, steps in [(2, 5), (1, 1), (6, 63)]:
        given = inputs_of(streams, batch, steps, inputs, hidden, with_lengths, with_h0)
        outputs = run(proto, given)
        with torch.no_grad():
            want = reference.gated_rnn(
                given["x"],
                model.w_x,
                model.w_h,
                model.bias,
                given.get("lengths"),
                given.get("h0"),
                gates=gates,
                reverse=reverse,
            )
        for got, tensor in zip(outputs, want, strict=True):
            np.testing.assert_allclose(got, tensor.numpy(), rtol=0, atol=TOLERANCE)


def test_every_gru_reads_constants_and_standard_operators_suffice() -> None:
    streams, inputs, hidden = 3, 128, 64  # large enough that the exporter alone folds nothing
    given = inputs_of(streams, 2, 5, inputs, hidden, True, True)
    proto = export(Recurrence(streams, inputs, hidden, 1, False), given, AXES, ["y", "h_n"])
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 17)]
    assert proto.ir_version <= 10
    assert not proto.functions
    constants = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    recurrences = [node for node in proto.graph.node if node.op_type == "GRU"]
    assert len(recurrences) == streams
    for node in recurrences:
        assert [constants[name] for name in node.input[1:4]] == [(1, 192, 128), (1, 192, 64), (1, 384)]
    weights = streams * (192 * (inputs + hidden) + 384)
    assert sum(int(np.prod(shape)) for shape in constants.values()) < weights + 100  # the originals are gone


PAIRS = [(0, 1), (0, 2), (2, 0), (1, 2)]
HEADS, WIDTH = 2, 4
ATTENTION_AXES: dict[str, Any] = {
    "rows": [{0: FREE, 1: FREE}] * 3,
    "lengths": {1: FREE},
    "windows": [{0: FREE, 1: FREE}] * len(PAIRS),
}


class Attention(nn.Module):
    """Queries, keys and values are views of one projection; outputs and log-sums of all pairs come out."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(6, 3 * HEADS * WIDTH, generator=random) * 6**-0.5)

    def arguments(
        self, rows: list[Tensor], lengths: Tensor | None = None, windows: list[Tensor] | None = None
    ) -> tuple[Any, ...]:
        parts = [(x @ self.weight).view(*x.shape[:2], 3, HEADS, WIDTH).unbind(2) for x in rows]
        q = [parts[asking][0] for asking, _ in PAIRS]
        k, v = ([parts[answering][i] for _, answering in PAIRS] for i in (1, 2))
        return q, k, v, PAIRS, lengths, windows

    def forward(
        self, rows: list[Tensor], lengths: Tensor | None = None, windows: list[Tensor] | None = None
    ) -> list[Tensor]:
        q, k, v, *_ = self.arguments(rows)
        pairs = [modality for pair in PAIRS for modality in pair]
        results: list[Tensor] = torch.ops.affectrt.pairwise_attention(q, k, v, pairs, lengths, windows or [])
        return results


def attention_inputs(
    batch: int, steps: tuple[int, int, int], with_lengths: bool, with_windows: bool
) -> dict[str, Any]:
    """Beyond the first row of a batch the second modality is absent: its null slot is all there is."""
    given: dict[str, Any] = {"rows": [torch.randn(batch, 1 + count, 6) for count in steps]}
    if with_lengths:
        lengths = torch.stack([torch.randint(0, count + 1, (batch,)) for count in steps])
        lengths[:, 0] = torch.tensor(steps)
        lengths[1, 1:] = 0
        given["lengths"] = lengths
    if with_windows:
        given["windows"] = [
            torch.randint(0, 2 + steps[answering], (batch, 1 + steps[asking], 2)).sort(-1).values
            for asking, answering in PAIRS
        ]
    return given


@pytest.mark.parametrize("with_windows", [False, True])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_attention_in_onnx_runtime_equals_the_reference(with_lengths: bool, with_windows: bool) -> None:
    torch.manual_seed(1)
    model = Attention()
    names = [f"{kind}_{p}" for kind in ("output", "log_sum") for p in range(len(PAIRS))]
    given = attention_inputs(2, (3, 4, 5), with_lengths, with_windows)
    proto = export(model, given, ATTENTION_AXES, names)
    assert {node.domain for node in proto.graph.node} == {""}
    for batch, steps in [(2, (3, 4, 5)), (1, (1, 1, 1)), (5, (7, 63, 20))]:
        given = attention_inputs(batch, steps, with_lengths, with_windows)
        with torch.no_grad():
            outputs, log_sums = reference.pairwise_attention(*model.arguments(**given))
        for got, want in zip(run(proto, given), [*outputs, *log_sums], strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=TOLERANCE)


class AttentionRead(nn.Module):
    """What a fusion model does: stacks lengths, attends, stacks what comes of it and walks that."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.recurrence = Attention(), Recurrence(2, HEADS * WIDTH, 5, 1, False)

    def forward(self, rows: list[Tensor], lengths: list[Tensor]) -> Tensor:
        arguments = self.attention.arguments(rows, torch.stack(lengths))
        attended = attention_ops.pairwise_attention(*arguments)
        read = torch.stack([attended[0].flatten(-2), attended[1].flatten(-2)])
        h_n: Tensor = self.recurrence(read, lengths[0] + 1)[1]
        return h_n


def test_what_was_stacked_is_not_copied_apart_and_unread_results_are_not_computed() -> None:
    torch.manual_seed(2)

    def inputs(batch: int, steps: tuple[int, int, int]) -> dict[str, Any]:
        given = attention_inputs(batch, steps, True, False)
        return {**given, "lengths": list(given["lengths"])}

    model = AttentionRead()
    axes = {**ATTENTION_AXES, "lengths": [{0: FREE}] * 3}
    proto = export(model, inputs(2, (3, 4, 5)), axes, ["h_n"])
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("Softmax") == 2 and kinds.count("GRU") == 2
    assert not {"Gather", "ReduceLogSumExp"} & set(kinds)
    given = inputs(3, (6, 2, 9))
    with torch.no_grad():
        np.testing.assert_allclose(run(proto, given)[0], model(**given).numpy(), rtol=0, atol=TOLERANCE)
