"""A starter with tiny random parts, and what one export of it gives."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import save as save_safetensors
from transformers import BertConfig, BertModel

from affectrt.bundle import Bundle
from affectrt.calibration import PRESENCE_KEYS
from affectrt.features.log_mel import AudioConfig
from affectrt.features.vision import VisionConfig
from affectrt_export import graphs
from affectrt_export.gate import Int8Gate, probe_sentences
from affectrt_export.package import ExportReport, export_starter
from affectrt_export.parity import face_like
from affectrt_training.encoders.face import FaceEncoder, FaceEncoderConfig
from affectrt_training.encoders.voice import VoiceEncoder, VoiceEncoderConfig
from affectrt_training.models.ghrnn_cma import GhrnnCma, GhrnnCmaConfig
from affectrt_training.models.ghrnn_cma_causal import CausalGhrnnCma
from affectrt_training.recipes.starter.weights import Starter

TEXT_DIM, AUDIO_DIM, VISION_DIM, N_MELS, MAX_TOKENS = 32, 10, 8, 16, 24


def _meta(fusion: GhrnnCmaConfig, causal: GhrnnCmaConfig) -> dict[str, Any]:
    calibration = {
        "coverage": 0.9,
        "temperature": dict.fromkeys(PRESENCE_KEYS, 1.5),
        "interval_half_width": dict.fromkeys(PRESENCE_KEYS, 0.8),
    }
    return {
        "config": asdict(fusion),
        "text": {"dim": TEXT_DIM, "max_tokens": MAX_TOKENS},
        "audio": {"dim": AUDIO_DIM, **asdict(AudioConfig(n_mels=N_MELS))},
        "vision": {"dim": VISION_DIM, **asdict(VisionConfig())},
        "calibration": calibration,
        "causal": {
            "config": asdict(causal),
            "tick_s": 0.1,
            "audio_context_rows": VoiceEncoder.CONTEXT_ROWS,
            "calibration": calibration,
        },
        "window_s": 4.0,
        "metrics": [{"name": "mae", "value": 1.5, "dataset": "random weights", "modalities": "text"}],
        "licence": "Apache-2.0",
        "model_card": "# Tiny\n\nRandom weights for tests.\n",
    }


@pytest.fixture(scope="session")
def make_starter(tiny_members: dict[str, bytes]) -> Callable[..., Starter]:
    """Builds the tiny starter, always the same; ``bert`` may be another class of text encoder."""

    def make(bert: type[BertModel] = BertModel) -> Starter:
        tokenizer = tiny_members["tokenizer.json"]
        torch.manual_seed(3)
        text = bert(
            BertConfig(
                vocab_size=len(json.loads(tokenizer)["model"]["vocab"]),
                hidden_size=TEXT_DIM,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=40,
                initializer_range=0.3,  # so that attention has something to choose from
            ),
            add_pooling_layer=False,
        )
        config = GhrnnCmaConfig(
            text_dim=TEXT_DIM,
            audio_dim=AUDIO_DIM,
            vision_dim=VISION_DIM,
            model_dim=16,
            heads=2,
            hidden_dim=8,
            fused_dim=12,
        )
        voice = VoiceEncoder(VoiceEncoderConfig(n_mels=N_MELS, channels=(4, 6, 8), dim=AUDIO_DIM))
        face = FaceEncoder(FaceEncoderConfig(stem=8, widths=(48, 48, 56), dim=VISION_DIM))
        fusion = GhrnnCma(config)
        causal = CausalGhrnnCma(replace(config, causal=True, window_s=4.0))
        for module in (text, voice, face, fusion, causal):
            module.eval().requires_grad_(False)
        return Starter(text, voice, face, fusion, causal, tokenizer, _meta(config, causal.config))

    return make


def write_mosi(folder: Path, label: Callable[[str], float]) -> Path:
    """A data folder whose MOSI validation split is the probe sentences, labelled by a function; and FER+."""
    path = folder / "text/mosi_train_valid.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "video_id", "clip", "split", "sentiment", "text"])
        for number, sentence in enumerate(probe_sentences()):
            writer.writerow([number, "v", number, "valid", label(sentence), sentence])
    write_faces(folder / "faces/ferplus_train_valid.npz")
    return folder


def write_faces(path: Path) -> None:
    """FER+ with drawn faces, the last twelve of them for validation, all of them neutral."""
    path.parent.mkdir()
    images = (face_like(40, 48) * 255).astype(np.uint8)
    votes = np.zeros((40, 2), np.int64)
    votes[:, 0] = 10
    np.savez(
        path,
        image=images,
        votes=votes,
        vote_names=np.array(["neutral", "happiness"]),
        is_valid=np.arange(40) >= 28,
    )


@pytest.fixture(scope="session")
def make_mosi(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[str], float]], Path]:
    """Writes a data folder as :func:`write_mosi` does."""
    return lambda label: write_mosi(tmp_path_factory.mktemp("mosi"), label)


@pytest.fixture(scope="session")
def starter(make_starter: Callable[..., Starter]) -> Starter:
    """The tiny starter. Don't change it: make another."""
    return make_starter()


GraphMaker = Callable[..., graphs.Exported]
_TRACED: dict[tuple[object, ...], graphs.Exported] = {}


def _kept(make: GraphMaker) -> GraphMaker:
    """The same, but for a module of the same class, weights and sizes what it made before."""

    def graph(module: torch.nn.Module, *sizes: object) -> graphs.Exported:
        weights = hashlib.sha256(save_safetensors(dict(module.state_dict()))).digest()
        key = (make.__name__, type(module), weights, repr(sizes))
        if key not in _TRACED:
            _TRACED[key] = make(module, *sizes)
        return _TRACED[key]

    return graph


@contextmanager
def _tracing_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("text_graph", "audio_graph", "vision_graph", "fusion_graph"):
            patch.setattr(graphs, name, _kept(getattr(graphs, name)))
        yield


@pytest.fixture
def traced_once() -> Iterator[None]:
    """Parts of the starter that several tests need the same graphs of are traced, for ten seconds, once."""
    with _tracing_once():
        yield


@pytest.fixture(scope="session")
def report(
    starter: Starter,
    make_mosi: Callable[[Callable[[str], float]], Path],
    tmp_path_factory: pytest.TempPathFactory,
    worker_id: str,
) -> ExportReport:
    """One good export of the tiny starter, its gate measured: made by the first process that needs it."""
    base = tmp_path_factory.getbasetemp()
    folder = base if worker_id == "master" else base.parent  # that of all processes
    kept = folder / "starter-report.pickle"
    with FileLock(kept.with_suffix(".lock")):
        if not kept.exists():
            data = make_mosi(lambda sentence: len(sentence) % 7 - 3.0)
            with _tracing_once():
                made = export_starter(starter, folder / "tiny.affect", data=data)
            kept.write_bytes(pickle.dumps(made))
    shared: ExportReport = pickle.loads(kept.read_bytes())
    return shared


@pytest.fixture(scope="session")
def int8_gate(report: ExportReport) -> Int8Gate:
    """What that export measured of int8."""
    assert report.gate is not None
    return report.gate


@pytest.fixture(scope="session")
def bundle(report: ExportReport) -> Bundle:
    """What that export wrote."""
    return Bundle.open(report.path)


@pytest.fixture(scope="session")
def text_fp32(starter: Starter) -> bytes:
    """The text graph before quantization."""
    return graphs.text_graph(starter.text_encoder, TEXT_DIM).graph
