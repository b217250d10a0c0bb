"""A run of ``affectrt train`` → a bundle that was proven before it got its name.

In this order, and any refusal leaves nothing behind: every graph against PyTorch, half precision against
fp32, then the written file is opened again as a device would, must answer as the run does and, on labelled
data, may score no worse than is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.torch import save as save_safetensors
from torch import nn

import affectrt
from affectrt.affect import MODALITIES, Modality
from affectrt.backends import FloatArray
from affectrt.backends.fusion import FUSION_OUTPUTS
from affectrt.errors import AffectError
from affectrt.features.text import Tokenizer
from affectrt.manifest import AudioSpec, Manifest, Metric, TextSpec, VisionSpec
from affectrt_export import gate, graphs, int8_run, parity, task
from affectrt_export.describe import FUSION_WEIGHTS, TOKENIZER, describe, starter_extractor
from affectrt_export.int8_run import Sensitivity
from affectrt_export.latency import cpu_backends, latency_of
from affectrt_export.progress import Stages, silent
from affectrt_export.task import TaskGate
from affectrt_export.workplace import SAME_ANSWER, Proofs, load, move, one_thread, workplace
from affectrt_training.data.dataset import Dataset, Example
from affectrt_training.encoders.text import TextEncoder, max_tokens_of, tokenizer_json
from affectrt_training.fit.checkpoint import Fitted, load_run
from affectrt_training.fit.predict import predict

PRECISIONS = ("fp32", "fp16", "int8")
"""What a run's graphs can be written in."""

TRIED_EXAMPLES = 4
"""Examples of the data, where there are some, that bundle and run are both asked."""

MADE_UP_ROWS = 40
"""Longest sequence to try where nothing is known of the data's own."""


@dataclass(frozen=True)
class RunReport:
    """What an export measured on its way."""

    path: Path
    """The bundle."""
    manifest: Manifest
    """What it says about itself, members' sizes and hashes included."""
    largest_difference: Mapping[str, float]
    """Graph → largest difference between its fp32 form and PyTorch."""
    half_difference: Mapping[str, float]
    """Graph → largest difference between its fp16 and its fp32 form; empty at fp32."""
    gate: TaskGate | None
    """The metric before and after; None without data."""
    kept: Sequence[Sensitivity] = ()
    """Layers that int8 left in fp32 because the task is sensitive to them."""


