"""Readers of the starter's data, on small files that the tests write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from affectrt.affect import EMOTIONS
from affectrt.errors import AffectError
from affectrt_training.data.clips import acted_clips
from affectrt_training.data.faces import ferplus
from affectrt_training.data.text import meld, mosi, spoken, sst5, sst_phrases, undo_treebank
from affectrt_training.data.voice import acted_speech
from affectrt_training.labels import emotion_index


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_sentences(tmp_path: Path) -> None:
    _write(
        tmp_path / "text/mosi_train_valid.csv",
        "id,video_id,clip,split,sentiment,text\na_1,a,1,train,2.4,IT WAS GOOD\nb_1,b,1,valid,-1.0,NO\n",
    )
    _write(
        tmp_path / "text/meld_train_valid.csv",
        'dialogue,utterance,split,speaker,emotion,sentiment,text\n0,0,train,X,joy,positive,"Oh, great!"\n',
    )
    _write(tmp_path / "text/sst5.csv", "split,label_0_4,text\ntrain,0,Dull .\ntrain,4,It 's `` great '' !\n")
    assert [(s.text, s.sentiment) for s in mosi(tmp_path, "train")] == [("IT WAS GOOD", 2.4)]
    assert [s.sentiment for s in mosi(tmp_path, "valid")] == [-1.0]
    assert [s.sentiment for s in meld(tmp_path, "train")] == [None]
    assert [(s.text, s.emotion) for s in meld(tmp_path, "train")] == [("Oh, great!", EMOTIONS.index("joy"))]
    assert [(s.text, s.sentiment) for s in sst5(tmp_path, "train")] == [
        ("Dull.", -3.0),
        ('It\'s "great"!', 3.0),
    ]


def test_treebank_tokens_become_plain_english() -> None:
    assert undo_treebank("does n't , really -LRB- so -RRB- .") == "doesn't, really (so)."


def test_every_phrase_of_a_tree_comes_once_with_its_mean_rating(tmp_path: Path) -> None:
    _write(
        tmp_path / "text/sst_train_trees.txt",
        "(4 (3 Good) (2 (2 ,) (4 (3 good) (2 film))))\n(1 (2 It) (1 (1 does) (0 n't)))\n",
    )
    found = {s.text: s.sentiment for s in sst_phrases(tmp_path)}
    # "Good" and "good" are one phrase; a comma alone is none, and ", good film" is as without it.
    assert found == {
        "good": 1.5,
        "good film": pytest.approx((3.0 + 0.0) / 2),
        "film": 0.0,
        "good good film": 3.0,
        "it": 0.0,
        "does": -1.5,
        "n't": -3.0,
        "doesn't": -1.5,
        "it doesn't": -1.5,
    }


def test_unbalanced_trees_are_named(tmp_path: Path) -> None:
    for broken in ("(3 (2 a)", "(3 a))"):
        _write(tmp_path / "text/sst_train_trees.txt", f"(2 fine)\n{broken}\n")
        with pytest.raises(AffectError, match="line 2") as caught:
            sst_phrases(tmp_path)
        assert caught.value.code == "data.unreadable"
    with pytest.raises(AffectError, match="sst_train_trees"):
        sst_phrases(tmp_path / "elsewhere")


def test_spoken_english_has_no_punctuation() -> None:
    assert spoken("\"It's\" -- well , GREAT 100% 'n' don't!") == "it's well great 100 n don't"


def test_speech_is_split_by_speaker_and_boredom_left_out(tmp_path: Path) -> None:
    _write(
        tmp_path / "speech/manifest.csv",
        "file,speaker,sex,emotion,intensity,transcript,language\n"
        "ravdess/a.ogg,actor01,male,calm,normal,,en\n"
        "ravdess/b.ogg,actor17,male,fearful,normal,,en\n"
        "emodb/c.ogg,emodb03,male,bored,,,de\n",
    )
    train, valid = acted_speech(tmp_path, "train"), acted_speech(tmp_path, "valid")
    assert [(r.speaker, EMOTIONS[r.emotion], r.corpus) for r in train] == [("actor01", "neutral", "ravdess")]
    assert [(r.speaker, EMOTIONS[r.emotion]) for r in valid] == [("actor17", "fear")]


def test_faces_keep_votes_for_our_emotions(tmp_path: Path) -> None:
    names = np.array(
        [
            "neutral",
            "happiness",
            "surprise",
            "sadness",
            "anger",
            "disgust",
            "fear",
            "contempt",
            "unknown",
            "NF",
        ]
    )
    votes = np.zeros((4, 10), np.uint8)
    votes[0, [0, 1]] = 4, 6  # joy, clear
    votes[1, [2, 8]] = 3, 7  # mostly unknown: kept for training, not clear
    votes[2, 9] = 10  # no face: dropped
    votes[3, 6] = 10  # fear, in the other split
    (tmp_path / "faces").mkdir()
    np.savez(
        tmp_path / "faces/ferplus_train_valid.npz",
        image=np.zeros((4, 48, 48), np.uint8),
        votes=votes,
        vote_names=names,
        is_valid=np.array([0, 0, 0, 1]),
    )
    train, valid = ferplus(tmp_path, "train"), ferplus(tmp_path, "valid")
    assert len(train) == 2 and train.clear.tolist() == [True, False]
    assert train.votes[0, EMOTIONS.index("joy")] == pytest.approx(0.6)
    np.testing.assert_allclose(train.votes.sum(axis=1), 1.0)
    assert [EMOTIONS[e] for e in valid.emotions] == ["fear"]


def test_clips_without_a_sure_emotion_are_left_out(tmp_path: Path) -> None:
    _write(
        tmp_path / "av_clips/manifest.csv",
        "file,actor,sentence,emotion_code,emotion_guess\n"
        "a.mp4,01,01,03,happy\nb.mp4,01,01,06,angry?\nc.mp4,08,01,02,sad\n",
    )
    assert [(c.path.name, EMOTIONS[c.emotion]) for c in acted_clips(tmp_path, "train")] == [("a.mp4", "joy")]
    assert [(c.path.name, EMOTIONS[c.emotion]) for c in acted_clips(tmp_path, "valid")] == [
        ("c.mp4", "sadness")
    ]


@pytest.mark.parametrize("reader", [mosi, acted_speech, ferplus, acted_clips])
def test_missing_data_is_named(reader: object, tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=str(tmp_path)) as caught:
        reader(tmp_path, "train")  # type: ignore[operator]
    assert caught.value.code == "data.not_found"


def test_unknown_emotion_lists_the_known_ones() -> None:
    with pytest.raises(AffectError, match=r"anger.*happy") as caught:
        emotion_index("hangry")
    assert caught.value.code == "label.unknown_emotion"
