"""Text rows from words: what a row is, texts longer than the encoder, and the rows kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import tokenizers
import torch

from affectrt.errors import AffectError
from affectrt.features.text import TextFeatures, words_of
from affectrt_training.data import text_rows
from affectrt_training.data.dataset import Dataset, Example
from affectrt_training.data.text_rows import tokens, with_text_rows
from affectrt_training.encoders.text import TextEncoder, TextSettings, tokenizer_of

FolderOf = Callable[[str], Path]
Rows = npt.NDArray[np.float32]

SHORT = ("i", "am", "so", "sad")
EMPTY = "\x00"
"""Cleaned away by the tokenizer."""
WORDS = "it was a great film not an awful film hate it i am so"
LONG = (*WORDS.split(), EMPTY, "unhappy", "it", "a", "the")
"""More than the 14 tokens that fit between [CLS] and [SEP]."""


@pytest.fixture
def settings(encoder_of: FolderOf) -> TextSettings:
    return TextSettings(encoder=str(encoder_of("bert")), window_words=3)


def dataset(*words: tuple[str, ...]) -> Dataset:
    return Dataset("some", {"train": [Example(str(k), {}, w) for k, w in enumerate(words)]}, {})


def rows_of(found: Dataset) -> list[Rows]:
    return [example.rows["text"] for example in found.splits["train"]]


def states_of(ids: list[int], settings: TextSettings) -> Rows:
    """(T, dim) of one passage."""
    with torch.no_grad():
        found: Rows = TextEncoder(settings)(torch.tensor([ids]), torch.ones(1, len(ids)))[0].numpy()
    return found


def plain(words: tuple[str, ...], per_row: int, settings: TextSettings) -> Rows:
    """Words in passages of at most 14 tokens, the last one with the words before it; then means."""
    library = tokenizers.Tokenizer.from_file(str(Path(settings.encoder) / "tokenizer.json"))
    by_word = [library.encode(word, add_special_tokens=False).ids for word in words]
    states: list[list[Rows]] = [[] for _ in words]
    first = 0
    while first < len(words):
        after = first
        while after < len(words) and sum(map(len, by_word[first : after + 1])) <= 14:
            after += 1
        context = first
        while after == len(words) and context and sum(map(len, by_word[context - 1 :])) <= 14:
            context -= 1
        ids = [2, *(i for word in by_word[context:after] for i in word), 3]
        found = iter(states_of(ids, settings)[1:-1])
        for word in range(context, after):
            own = [next(found) for _ in by_word[word]]
            states[word] = own if word >= first else states[word]
        first = after
    rows = []
    for start in range(0, len(words), per_row):
        group = [state for word in states[start : start + per_row] for state in word]
        rows.append(np.mean(group, 0) if group else np.zeros(12, np.float32))
    return np.stack(rows)


@pytest.mark.parametrize(("rows", "per_row"), [("word", 1), ("window", 3)])
def test_means_over_words(rows: Literal["word", "window"], per_row: int, settings: TextSettings) -> None:
    settings = replace(settings, rows=rows)
    found = with_text_rows(dataset(SHORT, LONG, SHORT[:1]), settings)
    assert found.dims == {"text": 12}
    for words, got in zip((SHORT, LONG, SHORT[:1]), rows_of(found), strict=True):
        assert got.dtype == np.float32 and got.shape == (-(-len(words) // per_row), 12)
        np.testing.assert_allclose(got, plain(words, per_row, settings), atol=1e-5)


def test_token_rows_are_the_device_s(settings: TextSettings) -> None:
    """Also of a text that is too long: the newest words stay."""
    encoder = TextEncoder(settings)

    def graph(**inputs: Any) -> tuple[Any, ...]:
        with torch.no_grad():
            return (encoder(*(torch.from_numpy(inputs[k]) for k in ("input_ids", "attention_mask"))).numpy(),)

    device = TextFeatures(tokenizer_of(settings), graph, 12)
    for words, got in zip(
        (SHORT, LONG), rows_of(with_text_rows(dataset(SHORT, LONG), settings)), strict=True
    ):
        expected = device.extract(words_of(" ".join(words), 0.0)).values
        assert len(got) == len(tokens(Example("", {}, words), settings)) <= 16
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_word_longer_than_the_encoder_is_read_in_pieces(settings: TextSettings) -> None:
    word = "x" * 40
    library = tokenizers.Tokenizer.from_file(str(Path(settings.encoder) / "tokenizer.json"))
    ids = library.encode(word, add_special_tokens=False).ids
    assert len(ids) == 40
    states = [states_of([2, *ids[k : k + 14], 3], settings)[1:-1] for k in (0, 14, 28)]
    (got,) = rows_of(with_text_rows(dataset((word,)), replace(settings, rows="word")))
    np.testing.assert_allclose(got, np.concatenate(states).mean(0, keepdims=True), atol=1e-5)


def test_words_without_tokens(settings: TextSettings) -> None:
    found = rows_of(with_text_rows(dataset((EMPTY,)), replace(settings, rows="word")))
    np.testing.assert_array_equal(found[0], np.zeros((1, 12), np.float32))
    (example,) = with_text_rows(dataset((" ",)), settings).splits["train"]
    assert "text" not in example.rows, "no word, no text"
    assert len(tokens(example, settings)) == 0


def test_examples_keep_their_rows_and_silence(settings: TextSettings) -> None:
    own = np.ones((2, 12), np.float32)
    mixed = Dataset(
        "mixed",
        {"a": [Example("1", {"text": own}, SHORT), Example("2", {})], "b": [Example("3", {}, SHORT)]},
        {"text": 12, "audio": 5},
    )
    found = with_text_rows(mixed, settings)
    assert found.splits["a"][0].rows["text"] is own and "text" not in found.splits["a"][1].rows
    assert found.splits["b"][0].rows["text"].shape == (6, 12) and found.dims == {"text": 12, "audio": 5}
    silent = Dataset("silent", {"a": [Example("2", {})]}, {"audio": 5})
    assert with_text_rows(silent, settings) is silent


def test_rows_of_another_width_are_refused(settings: TextSettings) -> None:
    own = Example("glove", {"text": np.ones((2, 300), np.float32)})
    mixed = Dataset("mixed", {"a": [own, Example("1", {}, SHORT)]}, {"text": 300})
    with pytest.raises(AffectError, match="'glove' brings text rows of 300 features") as caught:
        with_text_rows(mixed, settings)
    assert caught.value.code == "data.text_dims"


def test_a_tuned_encoder_has_no_rows_to_keep(settings: TextSettings) -> None:
    with pytest.raises(ValueError, match="frozen"):
        with_text_rows(dataset(SHORT), replace(settings, tuning="full"))


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _altered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 64
    path.write_bytes(data)


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncated, _altered, _emptied])
def test_kept_rows_are_read_and_damaged_ones_made_again(
    damage: Callable[[Path], None], settings: TextSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rows_of(with_text_rows(dataset(SHORT, LONG, SHORT), settings, tmp_path))
    entries = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    assert len(entries) == 2, "one entry for the same words"
    kept = [entry.read_bytes() for entry in entries]

    encoded: list[TextSettings] = []

    def counted(settings: TextSettings) -> TextEncoder:
        encoded.append(settings)
        return TextEncoder(settings)

    monkeypatch.setattr(text_rows, "TextEncoder", counted)
    again = rows_of(with_text_rows(dataset(SHORT, LONG, SHORT), settings, tmp_path))
    assert encoded == []
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)

    damage(entries[0])
    mended = rows_of(with_text_rows(dataset(SHORT, LONG, SHORT), settings, tmp_path))
    assert len(encoded) == 1
    for a, b in zip(first, mended, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert [len(e.read_bytes()) for e in entries] == [len(data) for data in kept]
    with_text_rows(dataset(SHORT, LONG), settings, tmp_path)
    assert len(encoded) == 1, "the mended entry is sound"


def test_other_settings_and_weights_have_other_entries(
    settings: TextSettings, encoder_of: FolderOf, tmp_path: Path
) -> None:
    others = [
        settings,
        replace(settings, rows="word"),
        replace(settings, rows="window"),
        replace(settings, rows="window", window_words=2),
        replace(settings, max_tokens=5),
        replace(settings, encoder=str(encoder_of("distilbert"))),
    ]
    for count, other in enumerate(others, start=1):
        with_text_rows(dataset(SHORT), other, tmp_path)
        assert sum(p.is_file() for p in tmp_path.rglob("*")) == count
    with_text_rows(dataset(SHORT), replace(settings, window_words=5), tmp_path)
    assert sum(p.is_file() for p in tmp_path.rglob("*")) == len(others), "token rows know no windows"


def test_long_work_shows_a_bar(
    settings: TextSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the captured stream for a terminal
    with_text_rows(dataset(SHORT), settings)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(text_rows, "PATIENCE_S", 0.0)
    with_text_rows(dataset(SHORT), settings, progress=False)
    assert capsys.readouterr().err == ""
    with_text_rows(dataset(SHORT), settings)
    assert "reading text" in capsys.readouterr().err
