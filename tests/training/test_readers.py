"""Every format that data come in, on files that the tests write, and on the research sets where they are."""

from __future__ import annotations

import json
import os
import pickle
import struct
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch

from affectrt.affect import EMOTIONS
from affectrt.errors import AffectError
from affectrt.features.audio import level_normalise
from affectrt.features.log_mel import log_mel
from affectrt.media import read_audio
from affectrt_training.data import raw
from affectrt_training.data.assemble import Reading
from affectrt_training.data.dataset import Dataset, Example, collate, inputs
from affectrt_training.data.readers import read_as_is, read_dataset
from affectrt_training.encoders.voice import VoiceEncoder
from affectrt_training.recipes.starter.weights import COMMITTED, fill, read_parts

DATA = Path(os.environ["AFFECTRT_DATA"]) if "AFFECTRT_DATA" in os.environ else None
needs_data = pytest.mark.skipif(DATA is None, reason="AFFECTRT_DATA names no folder with the data sets")

Array = npt.NDArray[Any]


def _rows(*shape: int) -> Array:
    """No value is zero: what is zero in the tests is padding."""
    return np.random.default_rng(shape).uniform(0.5, 1.0, shape).astype(np.float32)


def _padded(lengths: list[int], steps: int, dim: int, *, front: bool) -> Array:
    array = np.zeros((len(lengths), steps, dim), np.float32)
    for row, length in zip(array, lengths, strict=True):
        if length:
            (row[steps - length :] if front else row[:length])[:] = _rows(length, dim)
    return array


def _lengths(examples: Any, modality: Any) -> list[int]:
    return [len(e.rows.get(modality, ())) for e in examples]


