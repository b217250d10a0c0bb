"""MMSA beside ours: the files it reads, the process it runs in, what is kept, and the report."""

from __future__ import annotations

import json
import pickle
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affectrt.affect import MODALITIES, Modality
from affectrt.errors import AffectError
from affectrt_training.data.dataset import Dataset, Example
from affectrt_training.data.readers import read_dataset
from affectrt_training.evaluation.fits import load, path_of
from affectrt_training.evaluation.plan import Entry, Part, parts_of
from affectrt_training.fit.settings import RunConfig

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / "build" / "mmsa-env"
"""Where ``python -m benchmarks.peers_mmsa`` makes it."""
WIDTHS: dict[Modality, int] = {"text": 4, "audio": 3, "vision": 2}


class Benchmarks:
    """The modules; from the checkout, as they are never installed."""

    def __init__(self) -> None:
        names = ("peers_mmsa", "peers.mmsa", "peers.mmsa_fits", "peers.mmsa_worker")
        self.script, self.mmsa, self.fits, self.worker = (
            import_module(f"benchmarks.{name}") for name in names
        )


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Benchmarks:
    monkeypatch.syspath_prepend(str(ROOT))
    return Benchmarks()


def _example(k: int) -> Example:
    """Lengths differ; vision is absent from every third; a zero row inside belongs to the sequence."""
    rng = np.random.default_rng(k)
    sentiment = float(np.round(rng.uniform(-3, 3), 2))
    rows = {m: (rng.normal(size=(1 + (k + i) % 7, d)) + sentiment).astype(np.float32)
            for i, (m, d) in enumerate(WIDTHS.items()) if m != "vision" or k % 3}  # fmt: skip
    if len(rows["text"]) > 2:
        rows["text"][1] = 0
    return Example(f"clip {k}", rows, words=("so", str(k)), sentiment=sentiment)


@pytest.fixture
def dataset() -> Dataset:
    return Dataset("tiny", {"all": [_example(k) for k in range(30)]}, WIDTHS)


# --- The data that MMSA reads ----------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["front", "behind"])
def test_the_pickle_comes_back_through_our_reader(
    bench: Benchmarks, dataset: Dataset, tmp_path: Path, padding: str
) -> None:
    part = parts_of(dataset, 5)[1]
    bench.mmsa.write_pickle(part, WIDTHS, padding, tmp_path / "fold2.pkl")
    back = read_dataset(tmp_path / "fold2.pkl")
    assert back.format == "MMSA pickle" and back.dims == WIDTHS
    for name, examples in (("train", part.train), ("valid", part.valid), ("test", part.held)):
        assert [e.id for e in back.splits[name]] == [e.id for e in examples]
        for found, own in zip(back.splits[name], examples, strict=True):
            assert found.words == own.words
            assert found.sentiment == pytest.approx(own.sentiment)
            assert found.rows.keys() == own.rows.keys()
            for modality, rows in own.rows.items():
                # Zeros before the first row count as rows: MMSA's lengths begin at the first.
                lead = len(found.rows[modality]) - len(rows)
                assert lead == 0 or (padding == "front" and not found.rows[modality][:lead].any())
                np.testing.assert_array_equal(found.rows[modality][lead:], rows)


def test_all_splits_are_as_long_as_the_longest_and_long_enough_for_mult(
    bench: Benchmarks, dataset: Dataset
) -> None:
    part = parts_of(dataset, 5)[0]
    short = Part("p", *([replace(e, rows={}) for e in some] for some in (part.train, part.valid, part.held)))
    for some in (part, short):
        content = bench.mmsa.to_mmsa(some, WIDTHS, "front")
        for modality in MODALITIES:
            longest = max(len(e.rows.get(modality, ())) for e in (*some.train, *some.valid, *some.held))
            assert {split[modality].shape[1] for split in content.values()} == {max(5, longest)}
    last = part.train[0].rows["audio"][-1]
    assert (bench.mmsa.to_mmsa(part, WIDTHS, "front")["train"]["audio"][0, -1] == last).all()
    assert (bench.mmsa.to_mmsa(part, WIDTHS, "behind")["train"]["audio"][0, 0]
            == part.train[0].rows["audio"][0]).all()  # fmt: skip


def test_what_mmsa_cannot_learn_is_refused(bench: Benchmarks, dataset: Dataset) -> None:
    part = parts_of(dataset, 5)[0]
    with pytest.raises(AffectError, match="no vision"):
        bench.mmsa.to_mmsa(part, {"text": 4, "audio": 3}, "front")
    for wrong in (replace(part.held[0], sentiment=None), replace(part.held[0], emotion=1)):
        with pytest.raises(AffectError, match="sentiment alone"):
            bench.mmsa.to_mmsa(Part("p", part.train, part.valid, [wrong]), WIDTHS, "front")


# --- Within MMSA's process -------------------------------------------------------------------------


