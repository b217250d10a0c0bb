"""Whatever a user hands to ``affectrt``: one line on stderr with a code, exit status 2, never a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from affectrt.cli import main


def _float_wav(samples: npt.NDArray[np.float64]) -> bytes:
    """A WAV of float samples, 16 kHz mono: the format in which a file can hold NaN."""
    data = samples.astype("<f4").tobytes()
    fields = [(16, 4), (3, 2), (1, 2), (16_000, 4), (64_000, 4), (4, 2), (32, 2)]
    form = b"".join(value.to_bytes(size, "little") for value, size in fields)
    size, length = (36 + len(data)).to_bytes(4, "little"), len(data).to_bytes(4, "little")
    return b"RIFF" + size + b"WAVEfmt " + form + b"data" + length + data


def _wide_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 10_000, 10, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((10, 10_000, 3), np.uint8), format="bgr24")
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)


def _random_bytes(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(5000)


MAKE: dict[str, Callable[[Path], object]] = {
    "empty.mp4": lambda path: path.write_bytes(b""),
    "garbage.mp4": lambda path: path.write_bytes(_random_bytes(0)),
    "broken.mp4": lambda path: path.write_bytes(b"\0\0\0\x18ftypisom" + _random_bytes(1)),
    "text.mp4": lambda path: path.write_text("Dear diary, this is not a film.\n" * 50, encoding="utf-8"),
    "nan.wav": lambda path: path.write_bytes(_float_wav(np.where(np.arange(16_000) == 9000, np.nan, 0.1))),
    "inf.wav": lambda path: path.write_bytes(_float_wav(np.full(16_000, np.inf))),
    "wide.mkv": _wide_video,
    "still.png": lambda path: cv2.imwrite(str(path), np.zeros((32, 32), np.uint8)),
    "silence.wav": lambda path: path.write_bytes(_float_wav(np.zeros(16_000))),
    "empty.txt": lambda path: path.write_bytes(b""),
    "empty.srt": lambda path: path.write_bytes(b"\n\n"),
    "binary.txt": lambda path: path.write_bytes(bytes(range(256))),
    "backwards.srt": lambda path: path.write_text("1\n00:00:05,000 --> 00:00:02,000\nhi\n", encoding="utf-8"),
    "garbled.vtt": lambda path: path.write_text("WEBVTT\n\n00:01 --> later\nhi\n", encoding="utf-8"),
    "folder.mp4": lambda path: path.mkdir(),
    "words.txt": lambda path: path.write_text("I am so happy", encoding="utf-8"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> Path:
    """Working folder with the tiny bundle as default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFFECTRT_BUNDLE", str(tiny_bundle))
    return tmp_path


def _refused(argv: list[str], code: str, capfd: pytest.CaptureFixture[str]) -> str:
    """Run and check the form of the refusal. capfd: C libraries that write to the terminal count too."""
    assert main(argv) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"affectrt: [{code}] ")
    assert err.count("\n") == 1 and err.endswith("\n")
    return err


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("empty.mp4", "media.empty"),
        ("garbage.mp4", "media.undecodable"),
        ("broken.mp4", "media.undecodable"),
        ("text.mp4", "media.undecodable"),
        ("nan.wav", "audio.not_finite"),
        ("inf.wav", "audio.not_finite"),
        ("wide.mkv", "media.frame_size"),
        ("still.png", "media.image"),
        ("folder.mp4", "media.not_a_file"),
        ("missing.mp4", "media.not_found"),
        ("empty.txt", "transcript.empty"),
        ("empty.srt", "transcript.empty"),
        ("binary.txt", "transcript.not_text"),
        ("backwards.srt", "transcript.backwards_time"),
        ("garbled.vtt", "transcript.malformed"),
        ("missing.srt", "transcript.not_found"),
    ],
)
def test_a_bad_file_is_refused(folder: Path, capfd: pytest.CaptureFixture[str], name: str, code: str) -> None:
    if not name.startswith("missing"):
        MAKE[name](folder / name)
    assert name in _refused(["analyze", name], code, capfd)


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["analyze", "silence.wav", "--transcript", "backwards.srt"], "transcript.backwards_time", "line 2"),
        (["analyze", "silence.wav", "--transcript", "missing.srt"], "transcript.not_found", "missing.srt"),
        (["analyze", "words.txt", "--transcript", "words.txt"], "cli.usage", "itself the text"),
        (["analyze", "words.txt", "--asr", "pocketsphinx"], "cli.usage", "itself the text"),
        (["analyze", "silence.wav", "--every", "0"], "cli.usage", "from 0.01, got '0'"),
        (["analyze", "silence.wav", "--every", "nan"], "cli.usage", "got 'nan'"),
        (["analyze", "silence.wav", "--window", "-1"], "cli.usage", "got '-1'"),
        (["analyze", "silence.wav", "--format", "xml"], "cli.usage", "'xml'"),
        (
            ["analyze", "silence.wav", "--frmat", "csv"],
            "cli.usage",
            "'--frmat'; see 'affectrt analyze",
        ),
        (["analyze"], "cli.usage", "FILE"),
        (["analyze", "silence.wav", "--bundle", "none.affect"], "bundle.not_found", "none.affect"),
        (["analyze", "silence.wav", "--bundle", "silence.wav"], "bundle.not_zip", "silence.wav"),
        (["analyze", "silence.wav", "-o", "nowhere/out.csv"], "output.unwritable", "nowhere/out.csv"),
        (["analyze", "silence.wav", "-o", "folder.mp4"], "output.unwritable", "directory"),
        (["info", "folder.mp4"], "bundle.", "folder.mp4"),
        (["info"], "cli.usage", "BUNDLE"),
        (["info", "x", "--json", "--card"], "cli.usage", "--card"),
        (["evaluate", "x"], "cli.usage", "--manifest"),
        (["evaluate", "x", "--manifest", "m.csv", "--limit", "0"], "cli.usage", "got '0'"),
        (["evaluate", "x", "--manifest", "missing.csv"], "manifest.not_found", "missing.csv"),
        (["analyse", "silence.wav"], "cli.unknown_command", "did you mean 'analyze'?"),
        (["--verbose"], "cli.usage", "'--verbose'"),
        ([], "cli.usage", "no command given"),
    ],
)
def test_a_bad_command_line_is_refused(
    folder: Path, capfd: pytest.CaptureFixture[str], argv: list[str], code: str, says: str
) -> None:
    inputs = ("silence.wav", "backwards.srt", "words.txt", "folder.mp4")
    for name in inputs:
        MAKE[name](folder / name)
    assert main(argv) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"affectrt: [{code}")
    assert says in err
    assert err.count("\n") == 1
    # Nothing half-written stays behind.
    assert {path.name for path in folder.iterdir()} == {
        "silence.wav",
        "backwards.srt",
        "words.txt",
        "folder.mp4",
    }


