"""How the operators of ``affectrt_kernels`` are written in standard ONNX, for ``torch.onnx.export``.

    program = torch.onnx.export(model, …, dynamo=True, custom_translation_table=TRANSLATIONS)
    simplify(program)

The graphs need no operator of ours, so every runtime reads them; opset 17 and IR 10 are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxscript.optimizer
import torch
from onnxscript import FLOAT, INT64, ir
from onnxscript import opset18 as op

import affectrt_export.lstm  # noqa: F401
import affectrt_kernels.attention_ops
import affectrt_kernels.ops  # noqa: F401  these three register the operators named below

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
            op.Transpose(_part(x, stream), perm=[1, 0, 2]),  # (T, B, I)
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


def pairwise_attention(
    q: Sequence[FLOAT],
    k: Sequence[FLOAT],
    v: Sequence[FLOAT],
    pairs: Sequence[int],
    lengths: INT64 | None,
    windows: Sequence[INT64],
) -> list[FLOAT]:
    """``affectrt::pairwise_attention`` as ``MatMul``, an added mask and ``Softmax``, for every pair.

    Steps beyond a length must be finite here, as rows projected from finite rows are: a mask added to NaN is
    NaN. Cutting them out of the scores and of v instead made the starter's fusion graph 4 % slower.
    ONNX Runtime's own ``MultiHeadAttention`` is not used: with a mask it is no faster than these nodes, at
    4 heads, 50×500 steps and D = 8 or 32.
    """
    valid_rows: dict[int, Any] = {}  # of each modality, (B, 1 + T)

    def valid(modality: int, rows: Any) -> Any:
        if modality not in valid_rows:
            steps = op.Range(0, op.Squeeze(op.Shape(rows, start=1, end=2)), 1)
            of_modality = op.Unsqueeze(_part(lengths, modality), [1])
            valid_rows[modality] = op.LessOrEqual(steps, of_modality)
        return valid_rows[modality]

    outputs, log_sums = [], []
    for p, (asking, answering) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
        number = q[p].dtype.numpy()
        scale, zero, lowest, highest = (
            op.Constant(value=ir.tensor(np.array(x, number)))
            for x in (q[p].shape[3] ** -0.5, 0.0, -np.inf, np.inf)
        )
        sees = None if lengths is None else op.Unsqueeze(valid(answering, k[p]), [1, 2])
        if windows:
            rows = op.Range(0, op.Squeeze(op.Shape(k[p], start=1, end=2)), 1)
            first, stop = (op.Slice(windows[p], [edge], [edge + 1], [2]) for edge in (0, 1))
            inside = op.And(op.LessOrEqual(first, rows), op.Less(rows, stop))
            inside = op.Unsqueeze(op.Or(inside, op.Equal(rows, 0)), [1])
            sees = inside if sees is None else op.And(sees, inside)

        query = op.Mul(op.Transpose(q[p], perm=[0, 2, 1, 3]), scale)
        scores = op.MatMul(query, op.Transpose(k[p], perm=[0, 2, 3, 1]))
        if sees is not None:
            scores = op.Add(scores, op.Where(sees, zero, lowest))
        output = op.MatMul(op.Softmax(scores, axis=-1), op.Transpose(v[p], perm=[0, 2, 1, 3]))
        output = op.Transpose(output, perm=[0, 2, 1, 3])
        log_sum = op.ReduceLogSumExp(scores, [3], keepdims=0)
        if lengths is not None:
            asks = valid(asking, q[p])
            output = op.Where(op.Unsqueeze(asks, [2, 3]), output, zero)
            log_sum = op.Where(op.Unsqueeze(asks, [1]), log_sum, highest)
        outputs.append(output)
        log_sums.append(log_sum)
    return outputs + log_sums


def lstm(x: FLOAT, w_x: FLOAT, w_h: FLOAT, bias: FLOAT, reverse: bool = False) -> FLOAT:
    """``affectrt_export::lstm`` as one ONNX ``LSTM``; blocks are i, o, f, c where PyTorch has i, f, c, o.

    Rows past a length are computed like the others and read by nobody, as in PyTorch: no sequence_lens.
    """
    hidden = w_h.shape[1]
    no_recurrent_bias = op.Constant(value=ir.tensor(np.zeros((1, 4 * hidden), x.dtype.numpy())))

    def reordered(tensor: Any) -> Any:
        blocks = [op.Slice(tensor, [k * hidden], [(k + 1) * hidden], [0]) for k in (0, 3, 1, 2)]
        return op.Unsqueeze(op.Concat(*blocks, axis=0), [0])

    y, _, _ = op.LSTM(
        op.Transpose(x, perm=[1, 0, 2]),  # (T, B, I)
        reordered(w_x),
        reordered(w_h),
        op.Concat(reordered(bias), no_recurrent_bias, axis=1),
        hidden_size=hidden,
        direction="reverse" if reverse else "forward",
    )
    return op.Transpose(op.Squeeze(y, [1]), perm=[1, 0, 2])


def _part(stacked: Any, index: int) -> Any:
    """One entry of the first axis; of what ``torch.stack`` joined, the tensor itself: it saves two copies."""
    joined = stacked.producer()
    if joined is not None and joined.op_type == "Concat" and joined.attributes["axis"].as_int() == 0:
        raised = [value.producer() for value in joined.inputs]
        if all(node is not None and node.op_type == "Unsqueeze" for node in raised):
            axes = [ir.convenience.get_const_tensor(node.inputs[1]) for node in raised]
            if all(axis is not None and axis.numpy().tolist() == [0] for axis in axes):
                return raised[index].inputs[0]
    return op.Gather(stacked, index, axis=0)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.affectrt.gated_rnn.default: gated_rnn,
    torch.ops.affectrt.pairwise_attention.default: pairwise_attention,
    torch.ops.affectrt_export.lstm.default: lstm,
}


def simplify(program: torch.onnx.ONNXProgram) -> None:
    """Compute everything that depends on weights alone and drop what is redundant, in place.

    Each ``GRU`` and ``LSTM`` then reads constants. The exporter's own pass does the same but for large
    tensors; it is left out, for it takes as long as all the rest.
    """
    onnxscript.optimizer.optimize(
        program.model, input_size_limit=_FOLD_LIMIT_ELEMENTS, output_size_limit=_FOLD_LIMIT_ELEMENTS
    )