def _code(*arguments: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(AffectError) as caught:
        read_dataset(*arguments, **options)
    return caught.value.code, caught.value.message


# --- Pickles -----------------------------------------------------------------------------------------


def _mmsa(n: int = 3, *, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """One split of MMSA's, unaligned: text 6 steps, audio 9, vision 7."""
    mask = np.zeros((n, 6))
    for i in range(n):
        mask[i, : 2 + i] = 1
    part: dict[str, Any] = {
        "raw_text": np.array([f"It was film {i}" for i in range(n)]),
        "text": _rows(n, 6, 8),  # states of padding aren't zero: the mask tells the length
        "text_bert": np.stack([np.ones((n, 6)), mask, np.zeros((n, 6))], axis=1),
        "audio": _padded([9, 4, 0][:n], 9, 5, front=False),
        "vision": _padded([7, 7, 3][:n], 7, 4, front=False),
        "audio_lengths": [9, 5, 1][:n],
        "vision_lengths": [7, 6, 3][:n],
        "regression_labels": np.linspace(-3, 3, n).astype(np.float32),
        "classification_labels": np.zeros(n),
        "annotations": ["Negative"] * n,
        "id": [f"vid{i // 2}$_${i}" for i in range(n)],
    }
    return {key: value for key, value in {**part, **changes}.items() if value is not None}


def _write_pickle(path: Path, **splits: Any) -> Path:
    path.write_bytes(pickle.dumps(splits, 4))
    return path


def test_mmsa_pickles(tmp_path: Path) -> None:
    # The name says nothing: the content does.
    dataset = read_dataset(
        _write_pickle(tmp_path / "unaligned_50", train=_mmsa(), valid=_mmsa(2), test=_mmsa(1))
    )
    assert dataset.format == "MMSA pickle"
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 3, "valid": 2, "test": 1}
    assert dataset.dims == {"text": 8, "audio": 5, "vision": 4}
    train = dataset.split("train")
    assert _lengths(train, "text") == [2, 3, 4]
    assert dataset.split("valid")[0].id == "vid0$_$0#2"  # every id is unique, whatever the file says
    # Given lengths win over padding; whose every row is zero is absent whatever its length says.
    assert _lengths(train, "audio") == [9, 5, 0] and "audio" not in train[2].rows
    assert _lengths(train, "vision") == [7, 6, 3]
    assert train[1].words == ("It", "was", "film", "1")
    assert [e.sentiment for e in train] == [-3.0, 0.0, 3.0]
    assert [e.group for e in train] == ["vid0", "vid0", "vid1"]
    np.testing.assert_array_equal(train[0].rows["vision"], _mmsa()["vision"][0])


def test_mmsa_text_may_be_words_alone(tmp_path: Path) -> None:
    path = _write_pickle(tmp_path / "a.pkl", train=_mmsa(text=None))
    assert read_dataset(path).dims == {"audio": 5, "vision": 4}
    assert read_dataset(path).split("train")[0].words


@pytest.mark.parametrize("front", [True, False])
def test_lengths_come_from_padding_in_front_or_behind(front: bool, tmp_path: Path) -> None:
    part = _mmsa(
        text=_padded([4, 2, 6], 6, 8, front=front),
        audio=_padded([9, 4, 0], 9, 5, front=front),
        vision=_padded([1, 7, 3], 7, 4, front=front),
        text_bert=None,
        audio_lengths=None,
        vision_lengths=None,
    )
    part["audio"][0, 4] = 0.0  # a silent moment inside is no padding
    train = read_dataset(_write_pickle(tmp_path / "a.pkl", train=part)).split("train")
    assert _lengths(train, "text") == [4, 2, 6]
    assert _lengths(train, "audio") == [9, 4, 0]
    assert _lengths(train, "vision") == [1, 7, 3]
    np.testing.assert_array_equal(train[1].rows["audio"], _rows(4, 5))


def test_aligned_modalities_stay_aligned(tmp_path: Path) -> None:
    """Where all share their steps, a face that comes later must not slip to the first word."""
    text, audio, vision = (_padded([n], 6, 3, front=False) for n in (5, 4, 5))
    vision[0, :2] = 0.0
    part = {"text": text, "audio": audio, "vision": vision, "labels": np.zeros((1, 1, 1)), "id": ["v[0]"]}
    [example] = read_dataset(_write_pickle(tmp_path / "a.pkl", train=part)).split("train")
    assert {m: len(r) for m, r in example.rows.items()} == {"text": 5, "audio": 5, "vision": 5}
    assert not example.rows["vision"][:2].any() and example.rows["vision"][2:].all()


def test_mult_pickles(tmp_path: Path) -> None:
    part = {
        "text": _padded([3, 5], 5, 300, front=False),
        "audio": _padded([20, 11], 20, 74, front=False),
        "vision": _padded([2, 20], 20, 35, front=False),
        "labels": np.array([[[1.4]], [[-0.6]]]),
        "id": np.array([["abc", "0.5", "2.5"], ["abc", "2.5", "4.0"]], dtype=object),
    }
    dataset = read_dataset(_write_pickle(tmp_path / "mosei_senti_noalign.pkl", train=part))
    assert dataset.format == "MulT pickle" and dataset.dims == {"text": 300, "audio": 74, "vision": 35}
    train = dataset.split("train")
    assert _lengths(train, "audio") == [20, 11] and _lengths(train, "vision") == [2, 20]
    assert [e.sentiment for e in train] == [1.4, -0.6]
    assert [(e.id, e.group) for e in train] == [("abc_0.5_2.5", "abc"), ("abc_2.5_4.0", "abc")]


def test_values_that_are_not_finite_become_0_and_are_counted(tmp_path: Path) -> None:
    part = _mmsa()
    part["audio"][0, 2, :2] = -np.inf
    part["vision"][1, 0, 0] = np.nan
    dataset = read_dataset(_write_pickle(tmp_path / "a.pkl", train=part))
    assert dataset.cleared == {"audio": 2, "vision": 1}
    assert any("2 audio values" in note for note in dataset.notes)
    train = dataset.split("train")
    assert (train[0].rows["audio"][2] == 0).tolist() == [True, True, False, False, False]
    assert all(np.isfinite(r).all() for e in train for r in e.rows.values())


def test_labels_that_are_not_finite_are_named(tmp_path: Path) -> None:
    part = _mmsa(regression_labels=np.array([0.0, np.nan, -np.inf]))
    code, message = _code(_write_pickle(tmp_path / "a.pkl", train=part))
    assert code == "data.label" and "vid0$_$1, vid1$_$2" in message


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"audio": _rows(2, 9, 5)}, "data.shape", "2 audio lengths"),
        ({"vision": _rows(2, 7, 4), "vision_lengths": None}, "data.shape", "3 examples of vision"),
        ({"audio": _rows(3, 9, 5, 1)}, "data.shape", "audio"),
        ({"vision": np.full((3, 7, 4), "x")}, "data.shape", "vision"),
        ({"vision_lengths": [1, 2]}, "data.shape", "vision lengths"),
        ({"regression_labels": np.zeros(2)}, "data.shape", "3 examples of sentiment"),
        ({"regression_labels": None}, "data.keys", "regression_labels"),
        ({"regression_labels": np.array(["a", "b", "c"])}, "data.label", "numbers"),
        ({"regression_labels": np.zeros((3, 7))}, "data.label_column", "--label 0 … 6"),
        ({"id": ["a"]}, "data.shape", "3 ids"),
        ({"text": None, "audio": None, "vision": None, "raw_text": None}, "data.keys", "raw_text"),
    ],
)
def test_broken_pickles_are_named_errors(
    changes: Mapping[str, Any], code: str, told: str, tmp_path: Path
) -> None:
    found, message = _code(_write_pickle(tmp_path / "a.pkl", train=_mmsa(**changes)))
    assert found == code and told in message


