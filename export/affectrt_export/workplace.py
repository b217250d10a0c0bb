"""What every export does around its work: a folder beside the output, one thread, proof for every graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

import affectrt
from affectrt.bundle import write_bundle
from affectrt.errors import AffectError
from affectrt.manifest import Manifest
from affectrt.model import Model
from affectrt_export import parity
from affectrt_export.graphs import Exported
from affectrt_export.half import to_half
from affectrt_export.progress import Stages

SAME_ANSWER = {"fp32": 1e-3, "fp16": 3e-2, "int8": 0.5}
"""Largest difference of sentiment or a probability between a bundle as a whole and what it was made from. At
int8 single answers move; what that costs is the task gate's to say."""


@contextmanager
def workplace(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that is gone afterwards. Made first: who can't write there needn't wait.

    Raises ``output.unwritable``.
    """
    try:
        if output.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        folder = TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.")
    except OSError as error:
        raise _unwritable(output, error) from error
    with folder as name:
        yield Path(name)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: its threads spin while they wait: on a busy machine, thirty-fold work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def load(path: Path, manifest: Manifest, members: Mapping[str, bytes]) -> Model:
    """The bundle as a device would open it, written to ``path`` first."""
    write_bundle(path, manifest, members)
    return affectrt.load(path)


def move(source: Path, output: Path) -> None:
    """Give a proven bundle its name. Raises ``output.unwritable``."""
    try:
        source.replace(output)
    except OSError as error:
        raise _unwritable(output, error) from error


def _unwritable(output: Path, error: OSError) -> AffectError:
    return AffectError(
        "output.unwritable",
        f"can't write the bundle '{output}' ({error.strerror}); check that its folder exists and is yours",
    )


@dataclass
class Proofs:
    """Exports graph after graph and keeps those that answer as their modules. Not thread-safe."""

    stages: Stages
    half: bool = False
    """Whether the graphs are rewritten to fp16."""
    members: dict[str, bytes] = field(default_factory=dict)
    """File name → bytes."""
    fp32: dict[str, bytes] = field(default_factory=dict)
    """The same before they were rewritten."""
    differences: dict[str, float] = field(default_factory=dict)
    """Graph → largest difference between its fp32 form and PyTorch."""
    half_differences: dict[str, float] = field(default_factory=dict)
    """Graph → largest difference between its fp16 and its fp32 form."""

    def prove(
        self,
        name: str,
        export: Callable[[], Exported],
        module: nn.Module,
        cases: Callable[[], Iterable[parity.Case]],
        outputs: Sequence[str] = ("states",),
    ) -> None:
        """Make ``name``.onnx. Raises ``export.parity``, ``export.half`` and what exporting raises."""
        member = f"{name}.onnx"
        with self.stages(f"{name}: PyTorch → ONNX"):
            made = export()
        with self.stages(f"{name}: ONNX against PyTorch"):
            found = parity.check_parity(member, made.graph, module, outputs, cases(), made.program)
            self.differences[name] = found
        self.members[member] = self.fp32[member] = made.graph
        if self.half:
            with self.stages(f"{name}: fp16 against fp32"):
                graph = to_half(made.graph)
                self.half_differences[name] = parity.check_parity(member, graph, made.graph, outputs, cases())
            self.members[member] = graph
