"""``affectrt train --recipe starter --keep``: a causal model joins whole weights that stay as they are."""

from __future__ import annotations

import csv
import json
import shutil
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from affectrt.affect import EMOTIONS
from affectrt.cli import main
from affectrt.errors import AffectError
from affectrt_training.recipes.starter import STAGES, calibrate, causal, fusion, measure, recipe
from affectrt_training.recipes.starter.card import (
    FIGURES,
    INCREMENTAL,
    UNMEASURED,
    incremental_table,
    put_table,
    write_card,
)
from affectrt_training.recipes.starter.compose import Mixture
from affectrt_training.recipes.starter.sources import Versions
from affectrt_training.recipes.starter.weights import CARD, COMMITTED, load_starter

COMPARISON = "Next to the window model"
"""Begins what the shipped card says of both models' figures."""

DEMO = Path(__file__).parents[2] / "demo" / "clip.mp4"


def _table(path: Path, columns: str, rows: list[tuple[object, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns.split(), *rows])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder as docs/starter.md describes it: two sentences, voices and faces of each emotion."""
    folder = tmp_path / "data"
    splits = ("train", "valid")
    said = [(split, f"so much {emotion} here", emotion) for split in splits for emotion in EMOTIONS]
    _table(folder / "text/meld_train_valid.csv", "split text emotion", [*said])
    rated = [(split, f"I rate it {r}", r) for split in splits for r in (-2, 0, 2)]
    _table(folder / "text/mosi_train_valid.csv", "split text sentiment", [*rated])
    _table(folder / "text/sst5.csv", "split text label_0_4", [(s, t, r + 2) for s, t, r in rated])
    spoken = [
        (f"{corpus}/voice.wav", speaker, emotion)
        for corpus, speakers in (("ravdess", ("actor01", "actor17")), ("emodb", ("emodb03", "emodb15")))
        for speaker in speakers
        for emotion in EMOTIONS
    ]
    _table(folder / "speech/manifest.csv", "file speaker emotion", [*spoken])
    rate = 16_000
    time = np.arange(int(1.5 * rate)) / rate
    pcm = 9000 * np.sin(2 * np.pi * 220 * time) * (np.sin(2 * np.pi * 3 * time) > 0)
    for corpus in ("ravdess", "emodb"):
        (folder / "speech" / corpus).mkdir()
        with wave.open(str(folder / f"speech/{corpus}/voice.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(pcm.astype(np.int16).tobytes())
    (folder / "faces").mkdir()
    votes = np.tile(10 * np.eye(7, dtype=np.int64), (2, 1))
    np.savez(
        folder / "faces/ferplus_train_valid.npz",
        image=np.random.default_rng(0).integers(0, 255, (14, 48, 48), np.uint8),
        votes=votes,
        vote_names=np.array(EMOTIONS),
        is_valid=np.arange(14) >= 7,
    )
    clips = [("clip.mp4", actor, "03", "happy") for actor in ("01", "08")]
    _table(folder / "av_clips/manifest.csv", "file actor emotion_code emotion_guess", [*clips])
    shutil.copy(DEMO, folder / "av_clips/clip.mp4")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of both fusions for a few samples."""

    class Small(recipe.StarterRecipe):
        def __init__(self, seed: int) -> None:
            mixture = Mixture(mosi=2, sst=2, named_text=4, voices=4, faces=4, clips=2, composed=6)
            versions = Versions(text=2, voice=2, face=2, clips=2)
            super().__init__(
                fusion=fusion.FusionRecipe(mixture=mixture, epochs=1, batch_size=2),
                causal=causal.CausalRecipe(mixture=mixture, epochs=1, batch_size=2),
                versions=versions,
                causal_versions=versions,
                seed=seed,
            )

    monkeypatch.setattr(recipe, "StarterRecipe", Small)
    monkeypatch.setattr(calibrate, "PER_EMOTION", 2)


@pytest.mark.usefixtures("small")
def test_a_causal_model_joins_weights_that_stay_as_they_are(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = tmp_path / "older" / "starter.safetensors"
    older.parent.mkdir()
    tensors = {name: t for name, t in load_file(COMMITTED).items() if not name.startswith("causal.")}
    save_file(tensors, older)
    sidecar = json.loads(COMMITTED.with_suffix(".json").read_text())
    sidecar.pop("causal", None)
    sidecar_card = COMMITTED.with_name(CARD).read_text(encoding="utf-8")
    older.with_suffix(".json").write_text(json.dumps(sidecar))
    shutil.copy(COMMITTED.with_name(CARD), older.parent)

    runs, whole = tmp_path / "runs", tmp_path / "new" / "starter.safetensors"
    argv = ["train", "--recipe", "starter", "--data", str(data), "--runs", str(runs)]
    assert main([*argv, "--keep", str(older), "-o", str(whole)]) == 0
    told = capsys.readouterr().out
    assert told.count("already trained, kept") == 4 and "causal: to be trained" in told
    assert "ticks, composed text+audio+vision" in told and "ticks, mosi at once" in told

    new = load_file(whole)
    assert all(tensor.equal(new[name]) for name, tensor in tensors.items())
    meta = load_starter(whole).meta
    assert {key: value for key, value in meta.items() if key not in ("causal", "model_card")} == sidecar
    assert (meta["causal"]["config"]["causal"], meta["causal"]["config"]["window_s"]) == (True, 4.0)
    assert f"mae {meta['causal']['metrics']['mosi']['mae']:.3f}" in meta["model_card"]
    # The window model's figures are still its own; what compares the two is not.
    assert _figures(meta["model_card"]) == _figures(sidecar_card) and UNMEASURED not in sidecar_card
    assert COMPARISON in sidecar_card and COMPARISON not in meta["model_card"]

    # With nothing to train, whole weights come back byte for byte.
    again = tmp_path / "again.safetensors"
    assert main([*argv, "--keep", str(whole), "-o", str(again)]) == 0
    assert capsys.readouterr().out.count("already trained, kept") == len(STAGES)
    assert again.read_bytes() == whole.read_bytes()
    assert again.with_suffix(".json").read_text() == whole.with_suffix(".json").read_text()


@pytest.mark.usefixtures("small")
def test_a_fusion_trained_anew_has_no_figures_of_the_old_one(data: Path, tmp_path: Path) -> None:
    new = tmp_path / "new" / "starter.safetensors"
    argv = ["train", "--recipe", "starter", "--data", str(data), "--runs", str(tmp_path / "runs")]
    assert main([*argv, "--keep", str(COMMITTED), "--restart", "fusion", "-o", str(new)]) == 0
    meta, old = load_starter(new).meta, load_starter().meta
    assert meta["metrics"] == [] and meta["causal"] == old["causal"]
    assert _figures(meta["model_card"]).strip() == UNMEASURED
    assert "recipes.starter.measure" in UNMEASURED
    assert incremental_table(old["causal"]["metrics"]) in meta["model_card"]
    assert COMPARISON in old["model_card"] and COMPARISON not in meta["model_card"]


def _figures(card: str) -> str:
    return card.partition(FIGURES[0])[2].partition(FIGURES[1])[0]


# --- The model card --------------------------------------------------------------------------------


def test_the_shipped_card_is_that_of_the_shipped_weights(tmp_path: Path) -> None:
    meta = load_starter().meta
    copy = tmp_path / COMMITTED.name
    shutil.copy(COMMITTED.with_suffix(".json"), copy.with_suffix(".json"))
    write_card(copy, meta["model_card"])
    assert copy.with_name(CARD).read_text(encoding="utf-8") == meta["model_card"]


def test_a_table_takes_the_place_between_its_marks() -> None:
    card = "before <!-- figures -->\nold\n<!-- /figures --> after"
    assert put_table(card, FIGURES, "new") == "before <!-- figures -->\nnew\n<!-- /figures --> after"


@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (lambda card: card.replace(FIGURES[0], ""), "got 0 and 1 of them"),
        (lambda card: card.replace(INCREMENTAL[1], ""), "got 1 and 0 of them"),
        (lambda card: card + INCREMENTAL[1], "got 1 and 2 of them"),
        (lambda card: FIGURES[1] + card.replace(FIGURES[1], ""), "the second before the first"),
    ],
    ids=["unopened", "unclosed", "closed twice", "in disorder"],
)
def test_a_card_without_places_for_its_tables_is_refused(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[str], str],
    got: str,
) -> None:
    """Before anything is trained or measured."""
    weights = tmp_path / "mine" / COMMITTED.name
    shutil.copytree(COMMITTED.parent, weights.parent)
    card = weights.with_name(CARD)
    card.write_text(damage(card.read_text(encoding="utf-8")), encoding="utf-8")
    out = tmp_path / "new.safetensors"
    argv = ["train", "--recipe", "starter", "--data", str(data), "--runs", str(tmp_path / "runs")]
    assert main([*argv, "--keep", str(weights), "--restart", "text", "-o", str(out)]) == 2
    told = capsys.readouterr()
    assert "weights.card" in told.err and got in told.err and "text: " not in told.out
    with pytest.raises(AffectError, match=got) as caught:
        measure.main([str(tmp_path / "none.affect"), "--data", str(data), "--weights", str(weights)])
    assert caught.value.code == "weights.card"
