"""A bundle's fusion model, built again in PyTorch from its family, its config and its weights.

On an NVIDIA GPU its operators are the Triton kernels, and shapes that come a second time are recorded as a
CUDA graph and replayed from then on. That half has not run on a GPU yet.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from affectrt.affect import MODALITIES
from affectrt.backends import Array, FloatArray
from affectrt.backends.fusion import GraphFusion
from affectrt.bundle import Bundle
from affectrt.errors import AffectError, require
from affectrt.weights import read_safetensors
from affectrt_training.backend import weights_member
from affectrt_training.models.fusion import FusionModel
from affectrt_training.models.registry import create

RECORDINGS = 8
"""Shapes kept as CUDA graphs; the longest unused goes."""

WARM_UPS = 3
"""Runs before one is recorded: Triton compiles in the first, cuBLAS takes its memory."""

Shapes = tuple[tuple[int, ...], ...]


def load_fusion(bundle: Bundle, device: str = "auto", threads: int | None = None) -> GraphFusion:
    """The fusion model on ``cpu``, on ``cuda``, or on ``auto``: ``cuda`` where it can.

    ``threads`` is PyTorch's setting for the whole process; None leaves it alone. Raises
    ``backend.unsupported``, ``bundle.manifest`` and ``bundle.weights`` when config and weights aren't such a
    model's, ``gpu.missing`` and ``extra.missing`` when a GPU was asked for and can't run it.
    """
    model = load_model(bundle)
    chosen = choose_device(device)
    if chosen == "cuda":
        return GraphFusion(CudaModel(model), bundle.manifest)
    if threads is not None:
        torch.set_num_threads(threads)
    return GraphFusion(CpuModel(model), bundle.manifest)


def load_model(bundle: Bundle) -> FusionModel:
    """The model with its weights, in evaluation mode, on the CPU. Raises as :func:`load_fusion`."""
    manifest = bundle.manifest
    member = weights_member(manifest)
    try:
        model = create(manifest.family, {m: manifest.dim(m) for m in MODALITIES}, manifest.config)
    except AffectError as error:
        raise AffectError(
            "bundle.manifest", f"bundle {manifest.name}: {error.message}; export the model again"
        ) from error
    where = f"bundle {manifest.name}: {member}"
    weights = read_safetensors(bundle.read(member), where)
    try:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]  # names in it are the file's
        raise AffectError("bundle.weights", f"{where}: {reason}; export the model again") from error
    return model.eval().requires_grad_(False)


def choose_device(device: str) -> str:
    """``cpu`` or ``cuda``. Raises ``gpu.missing`` and, without Triton on a GPU, ``extra.missing``."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise AffectError(
            "gpu.missing",
            f"backend torch: PyTorch {torch.__version__} sees no GPU; install a PyTorch for CUDA and the "
            f"driver, or leave out device='cuda'",
        )
    require("triton", "kernels")
    return "cuda"


class CpuModel:
    """The model as a :class:`~affectrt.backends.Graph`. Immutable; share it between threads."""

    def __init__(self, model: FusionModel) -> None:
        self._model = model

    def __call__(self, **inputs: Array) -> tuple[FloatArray, ...]:
        """:data:`~affectrt.backends.fusion.FUSION_INPUTS` → ``sentiment``, ``emotion_logits``."""
        with torch.inference_mode():
            outputs = self._model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return tuple(output.numpy() for output in outputs)


@dataclass(frozen=True)
class _Recording:
    """A run in one shape, to be replayed on what lies in its inputs."""

    inputs: Mapping[str, Tensor]
    outputs: tuple[Tensor, ...]
    graph: Any


class CudaModel:
    """The model on the GPU as a :class:`~affectrt.backends.Graph`. Threads may share it; they take turns."""

    def __init__(self, model: FusionModel, *, records: bool = True) -> None:
        """Move the model there. ``records``: whether shapes that come again become CUDA graphs."""
        self._model = model.cuda()
        self._records = records
        self._seen: OrderedDict[Shapes, _Recording | None] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, **inputs: Array) -> tuple[FloatArray, ...]:
        """As :meth:`CpuModel.__call__`."""
        shapes = tuple(inputs[name].shape for name in sorted(inputs))
        # cuDNN's default, convolutions in tf32, would cost three of float32's seven digits.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with self._lock, torch.inference_mode(), exact:
            recording = self._seen.get(shapes)
            if recording is None:
                outputs = self._model(**_on_gpu(inputs))
                answers = tuple(output.cpu().numpy() for output in outputs)
                self._remember(shapes, inputs)
                return answers
            self._seen.move_to_end(shapes)
            for name, array in inputs.items():
                recording.inputs[name].copy_(torch.from_numpy(array))
            recording.graph.replay()
            return tuple(output.cpu().numpy() for output in recording.outputs)

    def _remember(self, shapes: Shapes, inputs: Mapping[str, Array]) -> None:
        """Record the run when its shapes come for the second time."""
        if not self._records:
            return
        self._seen[shapes] = self._record(_on_gpu(inputs)) if shapes in self._seen else None
        self._seen.move_to_end(shapes)
        while len(self._seen) > RECORDINGS:
            self._seen.popitem(last=False)

    def _record(self, inputs: Mapping[str, Tensor]) -> _Recording | None:
        """A run as a CUDA graph; None, once and for all, for a model that can't be recorded."""
        stream: Any = torch.cuda.Stream
        side, current = stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._model(**inputs)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outputs = tuple(self._model(**inputs))
        except RuntimeError:  # models that ask the GPU for a number, for one; they run as well without
            torch.cuda.synchronize()
            self._records = False
            return None
        return _Recording(inputs, outputs, graph)


def _on_gpu(inputs: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
