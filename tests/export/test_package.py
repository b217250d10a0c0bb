"""The whole way from trained parts to a bundle: what is written works, and what is wrong is never written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor
from transformers import BertModel

import affectrt
from affectrt.affect import MODALITIES
from affectrt.backends.choice import DEVICES
from affectrt.bundle import Bundle
from affectrt.errors import AffectError
from affectrt.features.sequence import FeatureSequence
from affectrt.features.text import Tokenizer, words_of
from affectrt_export import gate
from affectrt_export.command import _print_starter
from affectrt_export.gate import Int8Gate
from affectrt_export.package import ExportReport, export_starter
from affectrt_training.models.ghrnn_cma import GhrnnCma
from affectrt_training.recipes.starter.weights import Starter


class DriftingBert(BertModel):  # type: ignore[misc]  # transformers has no types
    """One whose exported graph gets other numbers than it computes itself."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if torch.compiler.is_exporting():
            output.last_hidden_state = output.last_hidden_state * 1.01
        return output


def _torch_fusion(
    starter: Starter, rows: dict[str, np.ndarray[Any, np.dtype[np.float32]]]
) -> tuple[float, list[float]]:
    """Sentiment and emotion probabilities of PyTorch, uncalibrated."""
    inputs = {}
    for modality in MODALITIES:
        values = rows.get(modality, np.zeros((0, starter.meta[modality]["dim"]), np.float32))
        inputs[f"{modality}_lengths"] = torch.tensor([len(values)])
        padded = (
            np.concatenate([values, np.zeros_like(values[:1])])
            if len(values)
            else np.zeros((1, values.shape[1]))
        )
        inputs[modality] = torch.from_numpy(padded.astype(np.float32))[None]
    sentiment, logits = starter.fusion(**inputs)
    temperature = starter.meta["calibration"]["temperature"]["none"]
    return float(sentiment), (logits[0] / temperature).softmax(0).tolist()


class TamedFusion(GhrnnCma):
    """One that does more than its weights tell."""

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        audio: Tensor,
        audio_lengths: Tensor,
        vision: Tensor,
        vision_lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sentiment, logits = super().forward(text, text_lengths, audio, audio_lengths, vision, vision_lengths)
        return sentiment * 0.5, logits


@pytest.mark.parametrize("backend", DEVICES["cpu"])
@pytest.mark.parametrize("present", [("audio",), ("vision",), ("audio", "vision"), ()])
def test_the_bundle_answers_as_pytorch_does(
    starter: Starter, report: ExportReport, present: tuple[affectrt.affect.Modality, ...], backend: str
) -> None:
    model = affectrt.load(report.path, backend=backend)
    rng = np.random.default_rng(1)
    rows = {m: rng.normal(size=(9, starter.meta[m]["dim"])).astype(np.float32) for m in present}
    sequences = {m: FeatureSequence(m, rows[m], np.linspace(0.1, 0.9, 9)) for m in present}
    answer = model.fuse(sequences, 1.0, 0.0)
    sentiment, probabilities = _torch_fusion(starter, {str(m): values for m, values in rows.items()})
    assert answer.sentiment == pytest.approx(sentiment, abs=1e-5)
    assert list(answer.emotions.values()) == pytest.approx(probabilities, abs=1e-5)


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_starter_without_int8_needs_no_record_of_what_that_costs(
    starter: Starter, report: ExportReport, precision: str, tmp_path: Path
) -> None:
    made = export_starter(starter, tmp_path / "x.affect", precision=precision)
    assert made.gate is None and made.token_cosine is None and gate.META_KEY not in starter.meta
    assert set(made.manifest.precision.values()) == {precision}
    assert all(difference < 1e-4 for difference in made.largest_difference.values())
    halves = made.half_difference
    assert set(halves) == (set(made.manifest.precision) if precision == "fp16" else set())
    assert all(0 < difference < 0.1 for difference in halves.values())
    sizes = [r.manifest.members["audio.onnx"].bytes for r in (made, report)]
    assert (sizes[0] < sizes[1]) == (precision == "fp16")
    sentence = "the film was great, i love it"
    tokenizer = Tokenizer.from_json(starter.tokenizer_json, starter.meta["text"]["max_tokens"])
    ids = torch.from_numpy(tokenizer.encode(words_of(sentence, 0.0)).ids)[None]
    states = starter.text_encoder(input_ids=ids).last_hidden_state[0].numpy()
    answer = affectrt.load(made.path).predict(text=sentence)
    expected, _ = _torch_fusion(starter, {"text": states})
    assert answer.sentiment == pytest.approx(expected, abs=1e-5 if precision == "fp32" else 0.02)


