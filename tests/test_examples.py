"""The examples run, on a file where hardware would be."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import soxr

from affectrt.media import read_audio
from tests.clips import DEMO, beginning

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two seconds of the demo clip."""
    return beginning(tmp_path_factory.mktemp("clip") / "clip.mkv", 2.2)


def run(example: str, *args: str, bundle: Path, given: bytes | None = None) -> str:
    """What it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / example), *args],
        env={**os.environ, "AFFECTRT_BUNDLE": str(bundle)},
        input=given,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: str(path.name))
def test_an_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 40
    assert f"python examples/{path.name}" in (ast.get_docstring(ast.parse(source)) or "")


def test_file(tiny_bundle: Path, clip: Path) -> None:
    told = run("file.py", str(clip), str(DEMO / "clip.srt"), bundle=tiny_bundle)
    assert re.fullmatch(r"(   [12]\.0 s  [+-]\d\.\d\d  [a-z]+\n){2}", told)


def test_camera(tiny_bundle: Path, clip: Path) -> None:
    # A file delivers as fast as it is read: how many results that gives is up to the machine.
    told = run("camera.py", str(clip), bundle=tiny_bundle)
    assert re.fullmatch(r"( +\d+\.\d s  (no face|[+-]\d\.\d\d \(.+ … .+\))\n)+", told)


def test_push(tiny_bundle: Path, clip: Path) -> None:
    pcm, rate_hz = read_audio(clip)
    sound = soxr.resample(pcm, rate_hz, 16_000)
    samples = (sound * 32767).astype("<i2").tobytes()
    told = run("push.py", "so", "very", "happy", bundle=tiny_bundle, given=samples)
    assert len(re.findall(r"^ +\d\.\d s  [+-]\d\.\d\d  \[.*\]$", told, re.M)) >= 4
    assert "'text'" in told and "'audio'" in told


def test_osc(tiny_bundle: Path, clip: Path) -> None:
    pytest.importorskip("pythonosc", reason="needs the extra 'osc'")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = run("osc.py", str(clip), f"127.0.0.1:{port}", bundle=tiny_bundle)
    assert re.search(r"^/affectrt/sentiment [+-]\d\.\d\d: the light is (yellow|blue|white)$", told, re.M)
