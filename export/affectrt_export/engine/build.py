"""One ONNX graph → one TensorRT engine. Written for TensorRT 10.3 to 11.

Networks are strongly typed: the precision of every operator is what the graph says (its casts to fp16, its
Q/DQ pairs), which is the only way that TensorRT 11 knows. Nothing here chooses a precision but TF32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, SupportsInt

import tensorrt as trt

from affectrt.engines import Profile
from affectrt.errors import AffectError

Precision = Literal["fp32", "tf32"]


@dataclass(frozen=True)
class Options:
    """What the user chooses."""

    precision: Precision = "fp32"
    """How products of 32-bit numbers are computed; ``tf32``: of their leading 19 bits, on tensor cores."""
    workspace_mb: int | None = None
    """Scratch memory that an operator may take, in MiB; None: what the GPU has."""
    version_compatible: bool = False
    """Whether later versions of TensorRT and its lean runtime shall read the engine."""


class Messages(trt.ILogger):  # type: ignore[misc]
    """Keeps what TensorRT reports as errors, for the one message that the user gets."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, from any of its threads."""
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(" ".join(msg.split()))

    def told(self) -> str:
        """The first error: the ones after it tend to follow from it."""
        return self.errors[0] if self.errors else "it gives no reason"


class Progress(trt.IProgressMonitor):  # type: ignore[misc]
    """Shows the builder's phases as bars, and stops it at Ctrl-C."""

    def __init__(self, bars: Any) -> None:
        """``bars``: a ``rich.progress.Progress`` that is being shown."""
        trt.IProgressMonitor.__init__(self)
        self.interrupted = False
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
        """Called by TensorRT, from any of its threads."""
        indent = "  " if parent_phase else ""
        self._tasks[phase_name] = self._bars.add_task(f"{indent}{phase_name}", total=int(num_steps))

    def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
        """Whether to go on."""
        try:
            if phase_name in self._tasks:
                self._bars.update(self._tasks[phase_name], completed=int(step) + 1)
        except KeyboardInterrupt:  # must not pass through C++
            self.interrupted = True
        return not self.interrupted

    def phase_finish(self, phase_name: str) -> None:
        """Its bar goes: phases come by the hundred."""
        if phase_name in self._tasks:
            self._bars.remove_task(self._tasks.pop(phase_name))


def build_engine(
    graph: bytes,
    name: str,
    profile: Profile,
    options: Options,
    timings: bytes,
    progress: Progress | None,
    flags: int = 0,
) -> tuple[bytes, bytes]:
    """A serialised ONNX graph → the serialised engine and what was learnt on the way, for the next one.

    ``timings``: what an earlier call on this machine returned second, or nothing. ``flags``: what the network
    needs beyond strong types.

    Raises ``engine.unsupported`` when the graph holds what TensorRT doesn't know, ``engine.profile`` when its
    inputs aren't the profile's, ``engine.failed`` when TensorRT gives up.
    """
    messages = Messages()
    builder = trt.Builder(messages)
    network = builder.create_network(flags | 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages)
    if not parser.parse(graph):
        raise AffectError(
            "engine.unsupported",
            f"{name}: TensorRT {trt.__version__} can't take this graph: {_refusal(parser, messages)}; export "
            f"the model with --precision fp16 or fp32, or name another backend",
        )
    config = builder.create_builder_config()
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if progress is not None:
        config.progress_monitor = progress
    # TensorRT looks at the header and refuses timings of another version or device.
    if not config.set_timing_cache(config.create_timing_cache(timings), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    _add_profile(builder, network, config, name, profile)
    engine: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if progress is not None and progress.interrupted:
        raise KeyboardInterrupt
    if engine is None:
        raise AffectError(
            "engine.failed",
            f"{name}: TensorRT {trt.__version__} could not build an engine: {messages.told()}; when memory "
            f"is short, try a smaller --workspace, --max-text, --max-audio or --max-vision",
        )
    return _bytes(engine), _bytes(config.get_timing_cache().serialize())


def _add_profile(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    name: str,
    shapes: Profile,
) -> None:
    inputs = [network.get_input(index).name for index in range(network.num_inputs)]
    if set(inputs) != shapes.keys():
        raise AffectError(
            "engine.profile",
            f"{name}: expected the inputs {', '.join(shapes)}, got {', '.join(inputs)}; export the "
            f"model again",
        )
    profile = builder.create_optimization_profile()
    for tensor, (smallest, usual, largest) in shapes.items():
        profile.set_shape(tensor, trt.Dims(list(smallest)), trt.Dims(list(usual)), trt.Dims(list(largest)))
    if config.add_optimization_profile(profile) < 0:
        raise AffectError(
            "engine.profile",
            f"{name}: TensorRT doesn't take the shapes {dict(shapes)}; export the model again",
        )


def _refusal(parser: trt.OnnxParser, messages: Messages) -> str:
    if not parser.num_errors:
        return messages.told()
    error: trt.ParserError = parser.get_error(0)
    return f"node '{error.node_name()}' ({error.node_operator()}): {' '.join(error.desc().split())}"


def _bytes(memory: Any) -> bytes:
    """A copy of what TensorRT holds; its classes speak the buffer protocol, which their types don't tell."""
    return bytes(memory)
