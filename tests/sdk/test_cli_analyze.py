"""``affectrt analyze``: a timeline of whatever is in a file, also when some of it is damaged or missing."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

import affectrt
from affectrt.affect import EMOTIONS, MODALITIES
from affectrt.cli import main

DEMO = Path(__file__).parents[2] / "demo" / "clip.mp4"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first four seconds of the demo clip, as Matroska: that can be cut anywhere."""
    path = tmp_path_factory.mktemp("clip") / "clip.mkv"
    with av.open(str(DEMO)) as source, av.open(str(path), "w") as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None and packet.pts * packet.time_base < 4.0:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> Path:
    """Working folder with the tiny bundle as default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFFECTRT_BUNDLE", str(tiny_bundle))
    return tmp_path


def _wav(path: Path, samples: npt.NDArray[np.float64]) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def _speechlike(seconds: float) -> npt.NDArray[np.float64]:
    """Four syllables a second at 180 Hz with overtones."""
    t = np.arange(int(16_000 * seconds)) / 16_000
    voice = np.sum([np.sin(2 * np.pi * 180 * k * t) / k for k in range(1, 6)], axis=0)
    return np.asarray(0.2 * voice * (np.sin(2 * np.pi * 4 * t) > 0))


def _without_progress(err: str) -> str:
    """A slow machine is told how far the work is."""
    return re.sub(r"^affectrt: [^:]*: \d+ of \d+ s\n", "", err, flags=re.MULTILINE)


def _rows(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, object]], str]:
    """Rows as JSON, and what was said on stderr."""
    assert main([*argv, "--format", "jsonl"]) == 0
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], _without_progress(err)


def test_a_video_with_a_transcript_has_all_three(
    folder: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "t.srt").write_text("1\n00:00:00,500 --> 00:00:02,900\nI am so happy\n", encoding="utf-8")
    rows, err = _rows(["analyze", str(clip), "--transcript", "t.srt"], capsys)
    assert err == ""
    assert [row["time_s"] for row in rows[:4]] == [1, 2, 3, 4]
    # The first word, of 0.6 s, ends at 1.1 s.
    assert "text" not in str(rows[0]["present"])
    assert rows[2]["present"] == list(MODALITIES)


def test_rows_are_those_of_a_live_stream(
    folder: Path, tiny_model: affectrt.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    pcm = _speechlike(3.0)
    _wav(folder / "s.wav", pcm)
    rows, _ = _rows(["analyze", "s.wav", "--every", "0.5", "--window", "1.5"], capsys)
    with tiny_model.stream(1.5, 0.5) as stream:
        stream.push_audio((pcm * 32767).astype("<i2"), 16_000, 0.0)
        expected = [affect.to_dict() for affect in stream.flush()]
    assert len(rows) == len(expected) == 6
    for row, live in zip(rows, expected, strict=True):
        assert {**row, "latency_ms": 0} == {**live, "latency_ms": 0}


def test_silence_is_an_absent_modality(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silence = str(_wav(folder / "silence.wav", np.zeros(32_000)))
    rows, err = _rows(["analyze", silence], capsys)
    assert [(row["time_s"], row["present"]) for row in rows] == [(1, []), (2, [])]
    assert err == ""
    assert main(["analyze", silence]) == 0
    assert capsys.readouterr().out.count("nothing sensed") == 2


def test_a_clip_cut_short_is_analysed_as_far_as_it_goes(
    folder: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = clip.read_bytes()
    (folder / "cut.mkv").write_bytes(data[: len(data) * 6 // 10])
    rows, err = _rows(["analyze", "cut.mkv"], capsys)
    assert 1 <= len(rows) < 4
    assert rows[0]["present"]
    assert err.startswith("affectrt: warning: cut.mkv: ") and err.count("\n") >= 1
    assert all(line.startswith("affectrt: warning: ") for line in err.splitlines())


def test_words_after_the_end_are_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _wav(folder / "s.wav", _speechlike(2.0))
    (folder / "t.vtt").write_text(
        "WEBVTT\n\n00:00.000 --> 00:02.000\nso happy\n\n00:30.000 --> 00:32.000\nso very sad\n",
        encoding="utf-8",
    )
    rows, err = _rows(["analyze", "s.wav", "--transcript", "t.vtt"], capsys)
    assert rows[-1]["time_s"] == 2
    assert rows[-1]["present"] == ["text", "audio"]
    assert "3 words of the transcript come after the end of s.wav" in err


def test_plain_text_is_spread_over_the_recording(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _wav(folder / "s.wav", np.zeros(4 * 16_000))
    (folder / "t.txt").write_text("happy sad", encoding="utf-8")
    rows, _ = _rows(["analyze", "s.wav", "--transcript", "t.txt", "--window", "1"], capsys)
    assert [bool(row["present"]) for row in rows] == [False, True, False, True]


@pytest.mark.parametrize("name", ["t.txt", "t.srt", "t.vtt", "T.SRT"])
def test_text_files_are_analysed_as_text(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    cue = "00:00:00.000 --> 00:00:02.000\n" if name != "t.txt" else ""
    (folder / name).write_text(f"{cue}it was a great film\n", encoding="utf-8")
    rows, err = _rows(["analyze", name], capsys)
    assert [(row["time_s"], row["present"]) for row in rows] == [(1, ["text"]), (2, ["text"])]
    assert err == ""


def test_recognised_speech_is_text(folder: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pocketsphinx", reason="the extra [asr] is not installed")
    rows, _ = _rows(["analyze", str(clip), "--asr", "pocketsphinx"], capsys)
    assert "text" in str(rows[-1]["present"])


def test_every_format_tells_the_same(folder: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("out.jsonl", "out.csv", "out.png", "out.txt"):
        assert main(["analyze", str(clip), "-o", name]) == 0
        out, err = capsys.readouterr()
        assert (out, _without_progress(err)) == ("", f"affectrt: wrote {name}\n")
    objects = [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    table = (folder / "out.txt").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO((folder / "out.csv").read_text(encoding="utf-8"))))
    assert len(rows) == len(objects)
    for row, affect in zip(rows, objects, strict=True):
        assert float(row["sentiment"]) == affect["sentiment"]
        assert row["present"] == "+".join(affect["present"])
        assert f"{affect['sentiment']:+.2f}" in table
        assert sum(affect["emotions"][name] for name in EMOTIONS) == pytest.approx(1, abs=1e-3)
    picture = cv2.imread(str(folder / "out.png"))
    assert picture is not None and picture.shape[1] > 1000
    assert sorted(path.name for path in folder.iterdir()) == ["out.csv", "out.jsonl", "out.png", "out.txt"]


def test_png_without_an_output_lies_here(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _wav(folder / "s.wav", _speechlike(1.0))
    assert main(["analyze", "s.wav", "--format", "png"]) == 0
    assert (folder / "s.affect.png").read_bytes().startswith(b"\x89PNG")
    assert "s.affect.png" in capsys.readouterr().err


def test_the_backend_can_be_named(
    folder: Path, ghrnn_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "t.txt").write_text("I am so happy", encoding="utf-8")
    of_ghrnn = ["analyze", "t.txt", "--bundle", str(ghrnn_bundle), "--profile"]
    for named, backend in (
        ([], "native"),
        (["--backend", "native"], "native"),
        (["--backend", "onnxruntime"], "onnxruntime"),
    ):
        assert main([*of_ghrnn, *named]) == 0
        assert f"\nfusion on {backend}\n" in capsys.readouterr().out
    assert main(["analyze", "t.txt", "--backend", "native"]) == 2
    assert "affectrt: [backend.unsupported] model tiny" in capsys.readouterr().err


def test_profile_accounts_for_the_time(folder: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "t.txt").write_text("I am so happy", encoding="utf-8")
    assert main(["analyze", str(clip), "--transcript", "t.txt", "--profile"]) == 0
    out = capsys.readouterr().out
    lines = out[out.index("where the time goes") :].splitlines()
    shares = {line[2:22].strip(): float(line[22:31]) for line in lines if " s " in line and line[:2] == "  "}
    assert {"decode", "face tracking", "face encoder", "audio features", "audio encoder"} <= set(shares)
    assert {"text encoder", "fusion", "everything else"} <= set(shares)
    total = shares.pop("total")
    assert sum(shares.values()) == pytest.approx(total, abs=0.01)
    factor = next(line for line in lines if line.startswith("real-time factor"))
    assert float(factor.split()[2]) == pytest.approx(total / 4.0, rel=0.1)
    assert lines[-2] == "fusion on onnxruntime"
    assert lines[-1].startswith("machine: ")


def test_profile_keeps_data_clean(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _wav(folder / "s.wav", _speechlike(1.0))
    rows, err = _rows(["analyze", "s.wav", "--profile"], capsys)
    assert len(rows) == 1
    assert "real-time factor" in err


def test_the_default_bundle_is_found(
    folder: Path,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("AFFECTRT_BUNDLE")
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    (folder / "t.txt").write_text("so happy", encoding="utf-8")
    for place in ("data/affectrt/starter.affect", "runs/starter.affect", "starter.affect"):
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(tiny_bundle.read_bytes())
        assert main(["analyze", "t.txt"]) == 0
        capsys.readouterr()
        target.write_bytes(b"not a bundle")  # the next place, more wanted, must win over this one


def test_a_terminal_without_our_characters_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "t.txt").write_text("so happy", encoding="utf-8")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["analyze", "t.txt"]) == 0
    assert b"sentiment" in raw.getvalue() and b"?" in raw.getvalue()
