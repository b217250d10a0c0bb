"""``affectrt live``: in a pipe, on a terminal, recorded and replayed; and what it is made of."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import av
import numpy as np
import pytest

import affectrt
from affectrt.affect import EMOTIONS, Affect, Event
from affectrt.bundle import write_bundle
from affectrt.cli import main
from affectrt.cli.live_view import Dashboard, history
from affectrt.errors import AffectError
from affectrt.live import Live, Replay
from affectrt.manifest import Manifest, RowsSpec
from affectrt.sources import source
from affectrt.sources.file import FileSource
from affectrt.sources.network import NetworkSource

DEMO = Path(__file__).parents[2] / "demo"
PROBABILITIES = {name: 0.4 if name == "joy" else 0.1 for name in EMOTIONS}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> Path:
    """Working folder with the tiny bundle as default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFFECTRT_BUNDLE", str(tiny_bundle))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["live", *argv]) == status
    told = capsys.readouterr()
    return told.out, told.err


# --- The command ----------------------------------------------------------------------------------


def test_a_file_recorded_and_replayed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started_at = perf_counter()
    argv = ["--file", str(DEMO / "clip.mp4"), "--seconds", "2.2", "--every", "0.5", "--json"]
    out, err = run(capsys, *argv, "--record", "out.jsonl")
    assert perf_counter() - started_at >= 2.2
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["time_s"] for row in rows[:4]] == [0.5, 1.0, 1.5, 2.0]
    assert set(rows[3]["present"]) == {"text", "audio", "vision"}, "the subtitles beside it are read"
    assert "Results go to recording out.jsonl; sound, pictures and words are not stored." in err
    assert (folder / "out.jsonl").read_text(encoding="utf-8") == out
    started_at = perf_counter()
    again, err = run(capsys, "--replay", "out.jsonl", "--json")
    assert again == out
    assert perf_counter() - started_at >= 1.4, "at its pace"
    assert "nothing is sensed" in err
    lines, _ = run(capsys, "--replay", "out.jsonl", "--seconds", "0.6")
    assert [line.split()[0] for line in lines.splitlines()] == ["time", "0:00.5", "0:01.0"]


def test_on_a_terminal_until_ctrl_c(folder: Path) -> None:
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "affectrt", "live", "--file", str(DEMO / "clip.mp4"), "--every", "0.2"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    running = subprocess.Popen(
        argv,
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
        env=environment,
        # What runs in the background of a shell ignores interrupts, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(theirs)
    shown, interrupted = b"", False
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if b"sentiment" in shown and not interrupted:
            interrupted = True
            running.send_signal(signal.SIGINT)
    os.close(ours)
    assert running.wait(60) == 0
    text = shown.decode()
    for part in ("SENSING", "clip.mp4", "Nothing is stored, nothing leaves this device", "p95", "joy"):
        assert part in text
    assert text.rstrip().endswith("\x1b[?25h"), "the cursor is back"


def test_who_reads_only_the_first_line_ends_it(folder: Path) -> None:
    argv = [sys.executable, "-m", "affectrt", "live", "--file", str(DEMO / "clip.mp4"), "--every", "0.1"]
    with subprocess.Popen([*argv, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        assert json.loads(running.stdout.readline())["time_s"] == 0.1
        running.stdout.close()
        told = running.stderr.read().decode()
        assert running.wait(60) == 0 and "error" not in told.lower()


def test_a_camera_that_is_not_there_is_told_and_waited_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--camera", "http://127.0.0.1:9/none", "--microphone", "off", "--seconds", "0.5"]
    out, err = run(capsys, *argv)
    assert out.splitlines()[1:] == []
    assert "Sensing how a person appears to feel, by http stream 127.0.0.1: only of people who agreed." in err
    assert err.count("source.lost") == 1


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--replay", "x.jsonl", "--camera", "0"], "cli.usage"),
        (["--replay", "x.jsonl", "--record", "y.jsonl"], "cli.usage"),
        (["--file", "x.mp4", "--microphone", "off"], "cli.usage"),
        (["--transcript", "x.srt"], "cli.usage"),
        (["--file", "x.mp4", "--transcript", "x.srt", "--asr", "pocketsphinx"], "cli.usage"),
        (["--camera", "front"], "cli.usage"),
        (["--seconds", "0"], "cli.usage"),
        (["--camera", "off", "--microphone", "off"], "live.nothing"),
        (["--file", "x.mp4"], "media.not_found"),
        (["--replay", "x.jsonl"], "recording.unreadable"),
        (["--replay", "empty.jsonl"], "recording.malformed"),
        (["--osc", "localhost"], "osc.address"),
        (["--asr", "sherpa"], "asr.unknown"),
        (["--record", "none/out.jsonl"], "output.unwritable"),
    ],
)
def test_what_cannot_be_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: str
) -> None:
    (folder / "empty.jsonl").touch()
    if code == "osc.address":
        pytest.importorskip("pythonosc", reason="needs the extra 'osc'")
    _, err = run(capsys, *argv, status=2)
    assert err.startswith(f"affectrt: [{code}] ")


