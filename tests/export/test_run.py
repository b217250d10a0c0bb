"""Every system from training to bundle: what is written answers as PyTorch, what is wrong isn't written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

import affectrt
from affectrt.affect import EMOTIONS, MODALITIES, Modality
from affectrt.backends.onnx_runtime import OnnxGraph
from affectrt.cli import main
from affectrt.errors import AffectError
from affectrt.features import text as features
from affectrt.features.sequence import FeatureSequence
from affectrt.manifest import RowsSpec, TextSpec
from affectrt_export import graphs, int8, run, task
from affectrt_export.graphs import Exported
from affectrt_export.half import to_half
from affectrt_export.parity import check_parity, fusion_cases
from affectrt_export.run import export_run
from affectrt_training.config import build
from affectrt_training.data.dataset import Dataset, Example, FloatMatrix, collate, inputs
from affectrt_training.fit.checkpoint import Fitted, load_run
from affectrt_training.fit.predict import predict
from affectrt_training.fit.run import fit_run
from affectrt_training.fit.settings import RunConfig
from affectrt_training.models import mfn
from affectrt_training.models.registry import SYSTEMS

DIMS: dict[Modality, int] = {"text": 6, "audio": 4, "vision": 5}
LONGEST = 9
SMALL: Mapping[str, Mapping[str, object]] = {
    "ghrnn-cma": {"model_dim": 8, "heads": 2, "hidden_dim": 8},
    "mulg": {"layers": 1, "gru_layers": 1},
    "mult": {"layers": 1, "self_layers": 1},
    "cm-msf": {
        "model_dim": 16, "heads": 2, "transformer_heads": 2, "transformer_layers": 1, "cascade": 1,
        "vision_encoders": "resnet",
    },
    "bert-inception": {"model_dim": 8, "heads": 2, "text_layers": 1},
    "tfn": {"text_out_dim": 6, "audio_out_dim": 4, "vision_out_dim": 4, "fused_dim": 8},
    "mfn": {"attention_dim": 8, "gate_dim": 8, "memory_dim": 8},
}  # fmt: skip
"""Settings of systems whose defaults take long: tracing and rewriting a graph takes 15 ms a node."""
ROUNDS = 4
"""Doublings of MFN's memory: enough for these lengths, and a third of the nodes."""


def made(rows: bool = True, modalities: tuple[Modality, ...] = MODALITIES) -> Dataset:
    """Rows of all lengths up to the longest, far from normalised, some missing; words as well."""
    rng = np.random.default_rng(0)
    examples = []
    for k in range(24):
        given: dict[Modality, FloatMatrix] = {
            m: (3.0 + 5.0 * rng.normal(size=(1 + (k + 4 * i) % LONGEST, DIMS[m]))).astype(np.float32)
            for i, m in enumerate(modalities)
            if (k + i) % 5 and (rows or m != "text")
        }
        words = tuple(rng.choice(["i", "love", "hate", "the", "film"], size=1 + k % 6)) if not rows else ()
        examples.append(Example(f"e{k}", given, words, float(rng.uniform(-3, 3)), k % 7))
    dims = {m: DIMS[m] for m in modalities if rows or m != "text"}
    return Dataset("made", {"train": examples[:12], "valid": examples[12:]}, dims)