def test_training_ends_at_the_cap_and_the_best_epoch_is_mmsas(bench: Benchmarks) -> None:
    losses = iter([0.9, 0.5, 0.5, 0.5 - 2e-6, float("nan"), 0.7])

    class Trainer:
        """Loops as MMSA's do."""

        def __init__(self) -> None:
            self.args = type("Args", (), {"early_stop": 100})()

        def do_test(self, model: object, loader: object, mode: str = "VAL") -> dict[str, float]:
            return {"Loss": next(losses) if mode == "VAL" else 0.0}

    trainer: Any = Trainer()
    seen = bench.worker.watch(trainer, 5)
    epochs = 0
    while True:
        epochs += 1
        trainer.do_test(None, None)
        trainer.do_test(None, None, mode="TEST")
        if epochs - 4 >= trainer.args.early_stop:
            break
    assert (epochs, len(seen)) == (5, 5)
    assert bench.worker.best_epoch(seen) == 4
    assert bench.worker.best_epoch([float("nan")]) == 0


def test_the_scheduler_takes_the_argument_that_torch_removed(
    bench: Benchmarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    monkeypatch.setattr(torch.optim.lr_scheduler, "ReduceLROnPlateau", plateau)
    bench.worker.mend_scheduler()
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    mended: Any = torch.optim.lr_scheduler.ReduceLROnPlateau
    scheduler = mended(optimiser, mode="min", factor=0.1, verbose=True, patience=0)
    assert isinstance(scheduler, plateau)
    for loss in (1.0, 2.0):
        scheduler.step(loss)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.1)


# --- Rows and fits ---------------------------------------------------------------------------------


def test_rows_are_mmsas_systems_and_their_variants(bench: Benchmarks) -> None:
    rows = bench.fits.peers_of("MFN,Graph_MFN", ["MULT every batch: update_epochs=1 dropouts=[0.1]"])
    assert [(row.label, row.model) for row in rows] == [
        ("MMSA MFN", "MFN"), ("MMSA Graph_MFN", "Graph_MFN"), ("MMSA MULT every batch", "MULT"),
    ]  # fmt: skip
    assert rows[2].settings == {"update_epochs": 1, "dropouts": [0.1]}
    for models, variants, code in (
        ("MFM", [], "peers.model"),
        ("", ["MULT: update_epochs=1"], "peers.variant"),
        ("", ["MULT x: update_epochs"], "peers.variant"),
        ("", ["Mult x: update_epochs=1"], "peers.model"),
    ):
        with pytest.raises(AffectError) as caught:
            bench.fits.peers_of(models, variants)
        assert caught.value.code == code


def test_only_sound_predictions_are_kept_in_the_examples_order(
    bench: Benchmarks, dataset: Dataset, tmp_path: Path
) -> None:
    part = parts_of(dataset, 5)[0]
    (peer,) = bench.fits.peers_of("TFN", [])
    entry = peer.entry(Entry("ours", RunConfig("mulg"), "paper"))
    path = path_of(tmp_path, peer.label, part.name, 1)
    fit = bench.fits.PeerFit(entry, dataset, part, 1, path, peer=peer, padding="front", epochs_cap=None)
    # MMSA's loader shuffles.
    said = {name: {e.id: float(k) for k, e in reversed(list(enumerate(examples)))}
            for name, examples in (("held", part.held), ("valid", part.valid))}  # fmt: skip
    answer = {**said, "best_epoch": 3, "train_s": 1.5, "parameters": 7, "settings": {"batch_size": 2}}
    first = part.held[0].id
    for wrong, reason in (
        ({**said["held"], first: float("nan")}, "NaN"),
        (dict.fromkeys(said["held"], 0.25), "0.25 for every example"),
        ({**said["held"], "another": 0.0}, "got others"),
    ):
        assert reason in bench.fits.keep(fit, {**answer, "held": wrong})
        assert load(fit) is None
    assert bench.fits.keep(fit, answer) == ""
    kept = load(fit)
    assert kept is not None and (kept.best_epoch, kept.parameters) == (3, 7)
    assert kept.arrays["held/sentiment"].tolist() == list(range(len(part.held)))
    changed = bench.fits.peers_of("", ["TFN x: batch_size=3"])[0]
    for other in (
        replace(fit, seed=2),
        replace(fit, padding="behind"),
        replace(fit, epochs_cap=3),
        replace(fit, peer=changed),
        replace(fit, part=Part(part.name, part.train[1:], part.valid, part.held)),
    ):
        assert load(other) is None


# --- The whole -------------------------------------------------------------------------------------