def test_without_any_bundle_the_error_says_how_to_make_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AFFECTRT_BUNDLE")
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    MAKE["words.txt"](folder / "words.txt")
    assert "affectrt export starter -o starter.affect" in _refused(
        ["analyze", "words.txt"], "bundle.none", capfd
    )


def _repack(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _flip(source: Path, target: Path) -> None:
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 0x10
    target.write_bytes(data)


def _cut(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes()[:-1000])


def _newer(members: dict[str, bytes]) -> None:
    members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) | {"schema": 99}).encode()


def _escape(members: dict[str, bytes]) -> None:
    members["../../evil.onnx"] = b"x"


def _lose(members: dict[str, bytes]) -> None:
    del members["vision.onnx"]


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (_flip, "bundle.hash_mismatch"),
        (_cut, "bundle.truncated"),
        (lambda source, target: _repack(source, target, _newer), "bundle.schema_newer"),
        (lambda source, target: _repack(source, target, _escape), "bundle.path_escape"),
        (lambda source, target: _repack(source, target, _lose), "bundle.member_missing"),
        (lambda source, target: target.write_bytes(b""), "bundle.not_zip"),
    ],
    ids=["flipped byte", "cut short", "newer schema", "path escape", "missing graph", "empty"],
)
@pytest.mark.parametrize("command", ["analyze", "evaluate", "info"])
def test_a_broken_bundle_is_refused_by_every_command(
    folder: Path,
    tiny_bundle: Path,
    capfd: pytest.CaptureFixture[str],
    break_it: Callable[[Path, Path], None],
    code: str,
    command: str,
) -> None:
    broken = folder / "broken.affect"
    break_it(tiny_bundle, broken)
    MAKE["words.txt"](folder / "words.txt")
    (folder / "m.csv").write_text("text,emotion\nhi,joy\n", encoding="utf-8")
    argv = {
        "analyze": ["analyze", "words.txt", "--bundle", str(broken)],
        "evaluate": ["evaluate", str(broken), "--manifest", "m.csv"],
        "info": ["info", str(broken)],
    }[command]
    assert "broken.affect" in _refused(argv, code, capfd)
    assert not list(folder.parent.glob("**/evil.onnx"))


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["analyze", "text.mp4"], "media.undecodable"),
        (["analyze", "nan.wav"], "audio.not_finite"),
        (["analyze", "wide.mkv"], "media.frame_size"),
        (["info", "flipped.affect"], "bundle.hash_mismatch"),
        (["analyze", "words.txt", "--nonsense"], "cli.usage"),
    ],
)
def test_the_installed_command_refuses_the_same_way(
    folder: Path, tiny_bundle: Path, argv: list[str], code: str
) -> None:
    for name in ("text.mp4", "nan.wav", "wide.mkv", "words.txt"):
        MAKE[name](folder / name)
    _flip(tiny_bundle, folder / "flipped.affect")
    program = shutil.which("affectrt", path=str(Path(sys.executable).parent))
    assert program, "affectrt is not installed in the environment that runs the tests"
    done = subprocess.run([program, *argv], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"affectrt: [{code}] ")
    assert done.stderr.count("\n") == 1
