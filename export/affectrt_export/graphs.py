"""PyTorch modules → portable ONNX graphs: standard operators, opset 17 or newer, IR 10, dynamic sizes.

The same module gives the same bytes. Nothing of the machine that exported, such as paths, stays in a graph.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt.errors import AffectError
from affectrt_export import opset
from affectrt_export.lstm import through_operator
from affectrt_export.translations import TRANSLATIONS, simplify

OPSET = opset.TO
"""Operator set of a graph unless a newer one is asked for: ONNX Runtime 1.12 and TensorRT 8.6 read it."""
NEWEST_OPSET = 21
"""The newest that IR 10 goes with."""
IR_VERSION = 10
"""ONNX Runtime 1.18, the oldest that is supported, reads no newer."""

Axes = Sequence[str | int]
"""A shape: sizes, or the names of those that vary."""


@dataclass(frozen=True)
class Exported:
    """A graph and what it was made from."""

    graph: bytes
    """Serialised ONNX."""
    program: ExportedProgram
    """What was traced: its nodes have the names of the graph's values."""


class _TextStates(nn.Module):
    """A BERT for export: its mask, positions and token types written so that the graph stays plain.

    Left to itself, transformers writes them as lookups in buffers and the mask as a search for rows that are
    masked throughout, which here never are. Families of other build are left to it.
    """

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        copy: Any = deepcopy(bert)
        copy.set_attn_implementation("eager")
        self.bert = copy
        self.plain = copy.config.model_type in _FIRST_POSITION
        beyond_padding = _FIRST_POSITION.get(copy.config.model_type, False)
        self.first_position = int(copy.config.pad_token_id) + 1 if beyond_padding else 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if not self.plain:
            found: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return found
        bias = (1 - attention_mask[:, None, None, :]).to(torch.float32) * -1e9
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) + self.first_position
        states: Tensor = self.bert(
            input_ids=input_ids,
            attention_mask=bias,
            position_ids=positions.unsqueeze(0),
            token_type_ids=torch.zeros_like(input_ids),
        ).last_hidden_state
        return states


_FIRST_POSITION = {
    "bert": False, "electra": False, "albert": False, "roberta": True, "xlm-roberta": True, "camembert": True,
}  # fmt: skip
"""``model_type`` of encoders built like BERT → whether positions count from beyond the padding's index."""


def text_graph(encoder: nn.Module, dim: int, version: int = OPSET) -> Exported:
    """A transformers encoder → ``input_ids``, ``attention_mask`` (batch, tokens) int64 → ``states``."""
    ids = torch.ones(2, 7, dtype=torch.int64)
    axes: Axes = ("batch", "tokens")
    return _export(
        _TextStates(encoder).eval(),
        {"input_ids": (ids, axes), "attention_mask": (torch.ones_like(ids), axes)},
        {"states": ("batch", "tokens", dim)},
        version,
    )


def audio_graph(encoder: nn.Module, n_mels: int, dim: int, version: int = OPSET) -> Exported:
    """A voice encoder → ``log_mel`` (batch, frames, n_mels) → ``states`` (batch, rows, dim)."""
    return _export(
        encoder,
        {"log_mel": (torch.zeros(2, 37, n_mels), ("batch", "frames", n_mels))},
        {"states": ("batch", "rows", dim)},
        version,
    )


def vision_graph(encoder: nn.Module, crop_px: int, dim: int, version: int = OPSET) -> Exported:
    """A face encoder → ``faces`` (faces, crop_px, crop_px) in [0, 1] → ``states`` (faces, dim)."""
    return _export(
        encoder,
        {"faces": (torch.zeros(3, crop_px, crop_px), ("faces", crop_px, crop_px))},
        {"states": ("faces", dim)},
        version,
    )


