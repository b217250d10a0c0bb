"""Which stages are done: kept from whole weights, or finished before on these very encoders."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from affectrt_training.recipes.starter import FUSIONS, STAGES
from affectrt_training.recipes.starter.fit import best_weights
from affectrt_training.recipes.starter.weights import rounded

Part = dict[str, Tensor]
"""A stage's tensors by name."""

_ENCODERS = [name for name in STAGES if name not in FUSIONS]

_PREFIX = {"voice": "encoder.", "face": "encoder."}
"""What of a stage's weights is shipped: the heads that trained these two are left behind."""


def done(runs: Path, restart: Container[str], kept: Mapping[str, Part]) -> dict[str, Part]:
    """The parts that need no training, in the stages' order.

    An encoder counts that is ``kept`` or finished in ``runs``. A fusion counts that is kept together with all
    three encoders or was finished from these very encoders, the causal one also from this fusion. What is
    named in ``restart`` never counts.
    """
    held = {name: part for name, part in kept.items() if name not in restart}
    whole = held.keys() >= set(_ENCODERS)
    found: dict[str, Part] = {}
    for name in STAGES:
        if name in held and (whole or name not in FUSIONS):
            found[name] = held[name]
        elif name not in restart and _is_finished(runs, name, found):
            found[name] = _finished(runs, name)
    return found


def outlook(runs: Path, restart: Container[str], parts: Container[str]) -> list[str]:
    """What will become of each stage, a line each."""
    lines = []
    for name in STAGES:
        what = "already trained, kept" if name in parts else "to be trained"
        if name not in parts and name not in restart and best_weights(runs / name).is_file():
            what += f"; what lies in {runs / name} is not known to be trained from these weights"
        lines.append(f"{name}: {what}")
    return lines


def complete(runs: Path, parts: dict[str, Part], name: str, train: Callable[[], Path]) -> None:
    """Add a stage's part if it isn't there; ``train`` trains the stage in its folder of ``runs``."""
    if name in parts:
        return
    note = _note(runs, name)
    note.unlink(missing_ok=True)  # if this breaks off now, nothing may vouch for what it leaves
    train()
    if name in FUSIONS:
        note.write_text(_digest([parts[n] for n in _learned_from(name)]), encoding="utf-8")
    parts[name] = _finished(runs, name)


def _finished(runs: Path, name: str) -> Part:
    """What a finished stage left behind, as it will be shipped."""
    prefix = _PREFIX.get(name, "")
    tensors = load_file(best_weights(runs / name))
    return rounded({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})


def _is_finished(runs: Path, name: str, found: Mapping[str, Part]) -> bool:
    if name not in FUSIONS:
        return best_weights(runs / name).is_file()
    needed, note = _learned_from(name), _note(runs, name)
    if not (found.keys() >= set(needed) and note.is_file() and best_weights(runs / name).is_file()):
        return False
    return note.read_text(encoding="utf-8") == _digest([found[n] for n in needed])


def _learned_from(fusion: str) -> Sequence[str]:
    """The encoders; the causal stage begins with the fusion's weights, too."""
    return STAGES[: STAGES.index(fusion)]


def _note(runs: Path, name: str) -> Path:
    return runs / name / "learned_from.sha256"


def _digest(parts: Sequence[Part]) -> str:
    """SHA-256 of parts as they are shipped: floating-point tensors in float16."""
    tensors = {
        f"{place}.{name}": tensor.half().contiguous()
        for place, part in enumerate(parts)
        for name, tensor in part.items()
        if tensor.is_floating_point()
    }
    return sha256(save(tensors)).hexdigest()