def test_splits_of_other_widths_are_refused(tmp_path: Path) -> None:
    path = _write_pickle(tmp_path / "a.pkl", train=_mmsa(), valid=_mmsa(audio=_rows(3, 9, 6)))
    code, message = _code(path)
    assert code == "data.shape" and "expected 5 audio features" in message and "got 6" in message


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    assert _code(_write_pickle(tmp_path / "a.pkl", model=[1]))[0] == "data.keys"
    (tmp_path / "b.pkl").write_bytes(pickle.dumps([1]))
    assert _code(tmp_path / "b.pkl")[0] == "data.keys"


def test_the_label_is_chosen_by_name_or_column(tmp_path: Path) -> None:
    part = _mmsa(regression_labels_T=np.array([1.0, 2.0, 3.0]), regression_labels=np.tile([0.0, 2.5], (3, 1)))
    path = _write_pickle(tmp_path / "a.pkl", train=part)
    assert [e.sentiment for e in read_dataset(path, label="regression_labels_T").split("train")] == [1, 2, 3]
    assert [e.sentiment for e in read_dataset(path, label=1).split("train")] == [2.5] * 3
    assert _code(path, label=2)[0] == "data.label_column"
    assert all(e.sentiment is None for e in read_as_is(path, Reading(strict=False)).split("train"))


# --- The label's scale ---------------------------------------------------------------------------------


def test_labels_are_mapped_from_their_range(tmp_path: Path) -> None:
    path = _write_pickle(tmp_path / "a.pkl", train=_mmsa(regression_labels=np.array([1.0, 4.0, 6.0])))
    code, message = _code(path)
    assert code == "data.label_range" and "got 1 to 6" in message and "--label-range 1 6" in message
    dataset = read_dataset(path, label_range=(1, 7))
    assert [e.sentiment for e in dataset.split("train")] == [-3.0, 0.0, 2.0]
    assert dataset.label_range == (1.0, 7.0)
    assert _code(path, label_range=(1, 5))[0] == "data.label_range"
    assert _code(path, label_range=(7, 1))[0] == "data.label_range"


# --- NumPy arrays --------------------------------------------------------------------------------------


def test_padded_arrays_with_words_beside(tmp_path: Path) -> None:
    path = tmp_path / "pom.npz"
    y = np.tile([9.0, 2.0], (2, 1))
    np.savez(
        path, audio=_padded([3, 4], 4, 5, front=True), visual_x=_rows(2, 4, 3), y=y, sentiment=[1.0, 3.0]
    )
    words = [{"words": ["hello", ",", "you"]}, {"words": ["bad"]}]
    (tmp_path / "pom_words.json").write_text(json.dumps(words), encoding="utf-8")
    dataset = read_dataset(path)
    assert dataset.dims == {"audio": 5, "vision": 3}
    assert [e.words for e in dataset.split("all")] == [("hello", ",", "you"), ("bad",)]
    # ``sentiment`` is more telling than ``y``; a column is one of ``y``.
    assert [e.sentiment for e in dataset.split("all")] == [1.0, 3.0]
    assert [e.sentiment for e in read_dataset(path, label="1").split("all")] == [2.0, 2.0]
    (tmp_path / "pom_words.json").write_text("[[]]", encoding="utf-8")
    assert _code(path)[0] == "data.shape"
    (tmp_path / "pom_words.json").write_text('[{"text": ""}, {}]', encoding="utf-8")
    assert _code(path)[0] == "data.unreadable"