def trained(folder: Path, system: str, dataset: Dataset, **settings: Any) -> Fitted:
    config = {
        "system": system,
        "model": SMALL.get(system, {}),
        "training": {"epochs": 1, "batch_size": 12, "accelerator": "cpu"},
        **settings,
    }
    return fit_run(build(RunConfig, config, where="test"), dataset, folder, progress=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """System → the folder of its run on rows. Don't change it."""
    place = tmp_path_factory.mktemp("runs")

    def run_of(system: str) -> Path:
        if not (place / system).exists():
            trained(place / system, system, made())
        return place / system

    return run_of


@pytest.fixture(scope="module")
def ghrnn(runs: Callable[[str], Path]) -> Path:
    """A run of GHRNN-CMA on rows. Don't change it."""
    return runs("ghrnn-cma")


@pytest.fixture(scope="module")
def plain(runs: Callable[[str], Path]) -> Path:
    """A run of the system that is exported fastest, for what doesn't depend on the system."""
    return runs("text-mean")


@pytest.fixture(scope="module")
def exported(ghrnn: Path) -> Exported:
    """The fusion graph of that run, as :func:`affectrt_export.graphs.fusion_graph` makes it."""
    fitted = load_run(ghrnn)
    return graphs.fusion_graph(fitted.model.requires_grad_(False), fitted.dims)


def patterns() -> list[tuple[Modality, ...]]:
    return [some for count in range(4) for some in combinations(MODALITIES, count)]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_answers_as_a_bundle_as_in_pytorch(
    system: str, runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision its graph is smaller and still close."""
    monkeypatch.setattr(mfn, "_EXPORTED_ROUNDS", ROUNDS)
    fitted = load_run(runs(system))
    report = export_run(runs(system), tmp_path / "x.affect")
    assert [p.name for p in tmp_path.iterdir()] == ["x.affect"]
    assert report.largest_difference.keys() == {"fusion"} and report.gate is None
    manifest = report.manifest
    assert (manifest.name, manifest.family) == (system, system)
    assert manifest.specs == {m: RowsSpec(DIMS[m]) for m in MODALITIES}
    assert (manifest.fusion.weights is not None) == (system == "ghrnn-cma")
    graph = affectrt.load(report.path).bundle.read("fusion.onnx")
    proto = onnx.load_from_string(graph)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 17)]
    assert proto.ir_version <= 10 and not proto.functions
    rng = np.random.default_rng(1)
    states = {m: rng.normal(size=(LONGEST, DIMS[m])).astype(np.float32) for m in MODALITIES}
    half = to_half(graph)
    outputs = ("sentiment", "emotion_logits")
    assert check_parity("half", half, graph, outputs, fusion_cases(states)) > 0
    assert len(half) < len(graph) or system == "text-mean"  # so few weights that the casts outweigh them
    whole = int8.to_int8(graph, "fusion", int8.measure_ranges(graph, "fusion", fusion_cases(states)))
    exact, rounded = (OnnxGraph(each, threads=1) for each in (graph, whole))
    for case in fusion_cases(states):
        for want, got in zip(exact(**case.inputs), rounded(**case.inputs), strict=True):
            assert np.abs(got - want).max() < 0.03 * max(1.0, float(np.abs(want).max()))
    for backend in ("onnxruntime", "native") if manifest.fusion.weights else ("onnxruntime",):
        model = affectrt.load(report.path, backend=backend)
        for present in patterns():
            rows: dict[Modality, FloatMatrix] = {
                m: (3.0 + 5.0 * rng.normal(size=(2 + 7 * k, DIMS[m]))).astype(np.float32)
                for k, m in enumerate(present)
            }
            sentiment, probabilities = by_pytorch(fitted, rows)
            features = {
                m: FeatureSequence(m, r, np.arange(len(r), dtype=np.float64)) for m, r in rows.items()
            }
            answer = model.predict(features=features) if features else model.fuse({}, 0.0, 0.0)
            assert answer.present == set(present)
            assert answer.sentiment == pytest.approx(sentiment, abs=2e-4)
            assert [answer.emotions[name] for name in EMOTIONS] == pytest.approx(probabilities, abs=2e-4)


@torch.no_grad()
def by_pytorch(fitted: Fitted, rows: Mapping[Modality, FloatMatrix]) -> tuple[float, list[float]]:
    sentiment, logits = fitted.model(**inputs(collate([Example("", rows)], fitted.dims)))
    assert fitted.calibration is not None
    probabilities = fitted.calibration.probabilities(logits[0].numpy(), list(rows))
    return float(sentiment), [float(p) for p in probabilities]


def test_the_same_run_gives_the_same_bytes_and_newer_opsets_work(
    runs: Callable[[str], Path], plain: Path, tmp_path: Path
) -> None:
    for name in ("a.affect", "b.affect"):
        export_run(plain, tmp_path / name)
    assert (tmp_path / "a.affect").read_bytes() == (tmp_path / "b.affect").read_bytes()
    newer = export_run(runs("lf-lstm"), tmp_path / "new.affect", opset=graphs.NEWEST_OPSET).manifest
    assert newer.opset == graphs.NEWEST_OPSET
    proto = onnx.load_from_string(affectrt.load(tmp_path / "new.affect").bundle.read("fusion.onnx"))
    assert [entry.version for entry in proto.opset_import] == [graphs.NEWEST_OPSET]
    _refused("export.opset", "from 17 to", plain, tmp_path, opset=graphs.NEWEST_OPSET + 1)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, tiny_members: dict[str, bytes]) -> Path:
    """A folder with a small BERT of random weights, whose attention has something to choose from."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "tokenizer.json").write_bytes(tiny_members["tokenizer.json"])
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(json.loads(tiny_members["tokenizer.json"])["model"]["vocab"]), hidden_size=16,
            num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=12,
            initializer_range=0.3,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("text", "words_per_row"),
    [
        ({"tuning": "frozen"}, 0),
        ({"tuning": "frozen", "rows": "window", "window_words": 3}, 3),
        ({"tuning": "lora"}, 0),
        ({"tuning": "full"}, 0),
    ],
)
def test_words_become_the_rows_of_training(
    text: dict[str, Any], words_per_row: int, bert: Path, tmp_path: Path
) -> None:
    """Also texts that are longer than the encoder takes at once."""
    fitted = trained(tmp_path / "run", "text-mean", made(rows=False), text={"encoder": str(bert), **text})
    manifest = export_run(tmp_path / "run", tmp_path / "x.affect").manifest
    assert manifest.text == TextSpec("text.onnx", "tokenizer.json", 16, 12, words_per_row)
    model, tokenizer = affectrt.load(tmp_path / "x.affect"), str(bert / "tokenizer.json")
    for count in (1, 3, 4, 40):
        words = tuple((("i", "love", "the", "awfully", "great", "film") * 7)[:count])
        expected = predict(fitted, [Example("", {}, words)])
        answer = model.predict(text=" ".join(words))
        if count < 10:
            assert (
                ids_on_the_device(model, words) == Tokenizer.from_file(tokenizer).encode(" ".join(words)).ids
            )
        if words_per_row or count < 12:  # longer ones are windows, whose mean is told
            assert answer.sentiment == pytest.approx(float(expected.sentiment[0]), abs=2e-4)
            assert answer.present == {"text"}


def ids_on_the_device(model: affectrt.Model, words: Sequence[str]) -> list[int]:
    spec = model.manifest.text
    assert isinstance(spec, TextSpec)
    tokenizer = features.Tokenizer.from_json(model.bundle.read(spec.tokenizer), spec.max_tokens)
    ids: list[int] = tokenizer.encode(features.words_of(" ".join(words), 0.0)).ids.tolist()
    return ids


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small RoBERTa, whose tokenizer, like the real one's, puts no space before a text."""
    folder = tmp_path_factory.mktemp("roberta")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["i love the film", "they hate it"], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    RobertaModel(
        RobertaConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=26, initializer_range=0.3,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_other_encoders_bring_their_tokenizer_and_positions(roberta: Path, tmp_path: Path) -> None:
    trained(tmp_path / "run", "text-mean", made(rows=False), text={"encoder": str(roberta)})
    export_run(tmp_path / "run", tmp_path / "x.affect")
    model, fitted = affectrt.load(tmp_path / "x.affect"), load_run(tmp_path / "run")
    assert json.loads(model.bundle.read("tokenizer.json"))["pre_tokenizer"]["add_prefix_space"]
    words = ("i", "love", "film,", "naïve", "ones")
    # Within a sentence words have a space before them, the first one too.
    whole = Tokenizer.from_file(str(roberta / "tokenizer.json")).encode(" " + " ".join(words))
    assert ids_on_the_device(model, words) == whole.ids and len(whole.ids) > len(words) + 2
    expected = predict(fitted, [Example("", {}, ("i", "love", "film"))])
    assert model.predict(text="i love film").sentiment == pytest.approx(
        float(expected.sentiment[0]), abs=2e-4
    )


def test_what_the_data_never_had_is_refused_and_has_no_pattern(tmp_path: Path) -> None:
    dataset = made(modalities=("text", "vision"))
    trained(tmp_path / "run", "text-mean", dataset)
    manifest = export_run(tmp_path / "run", tmp_path / "x.affect").manifest
    assert manifest.audio is None and manifest.dim("audio") == 1
    assert set(manifest.calibration.temperature) == {"text+vision", "text", "vision", "none"}
    model = affectrt.load(tmp_path / "x.affect")
    heard = FeatureSequence("audio", np.zeros((3, 1), np.float32), np.arange(3.0))
    calls: list[tuple[str, Callable[[], object]]] = [
        ("model.no_modality", lambda: model.predict(features={"audio": heard})),
        ("model.no_modality", lambda: model.predict(audio=(np.zeros(16_000, np.float32), 16_000))),
        ("model.no_extractor", lambda: model.predict(text="i love it")),
        ("model.no_extractor", lambda: model.predict(image=np.zeros((48, 48), np.uint8))),
        ("model.no_extractor", lambda: model.predict(video="clip.mp4")),
    ]
    for code, call in calls:
        with pytest.raises(AffectError) as caught:
            call()
        assert caught.value.code == code
    assert "features={'text'" in _message(lambda: model.predict(text="i love it"))
    stream = model.stream()
    for push in (
        lambda: stream.push_audio(np.zeros(160, np.float32), 16_000),
        lambda: stream.push_frame(np.zeros((48, 48), np.uint8)),
        lambda: stream.push_text("i love it"),
        lambda: stream.push_features(heard),
    ):
        assert "model ghrnn" in _message(push) or "model run" in _message(push)


def _message(call: Callable[[], object]) -> str:
    with pytest.raises(AffectError) as caught:
        call()
    assert caught.value.code in ("model.no_extractor", "model.no_modality")
    return caught.value.message


def test_with_data_the_task_is_measured_and_told(plain: Path, tmp_path: Path) -> None:
    report = export_run(plain, tmp_path / "x.affect", dataset=made(), licence="for tests")
    gate = report.gate
    assert gate is not None and (gate.metric, gate.examples, gate.dataset) == ("mae", 12, "made valid")
    assert gate.after == pytest.approx(gate.before, abs=1e-4)
    fitted = load_run(plain)
    assert gate.before == pytest.approx(fitted.metrics["mae"], abs=1e-5)
    figures = {m.name: (m.value, m.dataset, m.modalities) for m in report.manifest.metrics}
    assert figures["mae"] == (fitted.metrics["mae"], "made valid", "text+audio+vision")
    assert figures["mae_fp32"] == (round(gate.after, 6), "made valid", "text+audio+vision")
    assert report.manifest.licence == "for tests"
    assert "split 'train'" in report.manifest.model_card


def test_a_bundle_in_half_precision_is_measured_as_such(plain: Path, tmp_path: Path) -> None:
    report = export_run(plain, tmp_path / "x.affect", precision="fp16", dataset=made())
    assert report.manifest.precision == {"fusion": "fp16"}
    assert 0 < report.half_difference["fusion"] < 0.1 > report.largest_difference["fusion"]
    assert report.gate is not None and report.gate.after != report.gate.before
    assert {"mae_pytorch", "mae_fp16"} <= {m.name for m in report.manifest.metrics}


# --- Refusals --------------------------------------------------------------------------------------


def _refused(code: str, match: str, folder: Path, place: Path, **options: Any) -> None:
    """The export is refused for that reason and leaves an older bundle as it was."""
    path = place / "kept.affect"
    path.write_bytes(b"an older bundle")
    before = sorted(place.iterdir())
    with pytest.raises(AffectError, match=match) as caught:
        export_run(folder, path, **options)
    assert caught.value.code == code
    assert path.read_bytes() == b"an older bundle" and sorted(place.iterdir()) == before


Sabotage = Callable[[Callable[[Any], None]], None]


@pytest.fixture
def sabotage(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Sabotage:
    """Changes the graph that an export of GHRNN-CMA gets from the exporter."""

    def change_graph(change: Callable[[Any], None]) -> None:
        proto = onnx.load_from_string(exported.graph)
        change(proto.graph)
        broken = Exported(proto.SerializeToString(), exported.program)
        monkeypatch.setattr(graphs, "fusion_graph", lambda *arguments: broken)

    return change_graph


def test_a_wrong_weight_is_named_by_the_node_that_reads_it(
    ghrnn: Path, tmp_path: Path, sabotage: Sabotage
) -> None:
    def change(graph: Any) -> None:
        for tensor in graph.initializer:
            if tensor.name == "fused.bias":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 0.5, tensor.name))

    sabotage(change)
    said = r"fusion\.onnx: output '\w+' on .*first at node '[^']+' \((Gemm|Add)\) of 'fused' \(Linear\)"
    _refused("export.parity", said, ghrnn, tmp_path)


def test_swapped_inputs_are_found_at_the_first_projection(
    ghrnn: Path, tmp_path: Path, sabotage: Sabotage
) -> None:
    def change(graph: Any) -> None:
        for node in graph.node:
            swapped = {"audio_lengths": "vision_lengths", "vision_lengths": "audio_lengths"}
            names = [swapped.get(name, name) for name in node.input]
            del node.input[:]
            node.input.extend(names)

    sabotage(change)
    _refused("export.parity", r"first at node .* of '(audio|vision)", ghrnn, tmp_path)


def test_swapped_outputs_are_refused(ghrnn: Path, tmp_path: Path, sabotage: Sabotage) -> None:
    def change(graph: Any) -> None:
        order = list(graph.output)[::-1]
        del graph.output[:]
        graph.output.extend(order)

    sabotage(change)
    _refused("graph.signature", "expected inputs .* and outputs sentiment, emotion_logits", ghrnn, tmp_path)


def test_a_nan_weight_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Path) -> None:
    broken = load_run(plain)
    with torch.no_grad():
        broken.model.emotion.bias[2] = torch.nan
    monkeypatch.setattr(run, "load_run", lambda folder: broken)
    _refused("export.parity", "NaN or infinity from PyTorch", plain, tmp_path)


