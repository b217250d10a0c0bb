"""Training with a text encoder: frozen, with an adapter, or tuned whole; a run reads raw words afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from affectrt.affect import Modality
from affectrt.errors import AffectError
from affectrt_training.config import build
from affectrt_training.data.dataset import Dataset, Example, FloatMatrix
from affectrt_training.encoders.text import TextEncoder, TextSettings
from affectrt_training.fit.batches import Examples
from affectrt_training.fit.checkpoint import Fitted, load_run
from affectrt_training.fit.course import Course
from affectrt_training.fit.network import Network
from affectrt_training.fit.predict import predict
from affectrt_training.fit.run import fit_run
from affectrt_training.fit.settings import RunConfig
from affectrt_training.fit.stage import Stage
from affectrt_training.fit.storage import read_tensors, write_tensors
from affectrt_training.models.registry import create

GOOD, BAD = ("great", "happy", "love"), ("awful", "sad", "hate")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, tiny_members: dict[str, bytes]) -> Path:
    """A folder with a small BERT of random weights."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "tokenizer.json").write_bytes(tiny_members["tokenizer.json"])
    torch.manual_seed(0)
    vocabulary = len(json.loads(tiny_members["tokenizer.json"])["model"]["vocab"])
    BertModel(
        BertConfig(
            vocab_size=vocabulary, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=32,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def spoken() -> Dataset:
    """Words alone, a few of them missing, one kind glad and one kind not; some have a voice, too."""
    rng = np.random.default_rng(0)
    examples = []
    for k in range(36):
        words = tuple(rng.choice(GOOD if k % 2 else BAD, size=rng.integers(1, 4)))
        voice: dict[Modality, FloatMatrix] = {}
        if k % 3 == 0:
            voice["audio"] = rng.normal(size=(2, 3)).astype(np.float32)
        examples.append(Example(f"e{k}", voice, () if k % 9 == 0 else words, 2.0 if k % 2 else -2.0))
    return Dataset("spoken", {"train": examples[:24], "valid": examples[24:]}, {"audio": 3})


def config(bert: Path, tuning: str, **training: Any) -> RunConfig:
    return build(
        RunConfig,
        {
            "system": "ghrnn-cma",
            "model": {"model_dim": 8, "heads": 2, "hidden_dim": 8, "fused_dim": 8},
            "text": {"encoder": str(bert), "tuning": tuning, "lora": {"rank": 2}},
            "training": {
                "epochs": 3, "batch_size": 8, "lr": 1e-2, "encoder_lr": 1e-2,
                "accelerator": "cpu", **training,
            },
        },
        where="run",
    )  # fmt: skip


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_a_run_learns_from_words_and_reads_them_from_its_folder(
    bert: Path, tmp_path: Path, tuning: str
) -> None:
    fitted = fit_run(config(bert, tuning), spoken(), tmp_path / "run", progress=False)
    assert fitted.text_from == "words" and fitted.dims["text"] == 16
    valid = spoken().split("valid")
    said = predict(fitted, valid, batch_size=5)
    error = np.abs(said.sentiment - np.array([e.sentiment for e in valid], float)).mean()
    assert error == pytest.approx(float(fitted.history[fitted.best_epoch - 1]["mae"] or 0), abs=1e-5)
    loaded = load_run(tmp_path / "run")
    assert np.array_equal(predict(loaded, valid, batch_size=5).sentiment, said.sentiment)
    # The words matter: silence and another word get other answers.
    mute, other = replace(valid[1], words=()), replace(valid[1], words=("table",))
    answers = predict(loaded, [valid[1], mute, other]).sentiment
    assert len(set(answers.tolist())) == 3
    assert (tmp_path / "run" / "encoder.safetensors").exists() == (tuning != "frozen")


def encoder_weights(fitted: Fitted) -> dict[str, torch.Tensor]:
    assert fitted.encoder is not None
    return fitted.encoder.adapter()


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_lower_layers_learn_slower(bert: Path, tmp_path: Path, tuning: str) -> None:
    folder = tmp_path / "three-layers"
    deeper = BertConfig.from_pretrained(bert)
    deeper.num_hidden_layers = 3
    BertModel(deeper).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((bert / "tokenizer.json").read_bytes())
    run = config(folder, tuning, encoder_lr=0.01, layer_decay=0.5)
    network = Network(
        create(run.system, {"text": 16, "audio": 1, "vision": 1}, run.model), TextEncoder(run.text)
    )
    none = Examples([], {})
    optimizer = Stage(run, network, none, none).configure_optimizers()["optimizer"]
    peaks = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert network.encoder is not None
    found = {
        name: peaks.pop(id(p)) for name, p in network.encoder.named_parameters() if p.requires_grad
    }  # fmt: skip
    for layer, expected in ((2, 0.01), (1, 0.005), (0, 0.0025)):
        assert {lr for name, lr in found.items() if f"layer.{layer}." in name} == {expected}
    below = {lr for name, lr in found.items() if "embeddings" in name}
    assert below == ({0.00125} if tuning == "full" else set())
    assert set(peaks.values()) == {run.training.lr}  # what is left is the model's


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_what_is_tuned_changes_and_only_that_is_kept(bert: Path, tmp_path: Path, tuning: str) -> None:
    fitted = fit_run(config(bert, tuning), spoken(), tmp_path, progress=False)
    torch.manual_seed(0)
    before = TextEncoder(TextSettings(encoder=str(bert), tuning=fitted.config.text.tuning)).bert.state_dict()
    after = fitted.encoder.bert.state_dict() if fitted.encoder else {}
    changed = {name for name in after if name not in before or not torch.equal(after[name], before[name])}
    assert changed
    if tuning == "lora":
        assert all("lora" in name for name in changed)
        assert all("lora" in name for name in encoder_weights(fitted))


def test_an_interrupted_run_with_a_tuned_encoder_ends_the_same(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit_run(config(bert, "lora"), spoken(), progress=False)
    write: Callable[..., None] = Course._write

    def write_and_fail(self: Course, *args: Any) -> None:
        write(self, *args)
        if self.progress.epoch == 2:
            raise OSError("power failure")

    with monkeypatch.context() as patch:
        patch.setattr(Course, "_write", write_and_fail)
        with pytest.raises(OSError, match="power failure"):
            fit_run(config(bert, "lora"), spoken(), tmp_path, progress=False)
    resumed = fit_run(config(bert, "lora"), spoken(), tmp_path, resume=True, progress=False)
    assert resumed.history == whole.history
    for name, tensor in encoder_weights(whole).items():
        assert torch.equal(tensor, encoder_weights(resumed)[name]), name


def test_rows_of_the_data_come_before_words_unless_the_encoder_is_tuned(bert: Path) -> None:
    dataset = spoken()
    rows = np.ones((2, 5), np.float32)
    both = replace(
        dataset,
        dims={**dataset.dims, "text": 5},
        splits={
            name: [replace(e, rows={**e.rows, "text": rows}) for e in part]
            for name, part in dataset.splits.items()
        },
    )
    fitted = fit_run(config(bert, "frozen", epochs=1), both, progress=False)
    assert (fitted.text_from, fitted.dims["text"]) == ("rows", 5)
    tuned = fit_run(config(bert, "lora", epochs=1), both, progress=False)
    assert (tuned.text_from, tuned.dims["text"]) == ("words", 16)


def test_an_encoder_without_words_can_not_be_tuned(bert: Path) -> None:
    dataset = spoken()
    silent = replace(
        dataset, splits={k: [replace(e, words=()) for e in part] for k, part in dataset.splits.items()}
    )
    with pytest.raises(AffectError, match=r"text\.tuning") as caught:
        fit_run(config(bert, "lora"), silent, progress=False)
    assert caught.value.code == "data.no_words"
    assert fit_run(config(bert, "frozen", epochs=1), silent, progress=False).text_from == "none"


@pytest.mark.parametrize("spoil", ["missing", "cut"])
def test_encoder_weights_that_do_not_fit_are_refused(bert: Path, tmp_path: Path, spoil: str) -> None:
    fit_run(config(bert, "lora", epochs=1), spoken(), tmp_path, progress=False)
    path = tmp_path / "encoder.safetensors"
    tensors, info = read_tensors(path)
    if spoil == "missing":
        tensors.popitem()
        write_tensors(path, tensors, info)
    else:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(AffectError, match=r"encoder\.safetensors") as caught:
        load_run(tmp_path)
    assert caught.value.code == ("checkpoint.mismatch" if spoil == "missing" else "checkpoint.corrupt")
