"""The parity gate: a graph must answer as the PyTorch module it was made from, or there is no bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from affectrt.affect import MODALITIES, Modality
from affectrt.backends import Array, FloatArray
from affectrt.backends.onnx_runtime import OnnxGraph
from affectrt.calibration import presence_key
from affectrt.errors import AffectError
from affectrt.features.audio import LOWEST_LEVEL
from affectrt.features.text import Tokenizer, words_of
from affectrt_export.locate import first_difference

TOLERANCE = 1e-4
"""Largest absolute difference of any output value between a fp32 graph and PyTorch."""

HALF_TOLERANCE = 1e-2
"""The same between a graph in half precision and the fp32 one, over the output's largest magnitude or 1."""

LONGEST_AUDIO_S = 20.0
"""A window's limit on the device."""

_EVERY_LENGTH_TOKENS = 128
"""Texts up to here are tried at every length, longer ones at some."""

_PATTERNS: tuple[frozenset[Modality], ...] = tuple(
    frozenset(some) for count in range(4) for some in combinations(MODALITIES, count)
)
_PADDING = 7.0
"""What stands past a row's length: nobody may read it."""


@dataclass(frozen=True)
class Case:
    """One set of inputs that a graph is tried on."""

    what: str
    """Tells it from the others in an error."""
    inputs: Mapping[str, Array]
    """One array per graph input."""
    read: npt.NDArray[np.bool_] | None = None
    """(B, T): which rows of the outputs (B, T, D) anyone reads; None: all of them."""


def check_parity(
    name: str,
    graph: bytes,
    reference: nn.Module | bytes,
    outputs: Sequence[str],
    cases: Iterable[Case],
    program: ExportedProgram | None = None,
) -> float:
    """Run a graph and what it was made from on every case and return the largest difference.

    ``reference``: the PyTorch module of a fp32 graph, or the fp32 graph of one in half precision.
    ``program``: what was traced, to tell where a difference first appears.

    Raises ``export.parity`` naming graph, output, difference, case, input shapes and the node where it first
    appears, when an output is not finite, has another shape or differs by more than :data:`TOLERANCE`, in
    half precision :data:`HALF_TOLERANCE`; ``graph.signature`` when the graph has other inputs or outputs than
    the case and ``outputs`` say.
    """
    # One thread: the many small runs gain nothing from more, and suffer where other work is waiting.
    runner = OnnxGraph(graph, threads=1, name=name)
    fp32 = OnnxGraph(reference, threads=1, name=name) if isinstance(reference, bytes) else None
    largest, count = 0.0, 0
    for case in cases:
        if not count:
            runner.expect(list(case.inputs), outputs)
        count += 1
        if isinstance(reference, bytes):
            assert fp32 is not None
            expected = fp32(**case.inputs)
        else:
            expected = _torch_outputs(reference, case.inputs)
        for output, got, want in zip(outputs, runner(**case.inputs), expected, strict=True):
            shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in case.inputs.items())
            where = f"{name}: output '{output}' on {case.what} ({shapes})"
            difference, wrong = _compared(got, want, case.read, half=fp32 is not None)
            if wrong:
                located = "" if program is None else _located(graph, program, case)
                raise AffectError("export.parity", f"{where}: {wrong}{located}; nothing was written")
            largest = max(largest, difference)
    if not count:
        raise AffectError("export.parity", f"{name}: no case to compare graph and PyTorch on")
    return largest


def _compared(
    got: FloatArray, want: FloatArray, read: npt.NDArray[np.bool_] | None, *, half: bool
) -> tuple[float, str]:
    """The largest difference, and what is wrong with it if anything."""
    who = "the fp32 graph" if half else "PyTorch"
    if got.shape != want.shape:
        return np.inf, f"the graph gives shape {list(got.shape)}, {who} {list(want.shape)}"
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        source = who if not np.isfinite(want).all() else "the graph"
        advice = "export as fp32" if half and source == "the graph" else "check the weights"
        return np.inf, f"NaN or infinity from {source}; {advice}"
    if read is not None:
        got, want = got[read], want[read]
    difference = float(np.abs(got - want).max(initial=0.0))
    allowed = HALF_TOLERANCE * max(1.0, float(np.abs(want).max(initial=0.0))) if half else TOLERANCE
    if difference > allowed:
        return difference, f"graph and {who} differ by {difference:.3g}, at most {allowed:.3g} is allowed"
    return difference, ""


def _located(graph: bytes, program: ExportedProgram, case: Case) -> str:
    return f"; they differ {first_difference(graph, program, case.inputs)}"


def first_output(module: nn.Module, inputs: Mapping[str, Array]) -> FloatArray:
    """What PyTorch answers: the module's only output or its first."""
    return _torch_outputs(module, inputs)[0]


def _torch_outputs(module: nn.Module, inputs: Mapping[str, Array]) -> tuple[FloatArray, ...]:
    with torch.no_grad():
        result: Any = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    result = getattr(result, "last_hidden_state", result)
    tensors: tuple[Tensor, ...] = (result,) if isinstance(result, Tensor) else tuple(result)
    return tuple(tensor.numpy() for tensor in tensors)


def lengths_to(longest: int) -> list[int]:
    """Lengths worth trying: the first 40, so every phase of strides and kernels, then some to ``longest``."""
    some = np.geomspace(1, longest, 12).round().astype(int).tolist()
    return sorted({*range(1, min(40, longest) + 1), *some, longest - 1 or 1, longest})


