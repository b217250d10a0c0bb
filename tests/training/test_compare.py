"""``affectrt compare`` end to end on a small data set, and its parts against cases worked out by hand."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affectrt.affect import EMOTIONS
from affectrt.errors import AffectError
from affectrt_training.commands.compare import COMMAND, entries_of, parse_variant
from affectrt_training.commands.data_options import read_data
from affectrt_training.data.dataset import Dataset, Example
from affectrt_training.evaluation import fits
from affectrt_training.evaluation.compare import Protocol, compare
from affectrt_training.evaluation.conclusion import Comparison, conclude
from affectrt_training.evaluation.contrasts import contrasts
from affectrt_training.evaluation.fits import Fit, Fitted, load, path_of, run, run_all
from affectrt_training.evaluation.measures import MEASURES
from affectrt_training.evaluation.plan import Entry, Part, parts_of
from affectrt_training.evaluation.report import markdown
from affectrt_training.evaluation.summary import BASELINE, Answers, Score, baseline, pool, score_of, truth_of
from affectrt_training.evaluation.tables import difference_text, p_text, score_text
from affectrt_training.fit.settings import RunConfig
from affectrt_training.fit.storage import read_tensors

WIDTHS = {"text": 4, "audio": 3, "vision": 2}
PNG = b"\x89PNG\r\n\x1a\n"


def _example(k: int, sentiment: float | None, emotion: int | None = None, group: str = "") -> Example:
    rng = np.random.default_rng(k)
    rows = {m: rng.normal(size=(3, d)).astype(np.float32) + (sentiment or 0) for m, d in WIDTHS.items()}
    return Example(str(k), rows, sentiment=sentiment, emotion=emotion, group=group)  # type: ignore[arg-type]


def _parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)
    return parser.parse_args(["--data", "x.npz", "-o", "out", *words])


# --- Parts of the data -----------------------------------------------------------------------------


def test_folds_hold_every_example_out_once_and_select_on_others() -> None:
    examples = [_example(k, 0.5) for k in range(25)]
    dataset = Dataset("d", {"all": [*examples, _example(99, None)], "test": [_example(100, 1.0)]}, {})
    parts = parts_of(dataset, 5)
    assert [e.id for part in parts for e in part.held] == [str(k) for k in range(25)]
    for part in parts:
        ids = [{e.id for e in some} for some in (part.train, part.valid, part.held)]
        assert [len(some) for some in ids] == [16, 4, 5]
        assert len(set.union(*ids)) == 25  # disjoint, without the unlabelled one and test
    # The last of the rows from after the held-out block round to before it.
    assert [e.id for e in parts[0].valid] == ["21", "22", "23", "24"]
    assert [e.id for e in parts[1].valid] == ["1", "2", "3", "4"]
    assert len({part.digest for part in parts}) == 5


def test_folds_keep_groups_whole_and_splits_serve_without_folds() -> None:
    examples = [_example(k, 0.5, group=f"speaker {k // 3}") for k in range(24)]
    dataset = Dataset("d", {"train": examples[:18], "valid": examples[18:]}, {})
    for part in parts_of(dataset, 4):
        groups = [{e.group for e in some} for some in (part.train, part.valid, part.held)]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 8
    (part,) = parts_of(dataset, None)
    assert (part.train, part.valid, part.held) == (examples[:18], examples[18:], examples[18:])
    with pytest.raises(AffectError, match="expected a split 'valid'"):
        parts_of(Dataset("d", {"train": examples}, {}), None)


# --- Scores and contrasts by hand ------------------------------------------------------------------


def _hand_made() -> tuple[list[Part], dict[str, list[list[Fitted]]]]:
    """Two folds of 20, two seeds; ``good`` is off by 0.1, ``bad`` by 1; emotions: ``good`` knows them."""
    examples = [_example(k, (k % 7) - 3.0, emotion=k % 3) for k in range(60)]
    parts = [
        Part("fold1", examples[20:40], examples[40:], examples[:20]),
        Part("fold2", examples[40:], examples[:20], examples[20:40]),
    ]

    def fit(part: Part, off: float, knows: bool) -> Fitted:
        arrays = {}
        for name, some in (("held", part.held), ("valid", part.valid)):
            truth = truth_of(some)
            arrays[f"{name}/sentiment"] = (truth.sentiment + off).astype(np.float32)
            shown = truth.emotion if knows else np.full(len(some), 6)
            arrays[f"{name}/probabilities"] = np.where(np.eye(7, dtype=bool)[shown], 0.4, 0.1)
        return Fitted(arrays, [], best_epoch=3, train_s=2.0, parameters=7)

    return parts, {
        "good": [[fit(part, off, True) for part in parts] for off in (0.1, -0.1)],
        "bad": [[fit(part, 1.0, False) for part in parts] for _ in range(2)],
    }


@pytest.fixture(scope="module")
def concluded() -> Comparison:
    parts, by_entry = _hand_made()
    entries = [Entry("good", RunConfig("ghrnn-cma"), "paper"), Entry("bad", RunConfig("ef-lstm"), "peer")]
    examples = [e for part in parts for e in part.held]
    dataset = Dataset("hand-made", {"all": examples}, WIDTHS)  # type: ignore[arg-type]
    about = {
        "data": {"name": "d", "sha256": ["ab", "cd"], "dims": WIDTHS, "label_range": [-3, 3], "notes": ["n"]},
        "protocol": {"folds": 2, "seeds": [0, 1], "parts": {}, "held": 40},
        "versions": {"python": "3"},
        "machine": "m",
        "date": "today",
        "command": "affectrt compare",
    }
    return conclude(entries, parts, by_entry, {entries[0].config.text: dataset}, about)


def test_a_comparison_says_what_the_numbers_say(concluded: Comparison) -> None:
    found = concluded
    good, bad, trivial = found.rows
    assert good.scores["mae"].mean == pytest.approx(0.1)
    assert good.scores["mae"].std == pytest.approx(0, abs=1e-6)
    assert bad.scores["mae"].seeds == pytest.approx([1.0, 1.0])
    # All errors are alike, so the interval just holds them, and is as wide as twice the error.
    assert bad.scores["interval_coverage"].mean == 1.0
    assert bad.scores["interval_width"].mean == pytest.approx(2.0, abs=1e-6)
    assert good.scores["accuracy"].mean == 1.0 and bad.scores["accuracy"].mean == 0.0
    assert good.scores["ece"].mean == pytest.approx(0.6, abs=1e-6)
    # Always right at 0.4: the coldest temperature makes that 0.4⁴ of 0.4⁴ + 6 · 0.1⁴.
    assert good.scores["ece_calibrated"].mean == pytest.approx(6 / (256 + 6), rel=1e-3)
    assert np.diag(good.confusion["emotion"])[:3].sum() == 80
    assert np.array(good.confusion["sentiment"]).sum() == 80
    assert (trivial.label, trivial.scores["r"].mean, trivial.kind) == (BASELINE, None, "trivial")
    assert (found.primary, found.reference) == ("mae", "bad")
    [mae] = [c for c in found.against_reference if c.measure == "mae"]
    assert mae.label == "good" and mae.examples is not None and mae.examples.value == pytest.approx(-0.9)
    assert mae.examples_holm == mae.examples.p < 0.001
    assert good.mflops is not None and good.mflops > 0


def test_the_report_marks_and_bolds_what_is_better(concluded: Comparison) -> None:
    text = markdown(concluded, [])
    line = next(line for line in text.splitlines() if line.startswith("| `good` | ghrnn_cma"))
    assert "**0.100 ± 0.000** ▲" in line
    assert "- `good` is better than `bad`: MAE −0.900 [−0.9" in text
    assert "weighted F1 ↑" in text and "ECE with temperature" in text
    assert "- n" in text.splitlines()


def test_the_trivial_row_is_the_training_median() -> None:
    parts, _ = _hand_made()
    answers = baseline(parts)
    medians = [float(np.median(truth_of(part.train).sentiment)) for part in parts]
    assert answers.sentiment[0].tolist() == [medians[0]] * 20 + [medians[1]] * 20
    shares = np.bincount([e.emotion or 0 for e in parts[0].train], minlength=7) / 20
    assert answers.probabilities[0, 0] == pytest.approx(shares, abs=1e-5)


def test_pooling_keeps_seeds_folds_and_conditions_in_order() -> None:
    parts, by_entry = _hand_made()
    fitted = [
        [
            replace(
                fit,
                conditions=["a", "b"],
                arrays={
                    **fit.arrays,
                    "worse/sentiment": np.stack([np.full(20, 10 * s + p), np.full(20, -1.0)]),
                    "worse/emotion": np.full((2, 20), p, np.uint8),
                },
            )
            for p, fit in enumerate(row)
        ]
        for s, row in enumerate(by_entry["good"])
    ]
    answers = pool(parts, fitted)
    assert answers.sentiment.shape == (2, 40) and answers.half_widths.shape == (2, 40)
    sentiment, emotion = answers.worse["a"]
    assert sentiment[:, ::20].tolist() == [[0, 1], [10, 11]] and emotion[1].tolist() == [0] * 20 + [1] * 20
    assert (answers.worse["b"][0] == -1).all()


def test_trainings_are_compared_fold_by_fold_and_seed_by_seed() -> None:
    examples = [_example(k, 0.0) for k in range(8)]
    parts = [Part("fold1", examples[4:], examples[4:], examples[:4]),
             Part("fold2", examples[:4], examples[:4], examples[4:])]  # fmt: skip
    rng = np.random.default_rng(0)

    def answers(values: Any) -> Answers:
        none = np.zeros((2, 8, len(EMOTIONS)))
        return Answers(np.repeat(values, 4, axis=1), none, none, np.ones((2, 8)))

    first, second = rng.uniform(0, 1, (2, 2)), rng.uniform(0, 1, (2, 2))
    both = {"a": answers(first), "b": answers(second)}
    [found] = contrasts(["a", "b"], "b", MEASURES["mae"], both, truth_of(examples), parts)
    d = (first - second).ravel()  # truths are 0 and answers positive: errors are the answers
    assert found.trainings is not None and found.trainings.value == pytest.approx(d.mean())
    half = 3.182446305284263 * np.sqrt(d.var(ddof=1) * (1 / 4 + 1))  # t of 3 degrees of freedom; test = train
    assert found.trainings.high - found.trainings.value == pytest.approx(half)


def test_figures_as_tables_print_them(concluded: Comparison) -> None:
    mae, acc = MEASURES["mae"], MEASURES["acc7"]
    assert score_text(mae, score_of([0.8, 0.9])) == "0.850 ± 0.071"
    assert score_text(acc, score_of([0.4567])) == "45.7"
    assert score_text(mae, Score(None, None, [None])) == "–"
    assert score_of([0.5, None]).mean is None
    [one] = [c for c in concluded.against_baseline if c.label == "good"]
    assert difference_text(mae, one.examples).startswith("−1.")
    assert (p_text(None), p_text(0.0004), p_text(0.04)) == ("–", "< 0.001", "0.040")


# --- The command -----------------------------------------------------------------------------------


def test_rows_are_systems_variants_and_those_trained_without() -> None:
    dataset = Dataset("d", {}, {"text": 4, "audio": 3})
    args = _parse(
        "--models", "ghrnn-cma,ef-lstm", "--trained-without", "--set", "training.epochs=3",
        "--variant", "ghrnn-cma small: model.hidden_dim=8 training.lr=1e-4",
        "--variant", "ef-lstm heard: modalities=audio",
    )  # fmt: skip
    rows = {row.label: row for row in entries_of(args, dataset)}
    assert [(row.label, row.kind, row.stressed) for row in rows.values()] == [
        ("ghrnn-cma", "paper", True),
        ("ef-lstm", "peer", False),
        ("ghrnn-cma small", "variant", False),
        ("ef-lstm heard", "variant", False),
        ("ghrnn-cma without text", "variant", False),
        ("ghrnn-cma without audio", "variant", False),
    ]
    small = rows["ghrnn-cma small"]
    assert small.config.model == {"hidden_dim": 8} and small.base == "ghrnn-cma"
    assert (small.config.training.epochs, small.config.training.lr) == (3, 1e-4)
    assert rows["ef-lstm heard"].modalities == ("audio",)
    assert rows["ghrnn-cma without text"].modalities == ("audio",)
    spoken = Dataset("d", {"all": [Example("1", {}, ("so",), sentiment=0.0)]}, {"audio": 3})
    assert [row.label for row in entries_of(args, spoken)] == list(rows)  # words are text, too
    assert not any(row.stressed for row in entries_of(_parse("--models", "mulg", "--robustness"), dataset))
    assert [row.kind for row in entries_of(_parse("--models", "text-mean"), dataset)] == ["baseline"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--models", "ghrnn-cmaa"], "model.unknown"),
        (["--models", "mult", "--robustness", "mulg"], "compare.models"),
        (["--models", "mult", "--variant", "mult"], "compare.variant"),
        (["--models", "mult", "--variant", "mult smelling: modalities=nose"], "compare.variant"),
        (["--models", "mult", "--set", "training.epoch=3"], "config.unknown_key"),
    ],
)
def test_wrong_rows_are_refused(words: list[str], code: str) -> None:
    with pytest.raises(AffectError) as caught:
        entries_of(_parse(*words), Dataset("d", {}, {}))
    assert caught.value.code == code
    with pytest.raises(AffectError, match="unknown model 'mulq'"):
        parse_variant("mulq small: model.hidden_dim=8")


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_workers_give_the_same_fits(tmp_path: Path) -> None:
    examples = [_example(k, (k % 7) - 3.0) for k in range(12)]
    dataset = Dataset("d", {"train": examples[:8], "valid": examples[8:]}, WIDTHS)  # type: ignore[arg-type]
    config = RunConfig("ef-lstm", training=replace(RunConfig("").training, epochs=1))
    (part,) = parts_of(dataset, None)
    entry = Entry("ef-lstm", config, "peer")
    two = [Fit(entry, dataset, part, seed, path_of(tmp_path, "ef-lstm", "valid", seed)) for seed in (5, 6)]
    assert load(two[0]) is None
    heard: list[float] = []
    there = run_all(two, 2, heard.append)
    assert heard == [0, 1, 2]
    for fit, kept in zip(two, there, strict=True):
        fit.path.unlink()
        run(fit)
        here = load(fit)
        assert here is not None
        for name, array in here.arrays.items():
            np.testing.assert_array_equal(array, kept.arrays[name])
    fit = two[0]
    # Whatever decides the outcome decides whether it counts as done.
    other = replace(config, training=replace(config.training, lr=0.1))
    for changed in (
        replace(fit, seed=7),
        replace(fit, entry=replace(fit.entry, config=other)),
        replace(fit, entry=replace(fit.entry, modalities=("text",))),
        replace(fit, part=Part("valid", examples[1:8], part.valid, part.held)),
    ):
        assert load(changed) is None
    assert path_of(tmp_path, "a b", "x", 0) != path_of(tmp_path, "a-b", "x", 0)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with data and a finished report, and the arguments that made it."""
    folder = tmp_path_factory.mktemp("compare")
    examples = [_example(k, float(np.random.default_rng(k).uniform(1, 7))) for k in range(16)]
    arrays = {m: np.stack([e.rows[m] for e in examples]) for m in WIDTHS}  # type: ignore[index]
    np.savez(folder / "tiny.npz", sentiment=[e.sentiment for e in examples], **arrays)  # type: ignore[arg-type]
    words = [
        "--data", str(folder / "tiny.npz"), "--label-range", "1", "7", "--folds", "2", "--seeds", "2",
        "--models", "ghrnn-cma,ef-lstm", "--set", "training.epochs=2", "--jobs", "1",
        "-o", str(folder / "out"),
    ]  # fmt: skip
    assert _run(folder, words) == 0
    return folder, words