@pytest.mark.usefixtures("traced_once")
def test_a_graph_that_differs_from_the_weights_is_not_written(
    make_starter: Callable[..., Starter], make_mosi: Callable[..., Path], tmp_path: Path
) -> None:
    starter = make_starter()
    starter.fusion.__class__ = TamedFusion
    path = tmp_path / "tamed.affect"
    with pytest.raises(AffectError, match="native and onnxruntime differ") as caught:
        export_starter(starter, path, data=make_mosi(lambda sentence: len(sentence) % 7 - 3.0))
    assert caught.value.code == "export.verify"
    assert not path.exists()


def test_text_goes_through_the_int8_encoder_and_stays_close(starter: Starter, report: ExportReport) -> None:
    sentence = "the film was great, i love it"
    tokenizer = Tokenizer.from_json(starter.tokenizer_json, starter.meta["text"]["max_tokens"])
    ids = torch.from_numpy(tokenizer.encode(words_of(sentence, 0.0)).ids)[None]
    states = starter.text_encoder(input_ids=ids).last_hidden_state[0]
    sentiment, _ = _torch_fusion(starter, {"text": states.numpy()})
    answer = affectrt.load(report.path).predict(text=sentence)
    assert answer.present == {"text"}
    assert answer.sentiment == pytest.approx(sentiment, abs=0.02)
    assert answer.sentiment != sentiment


def test_the_manifest_says_what_was_measured(
    starter: Starter, report: ExportReport, int8_gate: Int8Gate, bundle: Bundle
) -> None:
    manifest = bundle.manifest
    assert (manifest.opset, manifest.ir_version) == (17, 10)
    assert manifest.precision == {"text": "int8", "audio": "fp32", "vision": "int8", "fusion": "fp32"}
    assert manifest.config == json.loads(json.dumps(starter.meta["config"]))
    figures = {metric.name: metric for metric in manifest.metrics}
    assert figures["mae"].dataset == "random weights"  # what training had measured stays
    assert figures["mae_int8"].value == int8_gate.mosi_valid_mae_int8
    assert figures["mae_fp32"].value == int8_gate.mosi_valid_mae_fp32
    assert figures["accuracy_int8"].value == int8_gate.ferplus_valid_accuracy_int8
    assert figures["token_cosine_int8"].value == pytest.approx(report.token_cosine, abs=1e-5)
    assert report.token_cosine is not None and report.token_cosine > 0.99
    assert all(0 < difference < 1e-4 for difference in report.largest_difference.values())


