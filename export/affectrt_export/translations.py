"""How the operators of ``affectrt_kernels`` are written in standard ONNX, for ``torch.onnx.export``.

    program = torch.onnx.export(model, …, dynamo=True, custom_translation_table=TRANSLATIONS)
    fold_weights(program)

The graphs need no operator of ours, so every runtime reads them; opset 17 and IR 10 are enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxscript.optimizer
import torch
from onnxscript import FLOAT, INT64, ir
from onnxscript import opset18 as op

import affectrt_kernels.ops  # noqa: F401  registers the operators named below

# The default limits leave a GRU of more than 32 units unfolded; nothing in our graphs is near 1 GiB.
_FOLD_LIMIT_ELEMENTS = 1 << 28


def gated_rnn(
    x: FLOAT,
    w_x: FLOAT,
    w_h: FLOAT,
    bias: FLOAT,
    lengths: INT64 | None = None,
    h0: FLOAT | None = None,
    gates: int = 1,
    reverse: bool = False,
) -> tuple[FLOAT, FLOAT]:
    """``affectrt::gated_rnn`` as one ONNX ``GRU`` per stream, resetting before the matmul.

    ONNX keeps the old state where its z is near 1, our equations where z is near 0; as σ(−a) = 1 − σ(a),
    the block of z changes sign. The blocks of a ``GRU`` are z, r, candidate. With one gate that gate is also
    r, so W = [−W_z, W_z, W_h]; with two, W = [−W_z, W_r, W_h]. R and the first half of B likewise.
    """
    streams, _, hidden = w_h.shape
    no_recurrent_bias = op.Constant(value=ir.tensor(np.zeros((1, 3 * hidden), x.dtype.numpy())))
    sequence_lens = None if lengths is None else op.Cast(lengths, to=ir.DataType.INT32)

    def tied(tensor: Any, stream: int) -> Any:
        def rows(first: int, last: int) -> Any:
            return op.Slice(tensor, [stream, first * hidden], [stream + 1, last * hidden], [0, 1])

        return op.Concat(op.Neg(rows(0, 1)), rows(gates - 1, gates + 1), axis=1)

    states, last_states = [], []
    for stream in range(streams):
        y, h_n = op.GRU(
            op.Transpose(op.Gather(x, stream, axis=0), perm=[1, 0, 2]),  # (T, B, I)
            tied(w_x, stream),
            tied(w_h, stream),
            op.Concat(tied(bias, stream), no_recurrent_bias, axis=1),
            sequence_lens,
            None if h0 is None else op.Slice(h0, [stream], [stream + 1], [0]),
            hidden_size=hidden,
            direction="reverse" if reverse else "forward",
            linear_before_reset=0,
        )
        states.append(op.Transpose(y, perm=[1, 2, 0, 3]))  # (T, 1, B, H) → (1, B, T, H)
        last_states.append(h_n)
    y, h_n = op.Concat(*states, axis=0), op.Concat(*last_states, axis=0)
    if lengths is not None and h0 is not None:
        # ONNX Runtime answers 0 for a row without steps; the state of such a row is still h0.
        h_n = op.Where(op.Unsqueeze(op.Equal(lengths, 0), [-1]), h0, h_n)
    return y, h_n


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.affectrt.gated_rnn.default: gated_rnn}


def fold_weights(program: torch.onnx.ONNXProgram) -> None:
    """Compute everything that depends on weights alone, in place: each ``GRU`` then reads constants.

    The exporter does so itself, but leaves large tensors alone.
    """
    onnxscript.optimizer.optimize(
        program.model, input_size_limit=_FOLD_LIMIT_ELEMENTS, output_size_limit=_FOLD_LIMIT_ELEMENTS
    )