def _run(folder: Path, words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFFECTRT_DATA", str(folder))
        patch.setattr(sys, "argv", ["affectrt", "compare", *words])
        return COMMAND.run(parser.parse_args(words))


def _figures(folder: Path) -> Any:
    return json.loads((folder / "out" / "report.json").read_text())


def test_the_report_is_whole_and_its_scores_are_those_of_the_predictions(
    compared: tuple[Path, list[str]],
) -> None:
    folder, _ = compared
    text, figures = (folder / "out" / "report.md").read_text(), _figures(folder)
    assert str(folder) not in text + json.dumps(figures)
    assert "$ affectrt compare --data $AFFECTRT_DATA/tiny.npz --label-range 1 7 --folds 2" in text
    assert [row["label"] for row in figures["rows"]] == ["ghrnn-cma", "ef-lstm", BASELINE]
    for name in ("scores", "missing", "noise", "modalities", "confusion", "attention-ghrnn-cma"):
        assert (folder / "out" / f"{name}.png").read_bytes().startswith(PNG)
        assert f"({name}.png)" in text
    with np.load(folder / "tiny.npz") as arrays:
        truth = arrays["sentiment"] - 4.0
    for row in figures["rows"][:2]:
        per_seed = []
        for seed in range(2):
            paths = sorted((folder / "out" / "work").glob(f"{row['label']}-*/*-seed{seed}.safetensors"))
            assert [path.name.split("-")[0] for path in paths] == ["fold1", "fold2"]
            held = [read_tensors(path)[0]["held/sentiment"].numpy() for path in paths]
            per_seed.append(np.abs(np.concatenate(held) - truth).mean())
        assert row["scores"]["mae"]["seeds"] == pytest.approx(per_seed)
        assert row["scores"]["mae"]["std"] == pytest.approx(np.std(per_seed, ddof=1))
    # Missing everywhere is the same as taken away.
    curve = next(c for c in figures["curves"] if (c["kind"], c["modality"]) == ("missing", "text"))
    subset = next(s for s in figures["subsets"] if s["present"] == "audio+vision")
    assert curve["scores"][-1] == subset["score"]
    assert curve["scores"][0]["seeds"] == pytest.approx(figures["rows"][0]["scores"]["mae"]["seeds"])


def test_a_stopped_run_goes_on_and_trains_only_what_is_missing(
    compared: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, words = compared
    trained: list[str] = []

    def watched(fit: Fit) -> None:
        trained.append(fit.path.name)
        run(fit)

    monkeypatch.setattr(fits, "run", watched)
    damaged, gone = sorted((folder / "out" / "work").glob("ef-lstm-*/*"))[:2]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    gone.unlink()
    args = _parse(*words[: words.index("-o")])
    dataset = read_data(args)
    found = compare(dataset, entries_of(args, dataset), Protocol(2, range(2)), folder / "out" / "work")
    assert sorted(trained) == sorted([damaged.name, gone.name])
    after = rows_of(json.loads(json.dumps(asdict(found)["rows"])))
    before = rows_of(_figures(folder)["rows"])
    assert after == before
    with pytest.raises(AffectError, match="ef-lstm more than once"):
        compare(dataset, entries_of(args, dataset)[1:] * 2, Protocol(2, [0]), folder)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_workers_end_with_a_comparison_that_is_killed(compared: tuple[Path, list[str]]) -> None:
    folder, words = compared
    endless = [*words[: words.index("-o")], "--jobs", "2", "-o", str(folder / "killed")]
    endless += ["--set", "training.epochs=100000", "training.patience=100000"]
    with subprocess.Popen([sys.executable, "-m", "affectrt", "compare", *endless]) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        workers: list[int] = []
        try:
            while sum(_is_training(pid) for pid in workers) < 2:
                assert parent.poll() is None
                time.sleep(0.2)
                workers = [int(pid) for pid in children.read_text().split()]
        finally:
            parent.kill()
    deadline = time.monotonic() + 30
    while any(_is_training(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _is_training(pid: int) -> bool:
    """Whether this process is a worker, and alive; not so the tracker that Python starts beside them."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def rows_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what no two trainings share: their time."""
    return [{key: value for key, value in row.items() if key != "train_s"} for row in rows]