def test_rows_of_all_examples_with_offsets(tmp_path: Path) -> None:
    path = tmp_path / "mosi.npz"
    acoustic = _rows(5, 4)
    acoustic[3] = 0.0  # with offsets there is no padding
    arrays: dict[str, Any] = {
        "acoustic_covarep": acoustic,
        "visual": _rows(5, 2),
        "label": np.array([1.0, -1.0, 0.0]),
    }
    np.savez(
        path,
        offsets=np.array([0, 3, 3, 5]),
        id=["a_1", "a_2", "b_1"],
        split=["train", "dev", "train"],
        **arrays,
    )
    dataset = read_dataset(path)
    assert [(e.id, e.group, len(e.rows.get("audio", ()))) for e in dataset.split("train")] == [
        ("a_1", "a", 3),
        ("b_1", "b", 2),
    ]
    assert dataset.split("valid")[0].rows == {}
    np.savez(path, offsets=np.array([0, 3, 9]), **arrays)
    assert _code(path)[0] == "data.shape"


def test_one_row_an_example_and_spoken_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, audio=_rows(2, 4), text=np.array(["so good", "no"]), y=np.zeros((2, 1)), group=["x", "y"])
    dataset = read_dataset(path)
    assert [e.rows["audio"].shape for e in dataset.split("all")] == [(1, 4), (1, 4)]
    assert [(e.words, e.group) for e in dataset.split("all")] == [(("so", "good"), "x"), (("no",), "y")]


def test_broken_arrays_are_named_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, features=_rows(2, 4))
    assert _code(path)[0] == "data.keys"
    np.savez(path, audio_a=_rows(2, 4), audio_b=_rows(2, 4))
    assert _code(path)[0] == "data.keys"
    np.savez(path, audio=_rows(2, 4), y=np.zeros(3))
    assert _code(path)[0] == "data.shape"
    np.savez(path, audio=_rows(2, 4), y=np.zeros((2, 17)))
    assert _code(path)[0] == "data.label_column"
    np.savez(path, audio=_rows(2, 4), y=np.zeros(2))
    assert _code(path, label="valence")[0] == "data.label_column"
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert _code(path)[0] == "data.unreadable"
    np.savez(path, audio=np.array([{}]), y=np.zeros(1))  # an array of objects is a pickle
    assert _code(path)[0] == "data.unreadable"


def test_several_files_make_one_data_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", audio=_rows(2, 4), y=np.zeros(2))
    np.savez(tmp_path / "b.npz", audio=_rows(1, 4), vision=_rows(1, 3), y=np.ones(1))
    dataset = read_dataset([f"train={tmp_path / 'a.npz'}", f"valid={tmp_path / 'b.npz'}"])
    assert [e.id for e in dataset.split("train")] == ["a/0", "a/1"]
    assert [e.id for e in dataset.split("valid")] == ["b/0"]
    assert dataset.dims == {"audio": 4, "vision": 3}
    np.savez(tmp_path / "c.npz", audio=_rows(1, 5), y=np.ones(1))
    assert _code([tmp_path / "a.npz", tmp_path / "c.npz"])[0] == "data.shape"


# --- Computational sequences ---------------------------------------------------------------------------


def _write_csd(path: Path, entries: Mapping[str, tuple[Any, Any]], columns: list[str] | None = None) -> None:
    with h5py.File(path, "w") as file:
        root = file.create_group(path.stem)
        for key, (features, intervals) in entries.items():
            root[f"data/{key}/features"], root[f"data/{key}/intervals"] = features, intervals
        if columns:
            root["metadata/dimension names"] = [json.dumps(columns)]


