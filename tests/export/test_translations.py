"""The ONNX form of the recurrence, run by ONNX Runtime, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from affectrt_export.translations import TRANSLATIONS, fold_weights
from affectrt_kernels import ops, reference

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


def export(model: nn.Module, given: dict[str, Tensor]) -> Any:
    free = torch.export.Dim.DYNAMIC
    axes: dict[str, Any] = {"x": {1: free, 2: free}, "lengths": {0: free}, "h0": {1: free}}
    program = torch.onnx.export(
        model.eval(),
        kwargs=given,
        dynamo=True,
        opset_version=17,
        custom_translation_table=TRANSLATIONS,
        dynamic_shapes={name: axes[name] for name in given},
        input_names=list(given),
        output_names=["y", "h_n"],
        verbose=False,
    )
    assert program is not None
    fold_weights(program)
    return program.model_proto


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
    proto = export(model, inputs_of(streams, 2, 5, inputs, hidden, with_lengths, with_h0))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch, steps in [(2, 5), (1, 1), (6, 63)]:
        given = inputs_of(streams, batch, steps, inputs, hidden, with_lengths, with_h0)
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
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
    proto = export(
        Recurrence(streams, inputs, hidden, 1, False), inputs_of(streams, 2, 5, inputs, hidden, True, True)
    )
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
