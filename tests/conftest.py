"""Fixtures for all tests, and how several processes share them out.

The fixtures are a tiny model bundle with random weights, built from numpy alone.
Its graphs have the signatures of a real bundle's and obey the rules that the SDK relies on (dynamic lengths,
null slots, absent modalities without influence): everything around a model is tested without training one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import affectrt
from affectrt.affect import EMOTIONS, MODALITIES
from affectrt.bundle import Manifest, write_bundle
from affectrt.calibration import PRESENCE_KEYS, Calibration
from affectrt.manifest import AudioSpec, FusionSpec, Metric, TextSpec, VisionSpec

FIRST = (
    "tests/export/test_package.py",
    "tests/kernels/test_cpp.py",
    "tests/test_starter.py",
    "tests/export/test_run.py",
)
"""What makes a bundle for others, then modules of minutes, the longest first."""

# The tests share the processors with each other and with compilers: the time of one example says nothing.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One process where somebody wants to see what the tests print, which workers keep to themselves."""
    return 0 if config.getoption("capture") == "no" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several processes, none shall be left alone with a slow module at the end: those start first."""
    if hasattr(config, "workerinput"):
        rank = {name: place for place, name in enumerate(FIRST)}
        items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


OPSET, IR_VERSION = 17, 10
TEXT_DIM, AUDIO_DIM, VISION_DIM = 12, 10, 8
N_MELS, CROP_PX, ROWS_PER_STATE = 64, 48, 8
WORDS = (
    "i",
    "am",
    "so",
    "happy",
    "sad",
    "not",
    "it",
    "was",
    "great",
    "awful",
    "the",
    "a",
    "film",
    "love",
    "hate",
)

Weights = Mapping[str, npt.NDArray[Any]]


def _graph(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[str | int]]],
    outputs: dict[str, list[str | int]],
    weights: Weights,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, dtype, shape) for n, (dtype, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in outputs.items()],
        [numpy_helper.from_array(value, n) for n, value in weights.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tests"
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _normal(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return rng.normal(0.0, shape[0] ** -0.5, shape).astype(np.float32)


def _text_graph(rng: np.random.Generator, vocabulary: int) -> bytes:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["states"]),
    ]
    weights: Weights = {"table": _normal(rng, vocabulary, TEXT_DIM) * 4, "last": np.array([2], np.int64)}
    shape: list[str | int] = ["B", "T"]
    return _graph(
        "text",
        nodes,
        {"input_ids": (TensorProto.INT64, shape), "attention_mask": (TensorProto.INT64, shape)},
        {"states": ["B", "T", TEXT_DIM]},
        weights,
    )


def _audio_graph(rng: np.random.Generator) -> bytes:
    nodes = [
        helper.make_node("Transpose", ["log_mel"], ["channels_first"], perm=[0, 2, 1]),
        helper.make_node(
            "AveragePool",
            ["channels_first"],
            ["pooled"],
            kernel_shape=[ROWS_PER_STATE],
            strides=[ROWS_PER_STATE],
            ceil_mode=1,
        ),
        helper.make_node("Transpose", ["pooled"], ["rows"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["rows", "weight"], ["states"]),
    ]
    return _graph(
        "audio",
        nodes,
        {"log_mel": (TensorProto.FLOAT, ["B", "T", N_MELS])},
        {"states": ["B", "K", AUDIO_DIM]},
        {"weight": _normal(rng, N_MELS, AUDIO_DIM)},
    )


def _vision_graph(rng: np.random.Generator) -> bytes:
    nodes = [
        helper.make_node("Flatten", ["faces"], ["pixels"], axis=1),
        helper.make_node("MatMul", ["pixels", "weight"], ["states"]),
    ]
    return _graph(
        "vision",
        nodes,
        {"faces": (TensorProto.FLOAT, ["N", CROP_PX, CROP_PX])},
        {"states": ["N", VISION_DIM]},
        {"weight": _normal(rng, CROP_PX * CROP_PX, VISION_DIM)},
    )


def _fusion_graph(rng: np.random.Generator) -> tuple[bytes, Weights]:
    """Mean of each modality's valid rows and its null slot, then linear heads."""
    dims: dict[str, int] = {"text": TEXT_DIM, "audio": AUDIO_DIM, "vision": VISION_DIM}
    total = sum(dims.values())
    learned: dict[str, npt.NDArray[Any]] = {
        "to_sentiment": _normal(rng, total, 1),
        "to_emotions": _normal(rng, total, len(EMOTIONS)),
    }
    constants: dict[str, npt.NDArray[Any]] = {
        "one": np.array(1, np.int64),
        "zero": np.array(0, np.int64),
        "rows_axis": np.array([1], np.int64),
        "last_axis": np.array([2], np.int64),
        "limit": np.array(3.0, np.float32),
    }
    nodes: list[onnx.NodeProto] = []
    inputs: dict[str, tuple[int, list[str | int]]] = {}
    for m, dim in dims.items():
        learned[f"{m}_null"] = _normal(rng, 1, dim)
        inputs[m] = (TensorProto.FLOAT, ["B", f"T_{m}", dim])
        inputs[f"{m}_lengths"] = (TensorProto.INT64, ["B"])
        nodes += [
            helper.make_node("Shape", [m], [f"{m}_shape"]),
            helper.make_node("Gather", [f"{m}_shape", "one"], [f"{m}_rows"]),
            helper.make_node("Range", ["zero", f"{m}_rows", "one"], [f"{m}_index"]),
            helper.make_node("Unsqueeze", [f"{m}_lengths", "rows_axis"], [f"{m}_column"]),
            helper.make_node("Less", [f"{m}_index", f"{m}_column"], [f"{m}_valid"]),
            helper.make_node("Unsqueeze", [f"{m}_valid", "last_axis"], [f"{m}_keep"]),
            helper.make_node("Cast", [f"{m}_keep"], [f"{m}_mask"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [m, f"{m}_mask"], [f"{m}_kept"]),
            helper.make_node("ReduceSum", [f"{m}_kept", "rows_axis"], [f"{m}_sum"], keepdims=0),
            helper.make_node("Add", [f"{m}_sum", f"{m}_null"], [f"{m}_with_null"]),
            helper.make_node("Add", [f"{m}_column", "one"], [f"{m}_slots"]),
            helper.make_node("Cast", [f"{m}_slots"], [f"{m}_count"], to=TensorProto.FLOAT),
            helper.make_node("Div", [f"{m}_with_null", f"{m}_count"], [f"{m}_mean"]),
        ]
    nodes += [
        helper.make_node("Concat", [f"{m}_mean" for m in MODALITIES], ["joint"], axis=1),
        helper.make_node("MatMul", ["joint", "to_sentiment"], ["raw"]),
        helper.make_node("Tanh", ["raw"], ["bounded"]),
        helper.make_node("Mul", ["bounded", "limit"], ["scaled"]),
        helper.make_node("Squeeze", ["scaled", "rows_axis"], ["sentiment"]),
        helper.make_node("MatMul", ["joint", "to_emotions"], ["emotion_logits"]),
    ]
    outputs: dict[str, list[str | int]] = {"sentiment": ["B"], "emotion_logits": ["B", len(EMOTIONS)]}
    return _graph("fusion", nodes, inputs, outputs, {**learned, **constants}), learned


def _tokenizer_json() -> tuple[bytes, int]:
    """WordPiece with a few words and every letter: each text has tokens, [UNK] is for other scripts."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"'.,!?-", *letters, *(f"##{c}" for c in letters), *WORDS]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    special = [
        {
            "id": vocabulary[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            "sep": ["[SEP]", vocabulary["[SEP]"]],
            "cls": ["[CLS]", vocabulary["[CLS]"]],
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
    return json.dumps(tokenizer).encode(), len(vocabulary)


def _safetensors(weights: Weights) -> bytes:
    header: dict[str, object] = {}
    body = b""
    for name, value in sorted(weights.items()):
        data = value.astype(np.float32).tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(value.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


@pytest.fixture(scope="session")
def tiny_members() -> dict[str, bytes]:
    """The files of the tiny bundle by name. Don't change it: copy."""
    rng = np.random.default_rng(7)
    tokenizer, vocabulary = _tokenizer_json()
    fusion, weights = _fusion_graph(rng)
    return {
        "text.onnx": _text_graph(rng, vocabulary),
        "audio.onnx": _audio_graph(rng),
        "vision.onnx": _vision_graph(rng),
        "fusion.onnx": fusion,
        "fusion.safetensors": _safetensors(weights),
        "tokenizer.json": tokenizer,
    }


@pytest.fixture(scope="session")
def tiny_manifest() -> Manifest:
    """The manifest of the tiny bundle, before its members are filled in."""
    return Manifest(
        name="tiny",
        family="mean",
        config={"dims": [TEXT_DIM, AUDIO_DIM, VISION_DIM]},
        labels=EMOTIONS,
        text=TextSpec("text.onnx", "tokenizer.json", TEXT_DIM, 32, 0),
        audio=AudioSpec("audio.onnx", AUDIO_DIM, 16_000, 0.025, 0.01, N_MELS, 60.0, 7600.0, ROWS_PER_STATE),
        vision=VisionSpec("vision.onnx", VISION_DIM, CROP_PX, 10.0, 1.0),
        fusion=FusionSpec("fusion.onnx", "fusion.safetensors"),
        calibration=Calibration(
            coverage=0.9,
            temperature={key: 1.0 + 0.1 * i for i, key in enumerate(PRESENCE_KEYS)},
            interval_half_width={key: 0.5 + 0.1 * i for i, key in enumerate(PRESENCE_KEYS)},
        ),
        window_s=4.0,
        precision={"text": "fp32", "audio": "fp32", "vision": "fp32", "fusion": "fp32"},
        opset=OPSET,
        ir_version=IR_VERSION,
        metrics=(Metric("mae", 1.5, "random weights", "text"),),
        licence="Apache-2.0",
        model_card="# Tiny\n\nRandom weights for tests: its results mean nothing.\n",
        members={},
    )


@pytest.fixture(scope="session")
def make_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_manifest: Manifest, tiny_members: dict[str, bytes]
) -> Callable[..., Path]:
    """Writes a bundle: the tiny one, with a changed manifest or some members changed."""

    def make(manifest: Manifest | None = None, members: Mapping[str, bytes] | None = None) -> Path:
        path = tmp_path_factory.mktemp("bundle") / "tiny.affect"
        write_bundle(path, manifest or tiny_manifest, {**tiny_members, **(members or {})})
        return path

    return make


@pytest.fixture(scope="session")
def tiny_bundle(make_bundle: Callable[..., Path]) -> Path:
    """Path of the tiny bundle. Don't change the file: copy it."""
    return make_bundle()


@pytest.fixture(scope="session")
def tiny_model(tiny_bundle: Path) -> affectrt.Model:
    """The tiny bundle, loaded."""
    return affectrt.load(tiny_bundle, threads=1)