def _mosi_csds(folder: Path) -> None:
    seconds = np.stack([np.arange(10.0), np.arange(10.0) + 1.0], axis=1)
    audio = np.repeat(np.arange(10, dtype=np.float32)[:, None], 3, axis=1)
    audio[7, 0] = -np.inf
    said = np.array([[w] for w in (b"so", b"sp", b"good", b"but", b"no")], dtype="S8")
    stretches = np.array([[1.0, 4.0], [6.0, 8.0]])
    _write_csd(folder / "CMU_MOSI_COVAREP.csd", {"abc": (audio, seconds)})
    _write_csd(folder / "CMU_MOSI_Visual_Facet.csd", {"xyz": (audio[:2, :2], seconds[:2])})
    words = np.array([[1.0, 1.5], [1.5, 2.0], [2.0, 3.9], [5.9, 7.0], [8.0, 9.0]])
    _write_csd(folder / "CMU_MOSI_TimestampedWords.csd", {"abc": (said, words)})
    labels = {"abc": (np.array([[2.4], [-1.0]]), stretches), "xyz": (np.array([[0.0]]), stretches[:1])}
    _write_csd(folder / "CMU_MOSI_Opinion_Labels.csd", labels)


def test_computational_sequences_are_cut_by_the_labels_intervals(tmp_path: Path) -> None:
    _mosi_csds(tmp_path)
    (tmp_path / "notes.txt").write_text("not read")
    dataset = read_dataset(tmp_path)
    assert dataset.format == "CMU-MultimodalSDK sequences" and dataset.dims == {"audio": 3, "vision": 2}
    first, second, third = dataset.split("all")
    assert [e.id for e in (first, second, third)] == ["abc[0]", "abc[1]", "xyz[0]"]
    assert [e.sentiment for e in (first, second, third)] == [2.4, -1.0, 0.0]
    assert [e.group for e in (first, second, third)] == ["abc", "abc", "xyz"]
    assert first.rows["audio"][:, 1].tolist() == [1, 2, 3]
    assert second.rows["audio"].tolist() == [[6, 6, 6], [0, 7, 7]] and dataset.cleared == {"audio": 1}
    # All-zero rows are values here, not padding; who isn't in a stream lacks that modality.
    assert "vision" not in first.rows and "audio" not in third.rows
    assert (first.words, second.words, third.words) == (("so", "good"), ("but",), ())
    (tmp_path / "splits.json").write_text('{"train": ["abc"], "test": ["xyz"]}')
    assert {name: len(split) for name, split in read_dataset(tmp_path).splits.items()} == {
        "train": 2,
        "test": 1,
    }
    named = [tmp_path / f"CMU_MOSI_{name}.csd" for name in ("COVAREP", "Opinion_Labels")]
    assert read_dataset(named).dims == {"audio": 3}


def test_a_sequence_that_the_sdk_has_cut_is_taken_whole(tmp_path: Path) -> None:
    spans = np.array([[5.0, 6.0], [6.0, 7.0]])
    _write_csd(tmp_path / "glove_vectors.csd", {"abc[4]": (_rows(2, 3), spans)})
    labels = {"abc[4]": (np.array([[1.0, 0.5], [1.0, 0.5]]), spans)}
    _write_csd(tmp_path / "All Labels.csd", labels, ["sentiment", "happy"])
    [example] = read_dataset(tmp_path, label="happy").split("all")
    assert (example.id, example.group, example.sentiment) == ("abc[4]", "abc", 0.5)
    np.testing.assert_array_equal(example.rows["text"], _rows(2, 3))
    code, message = _code(tmp_path)
    assert code == "data.label_column" and "sentiment, happy" in message