def test_the_report_names_what_was_measured(
    report: ExportReport, int8_gate: Int8Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    _print_starter(report)
    shown_lines = capsys.readouterr().out
    for part in ("text    int8", "fusion  fp32", "measured now", f"{int8_gate.mosi_valid_mae_int8:.4f}"):
        assert part in shown_lines


def test_the_fusion_weights_are_in_the_bundle_under_their_names(starter: Starter, bundle: Bundle) -> None:
    assert bundle.manifest.fusion.weights is not None
    weights = load_safetensors(bundle.read(bundle.manifest.fusion.weights))
    expected = starter.fusion.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_without_data_the_recorded_gate_is_verified_and_the_file_is_the_same_to_the_byte(
    make_starter: Callable[..., Starter], report: ExportReport, int8_gate: Int8Gate, tmp_path: Path
) -> None:
    starter = make_starter()
    starter.meta[gate.META_KEY] = int8_gate.to_dict()
    shown = []

    def stages(what: str) -> Any:
        shown.append(what)
        from contextlib import nullcontext

        return nullcontext()

    path = tmp_path / "again.affect"
    again = export_starter(starter, path, stages=stages)
    assert again.probe_difference == pytest.approx(0.0, abs=gate.PROBE_TOLERANCE)
    assert path.read_bytes() == report.path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["again.affect"]
    assert any("measured" in what for what in shown)


def _refused(code: str, match: str, starter: Starter, folder: Path, data: Path | None = None) -> None:
    """The export is refused for that reason and leaves an older bundle and its folder as they were."""
    path = folder / "kept.affect"
    path.write_bytes(b"an older bundle")
    with pytest.raises(AffectError, match=match) as caught:
        export_starter(starter, path, data=data)
    assert caught.value.code == code
    assert path.read_bytes() == b"an older bundle"
    assert [entry.name for entry in folder.iterdir()] == ["kept.affect"]


def test_a_graph_that_computes_something_else_is_refused(
    make_starter: Callable[..., Starter], int8_gate: Int8Gate, tmp_path: Path
) -> None:
    starter = make_starter(DriftingBert)
    starter.meta[gate.META_KEY] = int8_gate.to_dict()
    _refused("export.parity", r"text\.onnx: output 'states' .*differ by 0\.0", starter, tmp_path)


def test_a_nan_weight_is_refused(
    make_starter: Callable[..., Starter], int8_gate: Int8Gate, tmp_path: Path
) -> None:
    starter = make_starter()
    starter.meta[gate.META_KEY] = int8_gate.to_dict()
    starter.text_encoder.get_parameter("encoder.layer.1.output.dense.weight")[3, 5] = torch.nan
    _refused(
        "export.parity", r"text\.onnx: output 'states' .*NaN or infinity from PyTorch", starter, tmp_path
    )


@pytest.mark.usefixtures("traced_once")
def test_int8_that_costs_more_than_allowed_is_refused(
    make_mosi: Callable[[Callable[[str], float]], Path], starter: Starter, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_json(starter.tokenizer_json, starter.meta["text"]["max_tokens"])

    def just_as_fp32_says(sentence: str) -> float:
        ids = torch.from_numpy(tokenizer.encode(words_of(sentence, 0.0)).ids)[None]
        return _torch_fusion(
            starter, {"text": starter.text_encoder(input_ids=ids).last_hidden_state[0].numpy()}
        )[0]

    data = make_mosi(just_as_fp32_says)
    _refused("export.int8_gate", r"at most 1% more is allowed", starter, tmp_path, data)


def test_a_recorded_gate_over_the_limit_is_refused_before_any_work(
    make_starter: Callable[..., Starter], int8_gate: Int8Gate, tmp_path: Path
) -> None:
    starter = make_starter(DriftingBert)  # would be refused too, but later
    bad = replace(int8_gate, mosi_valid_mae_int8=int8_gate.mosi_valid_mae_fp32 * 1.02)
    starter.meta[gate.META_KEY] = bad.to_dict()
    _refused("export.int8_gate", r"at most 1% more is allowed", starter, tmp_path)


def test_weights_without_a_recorded_gate_need_data(starter: Starter, tmp_path: Path) -> None:
    _refused("export.int8_gate", r"no readable record .*pass --data", starter, tmp_path)


@pytest.mark.parametrize(
    ("change", "code", "match"),
    [
        (lambda meta: meta.pop("calibration"), "export.meta", "lacks calibration"),
        (lambda meta: meta["audio"].pop("hop_s"), "bundle.manifest", r"audio: expected also \['hop_s'\]"),
        (lambda meta: meta.update(window_s="4"), "bundle.manifest", "window_s: expected float, got '4'"),
        (lambda meta: meta["calibration"]["temperature"].update(none=float("nan")), "bundle.manifest", "NaN"),
    ],
)
def test_a_sidecar_that_says_too_little_or_nonsense_is_refused(
    make_starter: Callable[..., Starter],
    tmp_path: Path,
    change: Callable[[dict[str, Any]], object],
    code: str,
    match: str,
) -> None:
    starter = make_starter()
    change(starter.meta)
    _refused(code, match, starter, tmp_path)


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    make_starter: Callable[..., Starter], int8_gate: Int8Gate, tmp_path: Path
) -> None:
    starter = make_starter(DriftingBert)
    starter.meta[gate.META_KEY] = int8_gate.to_dict()
    for path in (tmp_path, tmp_path / "no such folder" / "x.affect"):
        with pytest.raises(AffectError, match="can't write the bundle") as caught:
            export_starter(starter, path)
        assert caught.value.code == "output.unwritable"
