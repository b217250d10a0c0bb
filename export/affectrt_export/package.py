"""Trained parts → a bundle that was proven before it got its name.

In this order, and any refusal leaves nothing behind: every graph against PyTorch, int8 against fp32 on the
task, then the written file is opened again as a device would and must repeat its answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save as save_safetensors

import affectrt
from affectrt.affect import EMOTIONS, MODALITIES, Affect, Modality
from affectrt.backends import FloatArray
from affectrt.backends.choice import DEVICES, obstacle
from affectrt.backends.fusion import FUSION_OUTPUTS
from affectrt.backends.onnx_runtime import OnnxGraph
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Tokenizer, words_of
from affectrt.manifest import SCHEMA, Manifest, Metric
from affectrt.model import Model
from affectrt_export import causal, gate, graphs, int8_faces, parity
from affectrt_export.gate import Int8Gate
from affectrt_export.latency import latency_of
from affectrt_export.progress import Stages, silent
from affectrt_export.quantize import quantize
from affectrt_export.workplace import SAME_ANSWER, Proofs, load, move, one_thread, workplace

if TYPE_CHECKING:
    from affectrt_training.recipes.starter.weights import Starter

NAME, FAMILY = "starter", "ghrnn-cma"
TOKENIZER, WEIGHTS = "tokenizer.json", "fusion.safetensors"
PROBE_SET = "AffectRT probe sentences"
GATE_SET, FACE_SET = "CMU-MOSI valid", "FER+ valid"

_NEEDED_META = (
    "config",
    "text",
    "audio",
    "vision",
    "calibration",
    "causal",
    "window_s",
    "metrics",
    "licence",
    "model_card",
)


@dataclass(frozen=True)
class ExportReport:
    """What an export measured on its way."""

    path: Path
    """The bundle."""
    manifest: Manifest
    """What it says about itself, members' sizes and hashes included."""
    largest_difference: Mapping[str, float]
    """Graph, or ``causal`` → largest difference between its fp32 form and PyTorch."""
    half_difference: Mapping[str, float]
    """Graph → largest difference between its fp16 and its fp32 form; empty at other precisions."""
    token_cosine: float | None
    """Mean cosine between int8 and fp32 token states of the probe sentences; None without int8, as below."""
    gate: Int8Gate | None
    """What int8 costs: measured when data were given, else as recorded."""
    probe_difference: float | None
    """Largest difference from the recorded answers; None when the gate was measured afresh."""


def export_starter(
    starter: Starter,
    output: Path,
    *,
    precision: str = "int8",
    opset: int = graphs.OPSET,
    data: Path | None = None,
    latency: bool = False,
    stages: Stages = silent,
) -> ExportReport:
    """Write the starter's bundle to ``output``; at int8 its text and face encoder are, the rest is fp32.

    With ``data`` the face encoder is calibrated and the int8 gate measured on it, else the recorded one is
    verified. ``latency``: time the bundle, for its manifest.

    Raises ``export.parity``, ``export.int8_gate``, ``export.meta`` when the weights' sidecar lacks something,
    ``export.opset``, ``export.half``, ``export.verify`` when the written bundle doesn't repeat its answer,
    ``output.unwritable`` and ``data.not_found``.
    """
    int8 = precision == "int8"
    if int8 and opset != graphs.OPSET:
        raise AffectError(
            "export.opset", f"int8 is written at opset {graphs.OPSET}, got {opset}; leave it out"
        )
    manifest, recorded = _manifest(starter.meta, precision, opset), None
    if int8 and data is None:
        recorded = Int8Gate.recorded(starter.meta)
        gate.check_cost(recorded)  # before minutes of work
    proofs = Proofs(stages, half=precision == "fp16")
    cosine: float | None = None
    found: Int8Gate | None = None
    probe_difference: float | None = None
    with workplace(output) as folder, one_thread():
        _prove(starter, proofs, opset)
        members = proofs.members
        if int8:
            with stages("text encoder → int8"):
                members["text.onnx"] = quantize(proofs.fp32["text.onnx"])
            with stages("int8 token states against fp32"):
                tokenizer = Tokenizer.from_json(starter.tokenizer_json, starter.meta["text"]["max_tokens"])
                cosine = token_cosine(proofs.fp32["text.onnx"], members["text.onnx"], tokenizer)
            with stages("face encoder → int8"):
                faces = proofs.fp32["vision.onnx"]
                if recorded is not None:
                    ranges = recorded.face_ranges
                else:
                    assert data is not None
                    ranges = int8_faces.measure_ranges(faces, data)
                members["vision.onnx"], _ = int8_faces.to_int8(
                    faces, ranges, starter.meta["vision"]["crop_px"]
                )
        candidate = load(folder / "candidate.affect", manifest, members)
        if proofs.half:
            with stages("fp16 bundle against fp32"):
                fp32 = load(folder / "fp32.affect", manifest, {**members, **proofs.fp32})
                _check_same_answer(fp32, candidate, SAME_ANSWER["fp16"])
        if recorded is not None:
            found = recorded
            with stages("int8 gate: is this the encoder that was measured?"):
                probe_difference = gate.check_probe(found, gate.probe(candidate))
        elif int8:
            assert data is not None
            with stages(f"int8 gate: measuring on {GATE_SET} and {FACE_SET}"):
                fp32 = load(folder / "fp32.affect", manifest, {**members, **proofs.fp32})
                found = gate.measure(fp32, candidate, data, ranges)
            gate.check_cost(found)
        with stages("bundle: written, opened again, asked once more"):
            if found is not None and cosine is not None:
                manifest = replace(manifest, metrics=(*manifest.metrics, *_measured(found, cosine)))
            final = folder / "final.affect"
            model = load(final, manifest, members)
            _check_same_answer(candidate, model, 1e-5)
            _check_backends(final, model, 1e-4 if precision != "fp16" else parity.HALF_TOLERANCE)
        with stages("causal model: its steps against PyTorch"):
            proofs.differences["causal"] = causal.check_steps(starter.causal, model)
        if latency:
            with stages("latency of a window"):
                manifest = replace(manifest, latency=latency_of(final))
            model = load(final, manifest, members)
        move(final, output)
    return ExportReport(
        output, model.manifest, proofs.differences, proofs.half_differences, cosine, found, probe_difference
    )