def test_nothing_is_sensed_for_a_model_that_has_no_use_for_it(
    tiny_manifest: Manifest,
    tiny_members: dict[str, bytes],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    members = {name: data for name, data in tiny_members.items() if name != "vision.onnx"}
    blind = replace(tiny_manifest, vision=RowsSpec(tiny_manifest.dim("vision")))
    write_bundle(folder / "blind.affect", blind, members)
    argv = ["--bundle", "blind.affect", "--microphone", "off"]
    _, err = run(capsys, *argv, "--camera", "0", status=2)
    assert "model.no_extractor" in err
    _, err = run(capsys, *argv, status=2)
    assert "live.nothing" in err


# --- From a program -------------------------------------------------------------------------------


class Collected:
    """An output of the application."""

    name = "own"

    def __init__(self) -> None:
        self.sent: list[Affect] = []
        self.closed = 0

    def send(self, affect: Affect) -> None:
        self.sent.append(affect)

    def close(self) -> None:
        self.closed += 1


def test_events_of_sources_come_at_once_and_go_with_a_result(
    tiny_model: affectrt.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "FIRST_PAUSE_S", 0.05)
    clip = tmp_path / "clip.mp4"
    shutil.copy(DEMO / "clip.mp4", clip)
    output = Collected()
    sources = [FileSource(clip), NetworkSource("http://127.0.0.1:9/none")]
    found: list[Affect | Event] = []
    with Live(tiny_model, sources, [output], hop_s=0.25) as live:
        for item in live.results(seconds=1.5):
            found.append(item)
    events = [item for item in found if isinstance(item, Event)]
    affects = [item for item in found if isinstance(item, Affect)]
    assert [event.code for event in events].count("source.lost") == 1
    assert found.index(events[0]) < found.index(affects[0])
    assert events[0] in affects[0].events
    assert output.sent == affects and output.closed == 1
    assert [source.state for source in sources] == ["off", "off"]
    with pytest.raises(AffectError, match="closed"):
        live.stream.poll()


def test_a_file_that_ends_ends_it(tiny_model: affectrt.Model, tmp_path: Path) -> None:
    path = tmp_path / "short.wav"
    with av.open(str(path), "w") as target:
        track = target.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 9_600), 1000, np.int16), "s16", "mono")
        frame.sample_rate = 16_000
        target.mux(track.encode(frame))
        target.mux(track.encode(None))
    with Live(tiny_model, [FileSource(path)], hop_s=0.3) as live:
        times = [item.time_s for item in live.results() if isinstance(item, Affect)]
    assert times == pytest.approx([0.3, 0.6])


def test_history_is_a_line_of_blocks() -> None:
    assert history([-3.0, 0.0, None, 3.0]) == "▁▅·█"


def test_the_dashboard_says_what_it_does_not_know(tmp_path: Path) -> None:
    console = pytest.importorskip("rich.console", reason="needs the extra 'live'")
    recording = tmp_path / "out.jsonl"
    affect = Affect(3.0, 1.5, (0.5, 2.5), PROBABILITIES, {}, frozenset({"text"}), 10.0)
    recording.write_text(json.dumps(affect.to_dict()) + "\n", encoding="utf-8")
    dashboard = Dashboard(Replay(recording), ["A replay."])

    def drawn() -> str:
        screen = console.Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
        with screen.file:
            screen.print(dashboard.frame())
        return str(screen.export_text())

    assert "waiting for the first result" in drawn() and "nothing is sensed" in drawn()
    dashboard.show(affect)
    assert "sentiment +1.50" in drawn() and "● words  ○ voice  ○ face" in drawn() and "40%" in drawn()
    dashboard.show(Affect(4.0, 0.0, (-1.0, 1.0), PROBABILITIES, {}, frozenset(), 10.0))
    dashboard.show(Event(4.0, "source.lost", "camera 0: " + "gone " * 40))
    text = drawn()
    assert "nothing sensed" in text and "40%" not in text, "the model's prior is not this person"
    assert "source.lost: camera 0" in text and max(map(len, text.splitlines())) <= 80