def test_a_metric_that_drops_too_far_is_refused(plain: Path, tmp_path: Path) -> None:
    exactly = predict(load_run(plain), made().split("valid")).sentiment
    examples = [
        Example(e.id, e.rows, (), float(s), e.emotion)
        for e, s in zip(made().split("valid"), exactly, strict=True)
    ]
    sure = Dataset("sure", {"train": made().split("train"), "valid": examples}, DIMS)
    said = r"mae on sure valid goes from 0\.0000 to .*--max-drop"
    _refused("export.task_gate", said, plain, tmp_path, dataset=sure, precision="fp16", max_drop=0.0001)


def test_a_run_without_calibration_or_of_unknown_precision_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "run"))
    (folder / "calibration.json").unlink()
    _refused("export.uncalibrated", "train it again", folder, tmp_path)
    _refused("export.precision", "expected fp32, fp16, int8, got int4", plain, tmp_path, precision="int4")


def test_as_people_type_it(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.affect"
    assert main(["export", str(plain), "-o", str(path)]) == 0
    told = capsys.readouterr()
    assert "fusion  fp32" in told.out and "of PyTorch" in told.out and "no --data" in told.out
    assert "fusion: ONNX against PyTorch" in told.err
    assert main(["info", str(path)]) == 0
    assert "features a row, which the application makes" in capsys.readouterr().out
    assert main(["doctor", str(path)]) in (0, 1)
    assert "the application makes audio rows" in capsys.readouterr().out
    assert main(["export", str(plain), "--weights", "w"]) == 2
    assert "[cli.usage]" in capsys.readouterr().err


def test_the_drop_counts_what_is_worse() -> None:
    assert task.TaskGate("mae", "d", 1, 1.0, 1.02).drop == pytest.approx(0.02)
    assert task.TaskGate("weighted_f1", "d", 1, 0.5, 0.49).drop == pytest.approx(0.02)
    assert task.TaskGate("mae", "d", 1, 0.0, 0.1).drop == np.inf