STAND_IN = f"""#!{sys.executable}
# Answers as MMSA's process does, without MMSA: labels with noise.
import json, pickle, random, sys
print(json.dumps({{"mmsa": "0", "torch": {str(torch.__version__)!r}}}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if job["model"] == "lmf" and job["seed"] == 1:
        print("out of memory", file=sys.stderr)
        sys.exit(9)
    with open(job["data"], "rb") as file:
        data = pickle.load(file)
    noise = random.Random(job["seed"]).gauss
    answer = {{
        name: {{i: float(y) / 2 + noise(0, 0.1) for i, y in zip(part["id"], part["regression_labels"])}}
        for name, part in (("held", data["test"]), ("valid", data["valid"]))
    }}
    if job["model"] == "mfn":
        answer["held"] = dict.fromkeys(answer["held"], 0.0)
    answer |= {{"best_epoch": 2, "epochs": 10, "train_s": 0.5, "parameters": 11}}
    print(json.dumps({{**answer, "settings": {{"early_stop": 8, **job["settings"]}}}}), flush=True)
"""

Run = Callable[..., int]


@pytest.fixture
def run(bench: Benchmarks, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The script on a tiny data set, with one system of ours."""
    part = Part("", dataset.splits["all"][:20], dataset.splits["all"][20:], ())
    content = bench.mmsa.to_mmsa(part, WIDTHS, "behind")
    del content["test"]
    with (tmp_path / "tiny.pkl").open("wb") as file:
        pickle.dump(content, file)

    def run(*words: str) -> int:
        arguments = [
            "--data", str(tmp_path / "tiny.pkl"), "--models", "mulg,text-mean", "--robustness",
            "--folds", "2", "--seeds", "2", "--set", "training.epochs=1", "--jobs", "1",
            "-o", str(tmp_path / "out"), *words,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["peers_mmsa", *arguments])
        monkeypatch.setenv("AFFECTRT_DATA", str(tmp_path))
        code: int = bench.script.main()
        return code

    return run


def test_one_report_holds_ours_and_theirs_and_says_who_failed(
    run: Run, bench: Benchmarks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(bench.mmsa, "environment", lambda folder: python)
    assert run("--peers", "TFN,LMF,MFN", "--peer-variant", "TFN small: batch_size=4") == 1
    said = capsys.readouterr()
    assert "MMSA LMF, fold1, seed 1: MMSA's process died (9): out of memory" in said.err
    assert "MMSA MFN, fold2, seed 0: predicted 0 for every example (held)" in said.err
    text = (tmp_path / "out" / "report.md").read_text()
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    rows = {row["label"]: row for row in figures["rows"]}
    assert list(rows)[:4] == ["mulg", "text-mean", "MMSA TFN", "MMSA TFN small"]
    assert figures["reference"] == "MMSA TFN"
    assert (rows["MMSA TFN"]["source"], rows["MMSA TFN"]["mflops"]) == ("MMSA 2.2.1", None)
    assert rows["MMSA TFN small"]["settings"]["model"] == {"early_stop": 8, "batch_size": 4}
    assert rows["MMSA TFN"]["scores"]["r"]["mean"] > 0.99
    assert figures["about"]["mmsa"]["failed"].keys() == {"MMSA LMF", "MMSA MFN"}
    assert [c["reference"] for c in figures["about"]["mmsa"]["against_ours"]] == ["mulg", "mulg"]
    assert "**No row for `MMSA LMF`**: it failed" in text and "fold1, seed 1; fold2, seed 1)" in text
    assert "in 4 trainings" in text and "`MMSA TFN` − `mulg`" in text
    assert "python -m benchmarks.peers_mmsa --data $AFFECTRT_DATA/tiny.pkl" in text
    assert str(tmp_path) not in text + json.dumps(figures)

    # What is finished stays, and asks nobody.
    monkeypatch.setattr(bench.mmsa, "environment", None)
    assert run("--peers", "TFN") == 0
    assert "`MMSA TFN`" in capsys.readouterr().out


def test_mmsa_itself_learns_and_repeats_itself(bench: Benchmarks, dataset: Dataset, tmp_path: Path) -> None:
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        pytest.skip("MMSA isn't there: run 'python -m benchmarks.peers_mmsa' once")
    part = parts_of(dataset, 5)[0]
    bench.mmsa.write_pickle(part, WIDTHS, "front", tmp_path / "fold1.pkl")
    job = {"seed": 3, "data": str(tmp_path / "fold1.pkl"), "settings": {"batch_size": 8},
           "epochs_cap": 2, "scratch": str(tmp_path / "weights.pth")}  # fmt: skip
    with bench.mmsa.Worker(python, tmp_path / "log") as worker:
        names = [*bench.mmsa.MODELS, "LF_DNN"]
        answers = [worker.ask({**job, "model": name.lower()}) for name in names]
        assert "no settings speed" in worker.ask({**job, "model": "tfn", "settings": {"speed": 1}})["error"]
    for name, answer in zip(names, answers, strict=True):
        assert answer.get("error") is None, name
        assert list(answer["held"]) == [e.id for e in part.held]
        assert list(answer["valid"]) == [e.id for e in part.valid]
        assert np.isfinite(list(answer["held"].values())).all()
        assert (answer["epochs"], answer["settings"]["batch_size"]) == (2, 8)
    assert answers[0]["held"] == answers[-1]["held"]
    assert answers[0]["settings"]["learning_rate"] == 0.001
    assert not (tmp_path / "weights.pth").exists()