def export_run(
    folder: Path,
    output: Path,
    *,
    precision: str = "fp32",
    opset: int = graphs.OPSET,
    dataset: Dataset | None = None,
    max_drop: float = task.MAX_DROP,
    licence: str = "",
    cache: Path | None = None,
    latency: bool = False,
    stages: Stages = silent,
) -> RunReport:
    """Write the bundle of a finished run to ``output``.

    ``dataset``: its split ``valid`` is what the graphs are tried and the task is measured on; without, graphs
    are tried on made-up rows like the run's. int8 needs it: its split ``train`` calibrates. ``cache``: where
    rows of a frozen text encoder are kept. ``latency``: time the bundle, for its manifest.

    Raises what :func:`affectrt_training.fit.checkpoint.load_run` does; ``export.precision``,
    ``export.opset``, ``export.calibration``, ``export.uncalibrated``, ``export.extractor``,
    ``export.parity``, ``export.half``, ``export.task_gate``, ``export.verify`` and ``output.unwritable``.
    """
    if precision not in PRECISIONS:
        raise AffectError(
            "export.precision",
            f"{folder}: expected {', '.join(PRECISIONS)}, got {precision}",
        )
    if precision == "int8" and dataset is None:
        raise AffectError(
            "export.calibration",
            f"{folder}: int8 takes its ranges from real rows, which made-up ones don't stand for; pass "
            f"--calibrate DATA, the data that the run was trained on",
        )
    if precision == "int8" and opset != graphs.OPSET:
        raise AffectError(
            "export.opset", f"int8 is written at opset {graphs.OPSET}, got {opset}; leave it out"
        )
    fitted = load_run(folder)
    manifest = describe(fitted, folder.resolve().name, precision, opset, licence)
    examples = () if dataset is None else dataset.split("valid")
    # Refused before minutes of work.
    calibration = int8_run.calibration_examples(fitted, dataset) if dataset and precision == "int8" else ()
    proofs = Proofs(stages, half=precision == "fp16")
    with workplace(output) as place, one_thread():
        _encoders(fitted, manifest, proofs, opset)
        _fusion(fitted, proofs, opset, examples, cache)
        if manifest.fusion.weights is not None:
            weights = {k: tensor.float().contiguous() for k, tensor in fitted.model.state_dict().items()}
            proofs.members[FUSION_WEIGHTS] = save_safetensors(weights)
        candidate = place / "candidate.affect"
        kept: list[Sensitivity] = []
        found, members = None, proofs.members

        def measure(tried: Mapping[str, bytes]) -> TaskGate:
            """Write the bundle, ask it as PyTorch is asked, and measure the task on its worst backend."""
            assert dataset is not None
            load(candidate, manifest, tried)
            _check_answers(candidate, fitted, SAME_ANSWER[precision], examples[:TRIED_EXAMPLES])
            with stages(f"task gate: measuring on {dataset.name} valid"):
                gates = [
                    task.measure(fitted, affectrt.load(candidate, backend=name), dataset, cache)
                    for name in cpu_backends(candidate)
                ]
            return max(gates, key=lambda gate: gate.drop)

        if precision == "int8":
            precisions = {
                part: precision if part in int8_run.GRAPHS else "fp32" for part in manifest.precision
            }
            manifest = replace(manifest, precision=precisions)
            with stages("int8: ranges of the rows it is calibrated on"):
                int8 = int8_run.Int8Run(fitted, manifest, proofs, calibration, cache)
            members, found, kept = int8_run.settle(int8, measure, max_drop, stages)
        elif dataset is not None:
            found = measure(members)
            task.check(found, max_drop)
        else:
            with stages("bundle: written, opened again, asked as PyTorch is"):
                load(candidate, manifest, members)
                _check_answers(candidate, fitted, SAME_ANSWER[precision], examples[:TRIED_EXAMPLES])
        if found is not None:
            known = "+".join(manifest.modalities) or "none"
            figures = (
                (f"{found.metric}_pytorch", found.before),
                (f"{found.metric}_{precision}", found.after),
            )
            told = tuple(Metric(name, round(value, 6), found.dataset, known) for name, value in figures)
            manifest = replace(manifest, metrics=(*manifest.metrics, *told))
        final = place / "final.affect"
        model = load(final, manifest, members)
        if latency:
            with stages("latency of a window"):
                manifest = replace(manifest, latency=latency_of(final))
            model = load(final, manifest, members)
        move(final, output)
    return RunReport(output, model.manifest, proofs.differences, proofs.half_differences, found, kept)


def _encoders(fitted: Fitted, manifest: Manifest, proofs: Proofs, opset: int) -> None:
    """The graphs that make features."""
    if isinstance(text := manifest.text, TextSpec):
        settings = fitted.config.text
        data = tokenizer_json(settings)
        proofs.members[TOKENIZER] = data
        tokenizer, sentences = Tokenizer.from_json(data, text.max_tokens), gate.probe_sentences()
        whole = TextEncoder(settings) if fitted.encoder is None else deepcopy(fitted.encoder)
        plain: nn.Module = whole.merged().requires_grad_(False)
        dim, longest = text.dim, text.max_tokens
        proofs.prove(
            "text",
            lambda: graphs.text_graph(plain, dim, opset),
            plain,
            lambda: parity.text_cases(tokenizer, sentences, longest),
        )
    if isinstance(audio := manifest.audio, AudioSpec):
        frames = round(parity.LONGEST_AUDIO_S / audio.hop_s)
        voice, n_mels, audio_dim = starter_extractor().encoders[0], audio.n_mels, audio.dim
        proofs.prove(
            "audio",
            lambda: graphs.audio_graph(voice, n_mels, audio_dim, opset),
            voice,
            lambda: parity.audio_cases(n_mels, frames),
        )
    if isinstance(vision := manifest.vision, VisionSpec):
        face, crop_px, face_dim = starter_extractor().encoders[1], vision.crop_px, vision.dim
        proofs.prove(
            "vision",
            lambda: graphs.vision_graph(face, crop_px, face_dim, opset),
            face,
            lambda: parity.vision_cases(crop_px),
        )


