"""Text encoders from folders that the tests write: what is loaded, what learns, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from affectrt.errors import AffectError
from affectrt.features.text import words_of
from affectrt_training.config import build
from affectrt_training.encoders.text import (
    LoraSettings,
    TextEncoder,
    TextSettings,
    max_tokens_of,
    pad_ids,
    tokenizer_of,
    weights_hash,
)

FolderOf = Callable[[str], Path]

LORA = LoraSettings(rank=2, alpha=4.0, dropout=0.0)
FAMILIES = ["bert", "roberta", "distilbert"]


def read(settings: TextSettings, *texts: str) -> tuple[Tensor, Tensor]:
    """Padded ids and mask of some texts."""
    tokenizer = tokenizer_of(settings)
    return pad_ids([torch.from_numpy(tokenizer.encode(words_of(text, 0.0)).ids) for text in texts])


def seeded(settings: TextSettings, seed: int) -> TextEncoder:
    """With an adapter that isn't the identity."""
    encoder = TextEncoder(settings)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.3)
    return encoder.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_encoder_is_the_one_in_the_folder(family: str, encoder_of: FolderOf) -> None:
    settings = TextSettings(encoder=str(encoder_of(family)))
    encoder = TextEncoder(settings).train()
    ids, mask = read(settings, "so happy", "it was a great film", "")
    states = encoder(ids, mask)
    assert states.shape == (*ids.shape, encoder.dim) == (3, ids.shape[1], 12)
    assert not any(p.requires_grad for p in encoder.parameters()) and encoder.adapter() == {}
    assert not any(m.training for m in encoder.modules()), "dropout stays off"
    assert torch.isfinite(states).all(), "a text without a token attends to something"
    original = AutoModel.from_pretrained(encoder_of(family)).eval()
    for row, length in enumerate(mask.sum(1).tolist()[:2]):
        alone = original(ids[row : row + 1, :length]).last_hidden_state[0]
        torch.testing.assert_close(states[row, :length], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_learns_alone_and_on_every_linear_layer(family: str, encoder_of: FolderOf) -> None:
    settings = TextSettings(encoder=str(encoder_of(family)), tuning="lora", lora=LORA)
    encoder, other = seeded(settings, 1), seeded(settings, 2)
    plain = TextEncoder(TextSettings(encoder=settings.encoder))
    trainable = {name for name, p in encoder.named_parameters() if p.requires_grad}
    linear = sum(isinstance(m, nn.Linear) for m in plain.modules())
    assert len(trainable) == len(encoder.adapter()) == 2 * linear > 0
    ids, mask = read(settings, "not sad", "great")
    states = encoder(ids, mask)
    assert (states - plain(ids, mask)).abs().max() > 1e-2
    assert (states - other(ids, mask)).abs().max() > 1e-2
    other.load_adapter(encoder.adapter())
    torch.testing.assert_close(other(ids, mask), states)
    merged = encoder.merged()(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(merged, states, atol=1e-5, rtol=1e-5)


def test_tuned_whole_everything_learns_and_comes_back(encoder_of: FolderOf) -> None:
    settings = TextSettings(encoder=str(encoder_of("bert")), tuning="full")
    encoder, fresh = TextEncoder(settings).eval(), TextEncoder(settings).eval()
    ids, mask = read(settings, "it was a great film", "so sad")
    encoder(ids, mask).square().sum().backward()
    used = {n for n, p in encoder.named_parameters() if p.grad is not None and p.grad.any()}
    assert {n for n, p in encoder.named_parameters() if p.requires_grad} == used
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.1)
    fresh.load_adapter(encoder.adapter())
    torch.testing.assert_close(fresh(ids, mask), encoder(ids, mask))
    assert TextEncoder(settings).train().bert.training


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_can_be_left_out_of_a_tuned_encoder(family: str, encoder_of: FolderOf) -> None:
    settings = TextSettings(encoder=str(encoder_of(family)), tuning="full")
    ids, mask = read(settings, "it was a great film", "so sad")

    def twice(dropout: float | None) -> tuple[Tensor, Tensor]:
        encoder = TextEncoder(replace(settings, dropout=dropout)).train()
        return encoder(ids, mask), encoder(ids, mask)

    assert torch.equal(*twice(0.0))
    assert not torch.equal(*twice(0.3))
    assert not torch.equal(*twice(None)), "the folder's own"
    with pytest.raises(ValueError, match="dropout"):
        replace(settings, dropout=1.0)


def test_weights_of_another_shape_or_kind_are_refused(encoder_of: FolderOf) -> None:
    settings = TextSettings(encoder=str(encoder_of("bert")), tuning="lora", lora=LORA)
    encoder = TextEncoder(settings)
    wider = TextEncoder(TextSettings(encoder=settings.encoder, tuning="lora", lora=LoraSettings(rank=3)))
    some = dict(list(encoder.adapter().items())[1:])
    for weights in (wider.adapter(), some, {}, {**encoder.adapter(), "foreign": torch.zeros(1)}):
        with pytest.raises(AffectError, match="expected") as caught:
            encoder.load_adapter(weights)
        assert caught.value.code == "weights.mismatch"


def test_words_one_by_one_are_the_words_of_the_text(encoder_of: FolderOf) -> None:
    """Byte-level tokens know a word's start by the space before it, also where words come one by one."""
    folder = encoder_of("roberta")
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids, _ = read(TextSettings(encoder=str(folder)), "so happy")
    assert ids[0].tolist() == library.encode(" so happy").ids
    assert ids[0].tolist() != library.encode(["so", "happy"], is_pretokenized=True).ids


@pytest.mark.parametrize("family", FAMILIES)
def test_passages_are_as_long_as_the_encoder_takes(family: str, encoder_of: FolderOf) -> None:
    settings = TextSettings(encoder=str(encoder_of(family)))
    assert max_tokens_of(settings) == 16
    assert max_tokens_of(TextSettings(encoder=settings.encoder, max_tokens=5)) == 5
    ids, mask = read(settings, "a " * 40)
    assert ids.shape == (1, 16)
    assert torch.isfinite(TextEncoder(settings)(ids, mask)).all()


def test_the_hash_changes_with_the_weights(encoder_of: FolderOf, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder_of("bert"), tmp_path / "copy")
    was = weights_hash(TextSettings(encoder=str(encoder_of("bert"))))
    assert weights_hash(TextSettings(encoder=str(folder))) == was
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][0, 0] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert weights_hash(TextSettings(encoder=str(folder))) != was