def text_cases(tokenizer: Tokenizer, sentences: Sequence[str], max_tokens: int) -> Iterator[Case]:
    """Real sentences, one after the other, cut to many lengths; and three of different lengths together."""
    stream = token_stream(tokenizer, sentences, max_tokens)
    every = range(1, min(max_tokens, _EVERY_LENGTH_TOKENS) + 1)
    for length in sorted({*every, *lengths_to(max_tokens)}):
        ids = stream[None, :length]
        yield Case(f"{length} tokens", {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    for length in sorted({1, 2, max_tokens // 3 or 1, max_tokens}):
        lengths = np.array([length, (length + 1) // 2, 1])
        mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
        ids = np.stack([np.roll(stream, -17 * k)[:length] for k in range(3)])
        inputs = {"input_ids": ids * mask, "attention_mask": mask}
        # States of padding may lie where the last LayerNorm divides by next to nothing.
        yield Case(f"3 texts of {lengths.tolist()} tokens", inputs, mask.astype(bool))


def token_stream(tokenizer: Tokenizer, sentences: Sequence[str], count: int) -> Array:
    """(count,) int64: the sentences' tokens one after the other, again from the start when too few."""
    ids = np.concatenate([tokenizer.encode(words_of(sentence, 0.0)).ids for sentence in sentences])
    return np.resize(ids, count)


def audio_cases(n_mels: int, longest_frames: int) -> Iterator[Case]:
    """Level-normalised log-mel of every small length, and up to the longest."""
    log_mel = speech_like(longest_frames, n_mels)
    for length in lengths_to(longest_frames):
        yield Case(f"{length} frames", {"log_mel": log_mel[None, :length]})
    for length in (1, 9, 64):
        rows = np.stack([log_mel[k : k + length] for k in range(3)])
        yield Case(f"3 sounds of {length} frames", {"log_mel": rows})


def speech_like(frames: int, n_mels: int) -> FloatArray:
    """(frames, n_mels): noise with the slow changes and the lower limit that normalised speech has."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.5, (frames, n_mels))
    syllables = np.sin(np.arange(frames) * 0.25)[:, None] + np.linspace(0.5, -1.0, n_mels)
    log_mel: FloatArray = np.maximum(noise + syllables, LOWEST_LEVEL).astype(np.float32)
    return log_mel


def vision_cases(crop_px: int) -> Iterator[Case]:
    """Face-like crops in several numbers, among them black, white and flat ones, which have no contrast."""
    faces = face_like(40, crop_px)
    for count in (1, 2, 3, 10, 40):
        yield Case(f"{count} faces", {"faces": faces[:count]})
    flat = np.broadcast_to(np.array([0.0, 0.5, 1.0], np.float32)[:, None, None], (3, crop_px, crop_px))
    yield Case("black, grey and white", {"faces": np.ascontiguousarray(flat)})


def face_like(count: int, crop_px: int) -> FloatArray:
    """(count, crop_px, crop_px) in [0, 1]: a bright oval with dark eyes and mouth, no two alike."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : crop_px * 1j, -1 : 1 : crop_px * 1j]

    def spot(at_y: float, at_x: float, size: float) -> Any:
        return np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / size)

    faces: list[Any] = []
    for tilt, gape, light in rng.uniform([-0.15, 0.01, 0.3], [0.15, 0.1, 0.7], (count, 3)):
        face = light + 0.4 * spot(0, 0, 0.8) - 0.4 * spot(-0.25 + tilt, -0.4, 0.03)
        face = face - 0.4 * spot(-0.25 - tilt, 0.4, 0.03) - 0.4 * spot(0.5, 0, gape)
        faces.append(np.clip(face + rng.normal(0, 0.03, face.shape), 0, 1))
    return np.asarray(faces, np.float32)


def fusion_cases(states: Mapping[Modality, FloatArray]) -> Iterator[Case]:
    """Every pattern of present modalities, alone and among others in a batch of three, over many lengths.

    ``states``: (T, D) rows of each encoder, the longest that are tried.
    """
    longest = {m: len(rows) for m, rows in states.items()}
    for rows in lengths_to(max(longest.values())):
        lengths = {m: min(rows, longest[m]) for m in MODALITIES}
        yield Case(f"{rows} rows", fusion_inputs(states, [lengths]))
    for part in (0.0, 0.1, 0.5, 1.0):
        full = {m: max(1, round(part * count)) for m, count in longest.items()}
        for index, present in enumerate(_PATTERNS):
            batch = [
                {m: full[m] if m in present else 0 for m in MODALITIES},
                {m: max(1, full[m] // 2) for m in MODALITIES},
                {m: full[m] if m in _PATTERNS[-1 - index] else 0 for m in MODALITIES},
            ]
            for part_of in (batch[:1], batch):
                what = f"{presence_key(present)}, batch {len(part_of)}, up to {max(full.values())} rows"
                yield Case(what, fusion_inputs(states, part_of))


def fusion_inputs(
    states: Mapping[Modality, FloatArray], lengths: Sequence[Mapping[Modality, int]]
) -> dict[str, Array]:
    """A fusion graph's inputs: the first so many rows of each modality, for each row of the batch."""
    inputs: dict[str, Array] = {}
    for modality in MODALITIES:
        counts = np.array([row[modality] for row in lengths], np.int64)
        steps = max(1, int(counts.max()))
        values = np.full((len(counts), steps, states[modality].shape[1]), _PADDING, np.float32)
        for row, count in zip(values, counts, strict=True):
            row[:count] = states[modality][:count]
        inputs[modality], inputs[f"{modality}_lengths"] = values, counts
    return inputs