def _fusion(
    fitted: Fitted, proofs: Proofs, opset: int, examples: Sequence[Example], cache: Path | None
) -> None:
    model = fitted.model.requires_grad_(False)
    if not examples and fitted.text_from == "words":
        examples = [Example(text, {}, tuple(text.split())) for text in gate.probe_sentences()]
    rows = task.fusion_rows(fitted, examples, cache)
    states = {m: _longest(fitted, m, [given[m] for given in rows if m in given]) for m in MODALITIES}
    proofs.prove(
        "fusion",
        lambda: graphs.fusion_graph(model, fitted.dims, opset),
        model,
        lambda: parity.fusion_cases(states),
        FUSION_OUTPUTS,
    )


def _longest(fitted: Fitted, modality: Modality, real: Sequence[FloatArray]) -> FloatArray:
    """Rows as many as the run's longest: the data's, example after example, or made up like the run's."""
    told = fitted.data["rows"].get(modality, {})
    unknown = MADE_UP_ROWS if modality in fitted.data["modalities"] else 1
    if modality == "text" and fitted.reader.tunes:
        unknown = max_tokens_of(fitted.config.text)
    longest = max([int(told.get("longest", unknown)), *map(len, real)])
    if real:
        joined = np.concatenate(real)
        return np.asarray(np.resize(joined, (longest, joined.shape[1])), np.float32)
    random = np.random.default_rng(0).standard_normal((longest, fitted.dims[modality]))
    return np.asarray(random * told.get("std", 1.0) + told.get("mean", 0.0), np.float32)


def _check_answers(path: Path, fitted: Fitted, tolerance: float, real: Sequence[Example]) -> None:
    """The bundle, on every backend of the CPU, against the run: words and rows in, the result out.

    Asked ``real`` examples, without any made-up ones, nothing and what is present of them alone.

    Raises ``export.verify``.
    """
    words = tuple(gate.probe_sentences()[0].split()) if fitted.text_from == "words" else ()
    known: list[Modality] = [
        m for m in fitted.data["modalities"] if m != "text" or fitted.text_from == "rows"
    ]
    random = np.random.default_rng(1)
    rows = {m: random.standard_normal((9, fitted.dims[m])).astype(np.float32) for m in known}
    examples = [Example("none", {})]
    for whole in real or [Example("made up", rows, words)]:
        examples += [whole, Example("words", {}, whole.words)]
        examples += [Example(m, {m: whole.rows[m]}) for m in whole.rows]
    expected = predict(fitted, examples)
    for backend in cpu_backends(path):
        model = affectrt.load(path, backend=backend)
        for index, example in enumerate(examples):
            answer = model.fuse(task.sequences(fitted, model, example), 1.0, 0.0)
            logits = np.log(np.maximum(expected.probabilities[index], 1e-30))
            probabilities = model.manifest.calibration.probabilities(logits, answer.present)
            gap = max(
                abs(answer.sentiment - float(expected.sentiment[index])),
                float(np.abs(np.array(list(answer.emotions.values())) - probabilities).max()),
            )
            if gap > tolerance:
                raise AffectError(
                    "export.verify",
                    f"the bundle, opened again, differs from the run by {gap:.2g} with "
                    f"{' and '.join(sorted(answer.present)) or 'nothing'} present on the backend {backend}, "
                    f"expected at most {tolerance:g}; nothing was written",
                )