def fusion_graph(fusion: nn.Module, dims: Mapping[Modality, int], version: int = OPSET) -> Exported:
    """A fusion model → the inputs and outputs of :class:`affectrt.manifest.FusionSpec`'s graph."""
    inputs: dict[str, tuple[Tensor, Axes]] = {}
    for steps, modality in zip((5, 6, 7), MODALITIES, strict=True):
        dim = dims[modality]
        inputs[modality] = (torch.zeros(2, steps, dim), ("batch", f"{modality}_rows", dim))
        inputs[f"{modality}_lengths"] = (torch.tensor([steps, 1]), ("batch",))
    outputs: dict[str, Axes] = {"sentiment": ("batch",), "emotion_logits": ("batch", len(EMOTIONS))}
    with through_operator(fusion):
        return _export(fusion, inputs, outputs, version)


def _export(
    module: nn.Module,
    inputs: Mapping[str, tuple[Tensor, Axes]],
    outputs: Mapping[str, Axes],
    version: int,
) -> Exported:
    """Trace on the example ``inputs``; the axes with names stay dynamic, from 1 up."""
    if not OPSET <= version <= NEWEST_OPSET:
        raise AffectError(
            "export.opset", f"export: expected an opset from {OPSET} to {NEWEST_OPSET}, got {version}"
        )
    varying = {axis for _, axes in inputs.values() for axis in axes if isinstance(axis, str)}
    dims = {name: torch.export.Dim(name, min=1) for name in sorted(varying)}
    with _quiet_exporter(), torch.no_grad(), _any_size_from_one():
        traced = torch.export.export(
            module,
            (),
            kwargs={name: example for name, (example, _) in inputs.items()},
            dynamic_shapes={
                name: {i: dims[axis] for i, axis in enumerate(axes) if isinstance(axis, str)}
                for name, (_, axes) in inputs.items()
            },
            # Sizes that halve on the way (pooled maps) would else be taken for those of the example.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=max(opset.FROM, version),
            input_names=list(inputs),
            output_names=list(outputs),
            custom_translation_table=TRANSLATIONS,
            optimize=False,  # simplify() does
            verbose=False,
        )
        assert program is not None and program.exported_program is not None  # with dynamo=True
        source = program.exported_program
        simplify(program)
        model = program.model_proto
    _declare_shapes(model.graph.input, {name: axes for name, (_, axes) in inputs.items()})
    _declare_shapes(model.graph.output, outputs)
    _forget_origin(model)
    if version == opset.TO:
        opset.downgrade(model)
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return Exported(serialize(model), source)


def serialize(model: Any) -> bytes:
    """An ``onnx.ModelProto`` as bytes, the same for the same model."""
    return bytes(model.SerializeToString(deterministic=True))


def _declare_shapes(values: Any, shapes: Mapping[str, Axes]) -> None:
    for value in values:
        tensor = value.type.tensor_type
        del tensor.shape.dim[:]
        for axis in shapes[value.name]:
            if isinstance(axis, str):
                tensor.shape.dim.add().dim_param = axis
            else:
                tensor.shape.dim.add().dim_value = axis


def _forget_origin(model: Any) -> None:
    """Drop stack traces, source paths and other notes of the exporter."""
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "affectrt", "", ""
    graph = model.graph
    del graph.metadata_props[:]
    del graph.value_info[:]
    graph.name, graph.doc_string = "graph", ""
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _any_size_from_one() -> AbstractContextManager[None]:
    """Trace no special case for an axis of size 1, as the exporter itself does when it traces."""
    config: Any = torch.fx.experimental._config
    patched: AbstractContextManager[None] = config.patch(backed_size_oblivious=True)
    return patched


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep to itself what the exporter says about itself: nothing of it is about the model."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # one line for every torchvision operator that isn't installed
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*isinstance.treespec, LeafSpec.*", category=FutureWarning
            )
            # Two inputs share an axis: it can bear one name only, and does.
            warnings.filterwarnings(
                "ignore", message="# The axis name: .* will not be used", category=UserWarning
            )
            yield
    finally:
        logger.setLevel(level)