def _without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.attention.self.query.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _of_another_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))


def _of_another_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 14}))


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (shutil.rmtree, "encoder.folder", "expected 'minilm' or a folder"),
        (lambda f: (f / "config.json").unlink(), "encoder.folder", "no config.json"),
        (lambda f: (f / "config.json").write_text("[]"), "encoder.folder", "model_type"),
        (lambda f: (f / "config.json").write_text("{"), "encoder.folder", "model_type"),
        (_of_another_family, "encoder.unsupported", "got 'gpt2'"),
        (lambda f: (f / "tokenizer.json").unlink(), "encoder.folder", "expected tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("nonsense"), "tokenizer.invalid", "could not be read"),
        (_pickled_only, "encoder.folder", "pickled weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 64), "encoder.folder", "readable weights"),
        (_without_a_tensor, "encoder.folder", "1 are missing"),
        (_of_another_width, "encoder.folder", "readable weights"),
    ],
)
def test_what_is_no_encoder_is_refused(
    damage: Callable[[Path], object], code: str, says: str, encoder_of: FolderOf, tmp_path: Path
) -> None:
    folder = shutil.copytree(encoder_of("bert"), tmp_path / "copy")
    damage(folder)
    settings = TextSettings(encoder=str(folder))
    with pytest.raises(AffectError, match=says) as caught:
        tokenizer_of(settings)
        TextEncoder(settings)
    assert caught.value.code == code


def test_settings_come_from_mappings() -> None:
    found = build(TextSettings, {"tuning": "lora", "lora": {"rank": 4}, "max_tokens": 64}, where="text")
    assert found == TextSettings(tuning="lora", lora=LoraSettings(rank=4), max_tokens=64)


@pytest.mark.parametrize(
    "values",
    [{"max_tokens": 2}, {"window_words": 0}, {"tuning": "full", "rows": "word"}, {"tuning": "some"}],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(AffectError, match="expected") as caught:
        build(TextSettings, values, where="text")
    assert caught.value.code == "config.value"


def test_nothing_padded_is_one_column() -> None:
    ids, mask = pad_ids([torch.zeros(0, dtype=torch.int64)])
    assert ids.shape == mask.shape == (1, 1) and not mask.any()
