"""``affectrt evaluate``: what it reads, what it refuses, and that it scores what the model predicts."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import affectrt
from affectrt.affect import EMOTIONS
from affectrt.cli import main
from affectrt.errors import AffectError
from affectrt_training.commands.manifest import read_manifest
from affectrt_training.metrics import emotion_metrics, sentiment_metrics

TEXTS = ('I said "great, really", twice', "it was awful", "not a film; the film", "so happy, so sad")
SENTIMENTS = (2.4, -1.8, 0.0, 0.5)
NAMES = ("happy", "Sad ", "neutral", "surprised")
TRUTH = ("joy", "sadness", "neutral", "surprise")


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _write_wav(path: Path, seconds: float = 1.0) -> None:
    t = np.arange(int(16_000 * seconds)) / 16_000
    # Syllables: 4 a second, at 180 Hz with overtones.
    voice = sum(np.sin(2 * np.pi * 180 * k * t) / k for k in range(1, 6)) * (np.sin(2 * np.pi * 4 * t) > 0)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((voice * 6000).astype("<i2").tobytes())


def _first_seconds(source_path: Path, path: Path, seconds: float) -> None:
    with av.open(str(source_path)) as source, av.open(str(path), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None and packet.pts * packet.time_base < seconds:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)


@pytest.fixture
def text_manifest(tmp_path: Path) -> Path:
    return _write(
        tmp_path / "texts.csv",
        [
            {"id": k, "text": text, "sentiment": sentiment, "emotion": name}
            for k, (text, sentiment, name) in enumerate(zip(TEXTS, SENTIMENTS, NAMES, strict=True))
        ],
    )


def test_json_holds_the_metrics_of_the_models_predictions(
    tiny_bundle: Path,
    tiny_model: affectrt.Model,
    text_manifest: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluate", str(tiny_bundle), "--manifest", str(text_manifest), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "warning" not in err
    result = json.loads(out)
    predictions = [tiny_model.predict(text=text) for text in TEXTS]
    expected = (
        sentiment_metrics(
            SENTIMENTS, [p.sentiment for p in predictions], [p.interval for p in predictions]
        ).to_dict()
        | emotion_metrics(
            [EMOTIONS.index(name) for name in TRUTH], [[p.emotions[e] for e in EMOTIONS] for p in predictions]
        ).to_dict()
    )
    assert {key: result[key] for key in expected} == json.loads(json.dumps(expected))
    assert (result["n"], result["n_sentiment"], result["n_emotion"]) == (4, 4, 4)
    assert sum(sum(row.values()) for row in result["confusion"].values()) == 4
    assert set(result) - set(expected) == {"n", "n_sentiment", "n_emotion", "confusion"}


def test_every_kind_of_input_is_scored(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "media").mkdir()
    _write_wav(tmp_path / "media" / "voice.wav")
    face = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "media" / "face.png"), face)
    _first_seconds(Path(__file__).parents[2] / "demo" / "clip.mp4", tmp_path / "media" / "clip.mp4", 2.0)
    empty: dict[str, object] = {"text": "", "audio": "", "video": "", "image": "", "emotion": "joy"}
    manifest = _write(
        tmp_path / "m.csv",
        [
            empty | {"text": "so happy"},
            empty | {"audio": "media/voice.wav"},
            empty | {"image": "media/face.png", "text": "so happy"},
            empty | {"video": "media/clip.mp4"},
            empty,
        ],
    )
    output = tmp_path / "predictions.csv"
    status = main(
        ["evaluate", str(tiny_bundle), "--manifest", str(manifest), "--json", "--output", str(output)]
    )
    out, err = capsys.readouterr()
    assert status == 0
    assert "1 rows have no input; the model's prior stands for them" in err
    result = json.loads(out)
    assert result["n"] == 5
    assert "mae" not in result and "n_sentiment" not in result
    with output.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    present = [row["present"] for row in rows]
    assert present[:3] == ["text", "audio", "text+vision"]
    assert "vision" in present[3]
    assert present[4] == ""
    for row in rows:
        assert sum(float(row[name]) for name in EMOTIONS) == pytest.approx(1, abs=1e-3)
        assert row["emotion"] == "joy"


def test_report_for_people_fits_80_columns(
    tiny_bundle: Path, text_manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tiny_bundle), "--manifest", str(text_manifest)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("acc-2, Non0" in line for line in lines)
    assert any(line.strip().startswith("surprise ") for line in lines)
    assert max(len(line) for line in lines[1:]) <= 80


def test_undefined_is_null_and_limit_limits(
    tiny_bundle: Path, text_manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["evaluate", str(tiny_bundle), "--manifest", str(text_manifest), "--json", "--limit", "1"]
    assert main(args) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["n"], result["r"]) == (1, None)
    assert result["recall"]["anger"] is None


def test_unlabelled_rows_are_not_scored(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("text,sentiment\nso happy,1.5\nso sad,\n", encoding="utf-8")
    output = tmp_path / "p.csv"
    base = ["evaluate", str(tiny_bundle), "--manifest", str(manifest), "--json"]
    assert main([*base, "--output", str(output)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 1
    assert "1 rows have no label" in err
    assert len(output.read_text(encoding="utf-8").splitlines()) == 3
    manifest.write_text("text,sentiment\nso sad,\n", encoding="utf-8")
    assert main(base) == 2
    assert "[manifest.no_labels]" in capsys.readouterr().err


def test_cells_may_hold_anything_csv_can(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes('\ufeffText, Sentiment\r\n"a ""b"", c\nd",-0.5\r\n\r\nÜber,3\r\n'.encode())
    first, second = read_manifest(path)
    assert (first.text, first.sentiment, first.line) == ('a "b", c\nd', -0.5, 3)
    assert (second.text, second.number, second.line) == ("Über", 2, 5)


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("", "manifest.columns", "at least one input column"),
        ("sentiment\n1\n", "manifest.columns", "input column of text, audio, video, image; got sentiment"),
        ("text\nhello\n", "manifest.columns", "label column of sentiment, emotion"),
        ("text,text,sentiment\na,b,1\n", "manifest.columns", "'text' is there twice"),
        ("text,sentiment\n", "manifest.empty", "no rows"),
        ("text,sentiment\nyes, it was,1\n", "manifest.row", r"row 1 \(line 2\): expected 2 cells.*got 3"),
        ("text,sentiment\na,1\nb,4.5\n", "manifest.row", r"row 2 \(line 3\): expected a sentiment.*'4.5'"),
        ("text,sentiment\na,nan\n", "manifest.row", "'nan'"),
        ("text,sentiment\na,positive\n", "manifest.row", "'positive'"),
        ("text,emotion\na,bored\n", "manifest.row", r"row 1.*'bored'.*anger.*happy"),
        ("audio,emotion\nnowhere.wav,joy\n", "manifest.file_missing", r"row 1.*audio file '.*nowhere.wav'"),
        ('text,emotion\n"a,joy\n', "manifest.unreadable", "unexpected end of data"),
        (b"text,emotion\n\xff\xfe,joy\n", "manifest.unreadable", "UTF-8"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, content: str | bytes, code: str, message: str) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AffectError, match=message) as caught:
        read_manifest(path)
    assert caught.value.code == code
    assert str(path) in caught.value.message


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match="no such manifest"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(AffectError, match="directory"):
        read_manifest(tmp_path)


def test_a_bad_file_names_its_row(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.wav").write_text("no sound in here", encoding="utf-8")
    manifest = tmp_path / "m.csv"
    manifest.write_text("text,audio,emotion\nhi,,joy\n,bad.wav,joy\n", encoding="utf-8")
    assert main(["evaluate", str(tiny_bundle), "--manifest", str(manifest)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("affectrt: [media.")
    assert "row 2 (line 3)" in err and "bad.wav" in err
    assert err.count("\n") == 1


def test_it_needs_no_torch(tiny_bundle: Path, text_manifest: Path) -> None:
    code = (
        "import sys\n"
        "from affectrt.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "heavy = {'torch', 'lightning', 'transformers'} & sys.modules.keys()\n"
        "sys.exit(f'loaded {heavy}' if heavy else status)\n"
    )
    args = ["evaluate", str(tiny_bundle), "--manifest", str(text_manifest), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["n"] == 4


# --- Run folders ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory, tiny_members: dict[str, bytes]) -> Path:
    """A run that reads words by a small BERT of random weights, and voices of three features."""
    import torch
    from transformers import BertConfig, BertModel

    from affectrt_training.config import build
    from affectrt_training.data.dataset import Dataset, Example
    from affectrt_training.fit.run import fit_run
    from affectrt_training.fit.settings import RunConfig

    folder = tmp_path_factory.mktemp("text_run")
    (folder / "bert").mkdir()
    (folder / "bert" / "tokenizer.json").write_bytes(tiny_members["tokenizer.json"])
    vocabulary = len(json.loads(tiny_members["tokenizer.json"])["model"]["vocab"])
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder / "bert")
    rng = np.random.default_rng(0)
    examples = [
        Example(f"e{k}", {"audio": rng.normal(size=(2, 3)).astype(np.float32)}, ("so", text), label)
        for k, (text, label) in enumerate([("happy", 2.0), ("sad", -2.0)] * 6)
    ]
    dataset = Dataset("words", {"train": examples[:8], "valid": examples[8:]}, {"audio": 3})
    settings = {
        "system": "ghrnn-cma",
        "model": {"model_dim": 8, "heads": 2, "hidden_dim": 8, "fused_dim": 8},
        "text": {"encoder": str(folder / "bert"), "tuning": "lora"},
        "training": {"epochs": 1, "accelerator": "cpu"},
    }
    fit_run(build(RunConfig, settings, where="run"), dataset, folder / "run", progress=False)
    return folder / "run"


def test_a_run_is_scored_on_a_manifest_of_texts(
    text_run: Path, text_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from affectrt_training.data.dataset import Example
    from affectrt_training.fit.checkpoint import load_run
    from affectrt_training.fit.predict import predict

    output = tmp_path / "p.csv"
    args = ["evaluate", str(text_run), "--manifest", str(text_manifest), "--json", "--output", str(output)]
    assert main(args) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert err == "" and (result["n"], result["n_emotion"], result["interval_coverage"]) == (4, 4, None)
    said = predict(load_run(text_run), [Example(t, {}, tuple(t.split())) for t in TEXTS])
    assert result["mae"] == pytest.approx(sentiment_metrics(SENTIMENTS, said.sentiment).mae, abs=1e-6)
    truth = [EMOTIONS.index(name) for name in TRUTH]
    assert result["ece"] == pytest.approx(emotion_metrics(truth, said.probabilities).ece, abs=1e-6)
    with output.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["0", "1", "2", "3"]  # the manifest's ids
    assert [float(row["predicted_sentiment"]) for row in rows] == pytest.approx(said.sentiment, abs=1e-4)
    assert {row["present"] for row in rows} == {"text"} and rows[0]["interval_low"] == ""


def test_the_run_that_comes_along_reads_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {
        "I LOVED EVERY MINUTE OF IT": 3.0,
        "IT IS ABOUT A MAN AND HIS DOG": 0.0,
        "WHAT A WASTE OF TIME": -3.0,
    }
    manifest, output = tmp_path / "m.csv", tmp_path / "p.csv"
    manifest.write_text("\n".join(["text,sentiment", *(f"{text},{s}" for text, s in texts.items())]))
    assert (
        main(["evaluate", "mosi-text", "--manifest", str(manifest), "--json", "--output", str(output)]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["n_sentiment"] == 3 and result["mae"] < 1.0
    with output.open(newline="") as file:
        said = [float(row["predicted_sentiment"]) for row in csv.DictReader(file)]
    assert said == sorted(said, reverse=True) and said[0] > 1 > -1 > said[2]


def test_rows_without_label_or_input_are_told_of(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("text,sentiment\nso happy,1.5\nso sad,\n,1\n", encoding="utf-8")
    assert main(["evaluate", str(text_run), "--manifest", str(manifest)]) == 0
    out, err = capsys.readouterr()
    assert "2 rows scored" in out
    assert "1 rows have no label" in err and "1 rows have nothing that the run reads" in err
    assert main(["evaluate", str(text_run), "--manifest", str(manifest), "--limit", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 1


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("text,sentiment\nhi,\n", "evaluate.no_labels"),
        ("text,sentiment\n,2\n", "evaluate.no_input"),
        ("text,sentiment\nhi,9\n", "data.label"),
        ("sentiment\n1\n", "data.keys"),
    ],
)
def test_a_run_refuses_manifests_that_give_nothing(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, code: str
) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(content, encoding="utf-8")
    assert main(["evaluate", str(text_run), "--manifest", str(manifest)]) == 2
    assert f"[{code}" in capsys.readouterr().err


def test_a_run_names_the_splits_there_are_and_the_widths_it_reads(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("text,sentiment,split\nso happy,1,valid\nso sad,-1,test\nhm,0,test\n", encoding="utf-8")
    base = ["evaluate", str(text_run), "--data", str(table), "--json"]
    assert main(base) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 2  # test, by itself
    assert main([*base, "--split", "valid"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 1
    assert main([*base, "--split", "dev"]) == 2
    assert "[data.no_split]" in capsys.readouterr().err
    wide = tmp_path / "wide.npz"
    np.savez(wide, audio=np.ones((4, 2, 5), np.float32), y=np.array([1.0, 2, -1, 0], np.float32))
    assert main(["evaluate", str(text_run), "--data", str(wide)]) == 2
    err = capsys.readouterr().err
    assert "[data.shape]" in err and "3 features" in err


def test_options_go_with_the_kind_of_model(
    text_run: Path, tiny_bundle: Path, text_manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (
        [str(text_run)],
        [str(text_run), "--data", "x", "--manifest", str(text_manifest)],
        [str(tiny_bundle)],
        [str(tiny_bundle), "--data", "x"],
    ):
        assert main(["evaluate", *argv]) == 2
        assert "[cli.usage]" in capsys.readouterr().err
    assert main(["evaluate", str(text_run.parent), "--manifest", str(text_manifest)]) == 2
    assert "[checkpoint.not_found]" in capsys.readouterr().err