def _prove(starter: Starter, proofs: Proofs, opset: int) -> None:
    """Make every graph of the bundle."""
    meta = starter.meta
    max_tokens, n_mels, crop_px = (
        int(meta[part][name])
        for part, name in (("text", "max_tokens"), ("audio", "n_mels"), ("vision", "crop_px"))
    )
    dims: dict[Modality, int] = {m: int(meta[m]["dim"]) for m in MODALITIES}
    frames = round(parity.LONGEST_AUDIO_S / meta["audio"]["hop_s"])
    sentences, tokenizer = gate.probe_sentences(), Tokenizer.from_json(starter.tokenizer_json, max_tokens)
    text, voice, face, fusion = (
        starter.text_encoder,
        starter.voice_encoder,
        starter.face_encoder,
        starter.fusion,
    )
    proofs.prove(
        "text",
        lambda: graphs.text_graph(text, dims["text"], opset),
        text,
        lambda: parity.text_cases(tokenizer, sentences, max_tokens),
    )
    proofs.prove(
        "audio",
        lambda: graphs.audio_graph(voice, n_mels, dims["audio"], opset),
        voice,
        lambda: parity.audio_cases(n_mels, frames),
    )
    proofs.prove(
        "vision",
        lambda: graphs.vision_graph(face, crop_px, dims["vision"], opset),
        face,
        lambda: parity.vision_cases(crop_px),
    )
    ids = parity.token_stream(tokenizer, sentences, max_tokens)[None]
    states: dict[Modality, FloatArray] = {
        "text": parity.first_output(text, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0],
        "audio": parity.first_output(voice, {"log_mel": parity.speech_like(frames, n_mels)[None]})[0],
        "vision": parity.first_output(face, {"faces": parity.face_like(40, crop_px)}),
    }
    proofs.prove(
        "fusion",
        lambda: graphs.fusion_graph(fusion, dims, opset),
        fusion,
        lambda: parity.fusion_cases(states),
        FUSION_OUTPUTS,
    )
    proofs.members[TOKENIZER] = starter.tokenizer_json
    # For native execution: the weights under the names they have in the model.
    weights = {name: tensor.float().contiguous() for name, tensor in fusion.state_dict().items()}
    proofs.members[WEIGHTS] = save_safetensors(weights)
    proofs.members[causal.WEIGHTS] = causal.member(starter.causal)


def token_cosine(fp32: bytes, int8: bytes, tokenizer: Tokenizer) -> float:
    """Mean cosine between the token states of two text graphs over the probe sentences."""
    runners = [OnnxGraph(graph, threads=1, name="text.onnx") for graph in (fp32, int8)]
    cosines = []
    for sentence in gate.probe_sentences():
        ids = tokenizer.encode(words_of(sentence, 0.0)).ids[None]
        a, b = (runner(input_ids=ids, attention_mask=np.ones_like(ids))[0][0] for runner in runners)
        cosines.append((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)))
    return float(np.concatenate(cosines).mean())