def test_broken_sequences_are_named_errors(tmp_path: Path) -> None:
    _mosi_csds(tmp_path)
    (tmp_path / "CMU_MOSI_Opinion_Labels.csd").rename(tmp_path / "labels.away")
    assert _code(tmp_path)[0] == "data.keys"
    [whole] = read_as_is(tmp_path, Reading(strict=False)).split("all")
    assert len(whole.rows["audio"]) == 10 and whole.words == ("so", "good", "but", "no")
    (tmp_path / "labels.away").rename(tmp_path / "labels.csd")
    _write_csd(tmp_path / "opensmile.csd", {"abc": (_rows(1, 2), np.zeros((1, 2)))})
    code, message = _code(tmp_path)
    assert code == "data.keys" and "opensmile.csd" in message and "COVAREP" in message
    _write_csd(tmp_path / "opensmile.csd", {"abc": (_rows(3, 2), np.zeros((1, 2)))})
    assert _code([tmp_path / "opensmile.csd", tmp_path / "labels.csd"])[0] == "data.shape"
    with h5py.File(tmp_path / "opensmile.csd", "w") as file:
        file["other/x"], file["more"] = 1, 2
    assert _code([tmp_path / "opensmile.csd", tmp_path / "labels.csd"])[0] == "data.keys"
    covarep = tmp_path / "CMU_MOSI_COVAREP.csd"
    covarep.write_bytes(covarep.read_bytes()[:-100])
    assert _code([covarep, tmp_path / "labels.csd"])[0] == "data.unreadable"


# --- Tables --------------------------------------------------------------------------------------------


def _table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_tables_of_sentences(tmp_path: Path) -> None:
    path = _table(
        tmp_path / "t.csv",
        'id,video_id,split,sentiment,emotion,text\na_1,a,train,2.5,happy,"Oh, great"\nb_1,b,dev,,sad,No\n\n',
    )
    dataset = read_dataset(path)
    assert dataset.dims == {}
    [train], [valid] = dataset.split("train"), dataset.split("valid")
    joy = EMOTIONS.index("joy")
    assert train == Example("a_1", {}, ("Oh,", "great"), 2.5, joy, "a")
    assert (valid.sentiment, valid.emotion, valid.group) == (None, EMOTIONS.index("sadness"), "b")
    batch = collate([train, valid], dataset.dims)
    assert all(inputs(batch)[f"{m}_lengths"].tolist() == [0, 0] for m in ("text", "audio", "vision"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("text,sentiment\ngood,great\n", "data.label"),
        ("text,emotion\ngood,hungry\n", "data.label"),
        ("text,sentiment\ngood,nan\n", "data.label"),
        ("text,sentiment\ngood,4\n", "data.label_range"),
        ("text,sentiment\ngood,1,2\n", "data.row"),
        ("words,sentiment\ngood,1\n", "data.keys"),
        ("text,label_a,label_b\ngood,1,2\n", "data.label_column"),
        ("text,sentiment\n", "data.empty"),
        ("text,audio\ngood,none.wav\n", "data.file_missing"),
        ("", "data.format"),
        ("\0\1", "data.format"),
    ],
)
def test_broken_tables_are_named_errors(text: str, code: str, tmp_path: Path) -> None:
    assert _code(_table(tmp_path / "t.csv", text))[0] == code


def test_a_column_of_labels_is_chosen(tmp_path: Path) -> None:
    path = _table(tmp_path / "t.csv", "text,label_0_4,valence\ngood,4,-1\n")
    [example] = read_dataset(path, label_range=(0, 4)).split("all")
    assert example.sentiment == 3.0
    [example] = read_dataset(path, label="Valence").split("all")
    assert example.sentiment == -1.0
    code, message = _code(path, label="valance")
    assert code == "data.label_column" and "did you mean 'valence'" in message


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    assert _code(tmp_path / "none.pkl")[0] == "data.not_found"
    assert _code(tmp_path)[0] == "data.format"
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert _code(tmp_path / "a.npy")[0] == "data.format"


# --- Raw clips -----------------------------------------------------------------------------------------


def _write_voice(path: Path, seconds: float = 2.0, rate_hz: int = 16_000) -> None:
    """A 140 Hz harmonic tone that opens and closes four times a second, which counts as a voice."""
    time = np.arange(int(seconds * rate_hz)) / rate_hz
    tone = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 12))
    pcm = 3000 * tone * np.clip(np.sin(2 * np.pi * 4 * time), 0, 1)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", "none"))
        file.writeframes(struct.pack(f"<{len(pcm)}h", *pcm.astype(int)))


def test_raw_clips_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    _write_voice(tmp_path / "a.wav")
    (tmp_path / "same.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    cv2.imwrite(str(tmp_path / "wall.png"), np.full((120, 160, 3), 90, np.uint8))
    path = _table(
        tmp_path / "t.csv",
        "text,audio,image,sentiment\nso good,a.wav,,1\n,same.wav,wall.png,-1\nno,,,-2\n",
    )
    cache = tmp_path / "cache"
    dataset = read_dataset(path, cache=cache)
    first, second, third = dataset.split("all")
    assert dataset.dims == {"audio": 128} and dataset.format == "table of raw clips"
    assert first.rows["audio"].shape == (25, 128)  # 2 s, a row every 80 ms
    np.testing.assert_array_equal(first.rows["audio"], second.rows["audio"])
    encoder = VoiceEncoder()
    fill(encoder.eval(), read_parts(COMMITTED)["voice"], "voice")
    states = encoder(torch.from_numpy(level_normalise(log_mel(*read_audio(tmp_path / "a.wav"))))[None])[0]
    np.testing.assert_allclose(first.rows["audio"], states.detach().numpy(), atol=1e-5)
    assert set(second.rows) == {"audio"} and third.rows == {} and third.words == ("no",)
    assert "1 clips show no face" in dataset.notes
    entries = sorted(cache.rglob("*.safetensors"))
    assert len(entries) == 2  # by content: one sound, one still

    def refuse(*_: object) -> raw.Rows:
        raise AssertionError("the file was read again")

    compute = raw.ClipExtractor.rows
    monkeypatch.setattr(raw.ClipExtractor, "rows", refuse)
    kept = read_dataset(path, cache=cache).split("all")[0]
    np.testing.assert_array_equal(kept.rows["audio"], first.rows["audio"])
    monkeypatch.setattr(raw.ClipExtractor, "rows", compute)
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-1])
    again = read_dataset(path, cache=cache).split("all")[0]
    np.testing.assert_array_equal(again.rows["audio"], first.rows["audio"])


def test_a_clip_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    path = _table(tmp_path / "t.csv", "audio,sentiment\na.wav,1\n")
    code, message = _code(path, cache=tmp_path / "cache")
    assert code == "data.media" and "a.wav" in message
    path = _table(tmp_path / "t.csv", "video,image,sentiment\na.wav,a.wav,1\n")
    assert _code(path, cache=tmp_path / "cache")[0] == "data.conflict"


# --- The research sets ---------------------------------------------------------------------------------


@needs_data
def test_research_sets() -> None:
    assert DATA is not None
    pom = read_dataset(DATA / "sequences/pom_trimodal.npz", label_range=(1, 7))
    assert (len(pom.split("all")), pom.dims) == (220, {"audio": 43, "vision": 41})
    assert min(len(e.words) for e in pom.split("all")) == 147
    with np.load(DATA / "sequences/pom_trimodal.npz") as file:
        y, seen = file["y"][:, 14], file["vision"].any(axis=(1, 2))
    np.testing.assert_allclose(np.array([e.sentiment for e in pom.split("all")]), y - 4.0, atol=1e-6)
    assert ["vision" in e.rows for e in pom.split("all")] == seen.tolist()
    mosi = read_dataset(DATA / "sequences/mosi_valid_wordlevel.npz")
    assert mosi.dims == {"audio": 74, "vision": 47} and len(mosi.split("all")) == 229
    assert all(len(e.rows["audio"]) == len(e.words) for e in mosi.split("all"))
    mmmo = read_dataset(
        [
            f"train={DATA / 'sequences/mmmo_train_audio_vision.npz'}",
            f"valid={DATA / 'sequences/mmmo_valid_trimodal.npz'}",
        ],
        label_range=(1, 5),
    )
    assert mmmo.dims == {"text": 300, "audio": 74, "vision": 36}
    assert {name: len(split) for name, split in mmmo.splits.items()} == {"train": 220, "valid": 40}
    text: Dataset = read_dataset(DATA / "text/mosi_train_valid.csv")
    assert {name: len(split) for name, split in text.splits.items()} == {"train": 1284, "valid": 229}
    groups = [{e.group for e in split} for split in text.splits.values()]
    assert groups[0].isdisjoint(groups[1])