def _manifest(meta: Mapping[str, Any], precision: str, opset: int) -> Manifest:
    """What the bundle will say, but for its members' sizes and hashes and what the export measures."""
    missing = [key for key in _NEEDED_META if key not in meta]
    if missing:
        raise AffectError(
            "export.meta",
            f"the weights' sidecar lacks {', '.join(missing)}; train again: affectrt train --recipe starter",
        )
    graph_names = {part: f"{part}.onnx" for part in ("text", "audio", "vision", "fusion")}
    members = (*graph_names.values(), TOKENIZER, WEIGHTS, causal.WEIGHTS)
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "name": NAME,
        "family": FAMILY,
        "config": meta["config"],
        "labels": list(EMOTIONS),
        "text": {"graph": graph_names["text"], "tokenizer": TOKENIZER, "words_per_row": 0, **meta["text"]},
        "audio": {"graph": graph_names["audio"], **meta["audio"]},
        "vision": {"graph": graph_names["vision"], **meta["vision"]},
        "fusion": {"graph": graph_names["fusion"], "weights": WEIGHTS},
        "calibration": meta["calibration"],
        "window_s": meta["window_s"],
        "precision": {
            part: precision if precision != "int8" or part in ("text", "vision") else "fp32"
            for part in graph_names
        },
        "opset": opset,
        "ir_version": graphs.IR_VERSION,
        "metrics": meta["metrics"],
        "latency": [],
        "causal": causal.entry(meta["causal"]),
        "licence": meta["licence"],
        "model_card": meta["model_card"],
        "members": {name: {"sha256": hashlib.sha256().hexdigest(), "bytes": 0} for name in members},
    }
    # Through JSON, so that the sidecar is held to the same strict schema as a bundle from elsewhere.
    return Manifest.from_json(json.dumps(fields), "made from the weights' sidecar")


def _measured(found: Int8Gate, cosine: float) -> tuple[Metric, ...]:
    """Before and after quantization."""
    return (
        Metric("mae_fp32", found.mosi_valid_mae_fp32, GATE_SET, "text"),
        Metric("mae_int8", found.mosi_valid_mae_int8, GATE_SET, "text"),
        Metric("token_cosine_int8", round(cosine, 5), PROBE_SET, "text"),
        Metric("accuracy_fp32", found.ferplus_valid_accuracy_fp32, FACE_SET, "vision"),
        Metric("accuracy_int8", found.ferplus_valid_accuracy_int8, FACE_SET, "vision"),
    )


def _check_same_answer(measured: Model, written: Model, tolerance: float) -> None:
    for sentence in gate.probe_sentences():
        before, after = (model.predict(text=sentence) for model in (measured, written))
        if after.present != {"text"} or _difference(before, after) > tolerance:
            raise AffectError(
                "export.verify",
                f"the bundle, opened again, says {after.sentiment:+.4f} to '{sentence}' from "
                f"{sorted(after.present) or 'nothing'}; expected {before.sentiment:+.4f} from text within "
                f"{tolerance:g}; nothing was written",
            )


def _check_backends(path: Path, written: Model, tolerance: float) -> None:
    """Whatever runs the fusion on the device must say the same: its graph and its weights are two members."""
    random = np.random.default_rng(0)
    rows = {m: random.standard_normal((30, written.manifest.dim(m))).astype(np.float32) for m in MODALITIES}
    times_s = np.linspace(0.0, 5.0, 30)
    features = {m: FeatureSequence(m, values, times_s, "export") for m, values in rows.items()}
    answers = {
        backend: affectrt.load(path, backend=backend).predict(features=features)
        for backend in DEVICES["cpu"]
        if obstacle(backend, written.bundle) is None
    }
    first, *others = answers.items()
    for backend, answer in others:
        if (difference := _difference(first[1], answer)) > tolerance:
            raise AffectError(
                "export.verify",
                f"the backends {first[0]} and {backend} differ by {difference:.2g} on the same features, "
                f"expected at most {tolerance:g}; nothing was written",
            )


def _difference(a: Affect, b: Affect) -> float:
    """Largest, of sentiment and probabilities."""
    gaps = [abs(a.emotions[name] - b.emotions[name]) for name in EMOTIONS]
    return max(abs(a.sentiment - b.sentiment), *gaps)
