"""``affectrt bench``: the gate, the figures, what is written of them, and the energy."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import wave
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import affectrt
from affectrt import machine
from affectrt.benchmark import Benchmark, Measured, _latency, measure
from affectrt.benchmark_worker import Worker
from affectrt.bundle import write_bundle
from affectrt.cli import main
from affectrt.cli.bench_page import page
from affectrt.cli.bench_table import NOT_TOLD, labels, table
from affectrt.energy import Tegrastats, find_meters, module_watts, rapl_meters
from affectrt.errors import AffectError
from affectrt.features.text import words_of
from affectrt.manifest import Manifest, RowsSpec
from affectrt.profiling import StageTimer
from affectrt.trial import ClipWindow, MadeUpWindow, difference

STAGES = ["text", "audio", "vision", "fusion"]


@pytest.fixture(scope="module")
def found(ghrnn_bundle: Path) -> Benchmark:
    """Of a bundle whose weights two backends know; its graph is another model."""
    shares: list[float] = []
    found = measure([ghrnn_bundle], rounds=5, progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0
    return found


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds that the energy gate takes for speech."""
    path = tmp_path_factory.mktemp("sound") / "voice.wav"
    time_s = np.arange(48_000) / 16_000
    tone = 0.2 * np.sin(2 * np.pi * 220.0 * time_s) * (1.0 + np.sin(2 * np.pi * 3.0 * time_s))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((tone * 32_767).astype("<i2").tobytes())
    return path


def error_of(call: Callable[[], object]) -> AffectError:
    with pytest.raises(AffectError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value


# --- Right first -----------------------------------------------------------------------------------


def test_what_differs_from_the_others_gets_no_figures(found: Benchmark) -> None:
    assert [one.backend for one in found.measured] == ["native", "torch"]
    (refused,) = found.refused
    assert (refused.backend, refused.code) == ("onnxruntime", "bench.disagrees")
    assert "onnxruntime differs from native by " in refused.message
    native, rebuilt = found.measured
    assert (native.compared_with, native.difference) == (None, None)
    assert rebuilt.compared_with == "native"
    assert rebuilt.difference is not None and rebuilt.difference < 1e-5


def test_where_nobody_agrees_nobody_gets_figures(
    ghrnn_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One alone is held to another that runs here: neither it nor this one can be known to be right."""
    page_path = tmp_path / "bench.html"
    assert main(["bench", str(ghrnn_bundle), "--backends", "native", "--html", str(page_path)]) == 1
    out = capsys.readouterr().out
    assert f"NO FIGURES  {ghrnn_bundle} on native: [bench.disagrees]" in out
    assert "of native, onnxruntime, none agrees with native" in out
    assert "p50" not in out and "on onnxruntime:" not in out
    assert "[bench.disagrees]" in page_path.read_text() and "<table>" not in page_path.read_text()


def test_a_candidate_that_cannot_be_loaded_is_refused(make_ghrnn: Callable[..., Path]) -> None:
    broken = make_ghrnn(members={"audio.onnx": b"nonsense"})
    found = measure([broken], backends=["onnxruntime"], rounds=1)
    assert found.measured == () and found.rounds == 0
    assert [(one.backend, one.code) for one in found.refused] == [("onnxruntime", "graph.invalid")]


def test_settings_that_make_no_sense_are_refused(tiny_bundle: Path, wav: Path) -> None:
    assert error_of(lambda: measure([])).code == "bench.settings"
    assert error_of(lambda: measure([tiny_bundle], rounds=0)).code == "bench.settings"
    assert error_of(lambda: measure([tiny_bundle], threads=0)).code == "bench.settings"
    assert error_of(lambda: measure([tiny_bundle], transcript="words.txt")).code == "bench.settings"
    assert error_of(lambda: measure([tiny_bundle], backends=["native"])).code == "backend.unsupported"
    assert error_of(lambda: measure([tiny_bundle], clip=wav.parent / "none.wav")).code == "media.not_found"


def test_a_process_that_ends_too_soon_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    error = error_of(lambda: Worker({"path": "x.affect", "backend": "native"}))
    assert (
        error.code == "bench.worker"
        and "x.affect on native: its process ended with status 1" in error.message
    )
    assert "KeyError: 'threads'" in capfd.readouterr().err


# --- The figures -----------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_rounds(found: Benchmark) -> None:
    assert (found.rounds, found.threads) == (5, 1)
    for one in found.measured:
        assert list(one.stages) == STAGES
        for latency in (one.whole, *one.stages.values()):
            assert len(latency.times_ms) == 5
            assert latency.p50_ms == np.median(latency.times_ms)
            assert latency.p50_ms <= latency.p95_ms <= latency.p99_ms <= max(latency.times_ms)
            assert latency.per_s == pytest.approx(1e3 / np.mean(latency.times_ms))
        parts = zip(*(stage.times_ms for stage in one.stages.values()), strict=True)
        assert all(sum(part) <= whole for part, whole in zip(parts, one.whole.times_ms, strict=True))
    native, rebuilt = found.measured
    assert (native.whole.ratio, native.whole.ratio_quartiles) == (1.0, (1.0, 1.0))
    assert rebuilt.whole.ratio_quartiles is not None and rebuilt.whole.ratio is not None
    assert rebuilt.whole.ratio_quartiles[0] <= rebuilt.whole.ratio <= rebuilt.whole.ratio_quartiles[1]
    # Each process holds what it needs itself, and not what another imported.
    assert 2e7 < native.peak_bytes < rebuilt.peak_bytes - 5e7
    assert native.load_s > 0.0 and rebuilt.load_s > 0.0
    assert native.bundle_bytes == Path(native.bundle).stat().st_size


def test_a_ratio_is_that_of_its_round() -> None:
    latency = _latency([2.0, 8.0, 3.0, 40.0], [1.0, 2.0, 1.0, 10.0])
    assert (latency.ratio, latency.ratio_quartiles) == (3.5, (2.75, 4.0))
    assert _latency([1.0], None).ratio is None
    assert _latency([1.0, 2.0], [1.0]).ratio is None, "a stage that the first ran in some rounds only"


def test_the_machine_is_told_without_names_of_hosts_or_folders() -> None:
    said = "\n".join(machine.lines(["commit abc"]))
    assert machine.processor() in said and f"numpy {np.__version__}" in said and "commit abc; " in said
    assert "/" not in said.replace("N/A", "")


# --- The input -------------------------------------------------------------------------------------


def test_made_up_input_is_the_same_at_every_run(tiny_model: affectrt.Model, tiny_bundle: Path) -> None:
    trial, again = MadeUpWindow(tiny_model), MadeUpWindow(affectrt.load(tiny_bundle, threads=1))
    timer = StageTimer()
    affects = [trial.run(timer), trial.run(timer), again.run(timer)]
    assert all(difference(a, b) == 0.0 for a, b in pairwise(affects))
    assert affects[0].present == {"text", "audio", "vision"}
    assert list(timer.seconds) == STAGES and trial.note == ""


def test_rows_stand_in_for_those_of_the_application(
    tiny_manifest: Manifest, tiny_members: dict[str, bytes], tmp_path: Path
) -> None:
    manifest = replace(tiny_manifest, audio=RowsSpec(tiny_manifest.dim("audio")))
    members = {name: data for name, data in tiny_members.items() if name != "audio.onnx"}
    write_bundle(tmp_path / "rows.affect", manifest, members)
    trial, timer = MadeUpWindow(affectrt.load(tmp_path / "rows.affect", threads=1)), StageTimer()
    assert trial.run(timer).present == {"text", "audio", "vision"}
    assert list(timer.seconds) == ["text", "vision", "fusion"]
    assert trial.note == "made-up features stand for audio: the application makes audio rows"


def test_rows_stand_in_for_encoders_whose_libraries_are_missing(
    ghrnn_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    trial, timer = MadeUpWindow(affectrt.load(ghrnn_bundle, backend="native")), StageTimer()
    assert trial.run(timer).present == {"text", "audio", "vision"}
    assert list(timer.seconds) == ["fusion"]
    assert trial.note.startswith("made-up features stand for text, audio, vision: ")
    assert "affectrt[cpu]" in trial.note


def test_a_clip_gives_what_predict_gives(tiny_model: affectrt.Model, wav: Path, tmp_path: Path) -> None:
    transcript = tmp_path / "said.txt"
    transcript.write_text("i love the film")
    trial, timer = ClipWindow(tiny_model, wav, transcript), StageTimer()
    expected = tiny_model.predict(video=wav, text=words_of("i love the film", 0.0))
    found = trial.run(timer)
    assert difference(found, expected) == 0.0 and found.present == expected.present == {"text", "audio"}
    assert {"audio features", "text encoder", "audio encoder", "fusion"} <= timer.seconds.keys()
    assert trial.note == "the first 3 s of voice.wav, decoded beforehand: text, audio"


def test_a_clip_of_silence_is_refused(tiny_model: affectrt.Model, tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "silence.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(32_000))
    error = error_of(lambda: ClipWindow(tiny_model, tmp_path / "silence.wav"))
    assert error.code == "bench.nothing_sensed"


ONLY_NUMPY = """
import sys

class OnlyNumpy:
    allowed = {*sys.stdlib_module_names, "numpy", "affectrt", "affectrt_kernels"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed and not name.startswith("_"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, OnlyNumpy())
"""


def test_with_numpy_alone_fusion_is_measured(ghrnn_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(ONLY_NUMPY)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import affectrt.cli as c; c.main()",
            "bench",
            str(ghrnn_bundle),
            "--rounds=2",
        ],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "made-up features stand for text, audio, vision" in done.stdout
    assert re.search(r"^native +[\d.]+ ", done.stdout, re.M) and "onnxruntime  " not in done.stdout


# --- What is written -------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Tags, links to elsewhere and the words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.alt = ""
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.links += [of for key in ("src", "href", "xlink:href") if (of := named.get(key)) and of[0] != "#"]
        if named.get("role") == "img":
            self.alt = named.get("aria-label") or ""

    def handle_data(self, data: str) -> None:
        self.words += data


def test_two_bundles_are_compared_on_their_clip(
    tiny_bundle: Path, wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "a.affect", tmp_path / "b<i>.affect"]
    for path in paths:
        path.write_bytes(tiny_bundle.read_bytes())
    options = ["--rounds", "3", "--clip", str(wav), "--backends", "onnxruntime"]
    written = ["--json", str(tmp_path / "b.json"), "--html", str(tmp_path / "b.html")]
    assert main(["bench", *map(str, paths), *options, *written]) == 0
    out = capsys.readouterr().out
    assert "a · onnxruntime" in out and "b<i> · onnxruntime" in out
    assert "A window: the first 3 s of voice.wav" in out and "3 rounds, threads 1" in out

    data = json.loads((tmp_path / "b.json").read_text())
    assert [one["bundle"] for one in data["measured"]] == list(map(str, paths))
    assert data["machine"] and data["refused"] == []
    for one in data["measured"]:
        assert one["backend"] == "onnxruntime" and one["precision"]["text"] == "fp32"
        assert len(one["whole"]["times_ms"]) == 3 and "audio encoder" in one["stages"]

    read = _Page((tmp_path / "b.html").read_text())
    assert read.links == [], "it needs nothing from elsewhere"
    assert read.tags.count("title") == 2, "of the page and of the plot"
    assert "svg" in read.tags and "script" not in read.tags and "i" not in read.tags
    assert "Medians of the whole in milliseconds: a · onnxruntime " in read.alt
    assert "affectrt bench:" in read.words and "p95 ms" in read.words and "audio encoder" in read.words


def test_table_and_page_tell_the_same(found: Benchmark) -> None:
    told, read = table(found), _Page(page(found))
    assert labels(found) == ["native", "torch"]
    for one in found.measured:
        assert f"{one.whole.p50_ms:.2f}" in told and f"{one.whole.p50_ms:.2f}" in read.words
    assert "NO FIGURES" in told and "[bench.disagrees]" in read.words
    assert page(found) == page(found)


def test_energy_is_told_by_meter_or_not_at_all(found: Benchmark) -> None:
    def one(joules: dict[str, float]) -> str:
        measured: tuple[Measured, ...] = (replace(found.measured[0], joules=joules),)
        return table(replace(found, measured=measured))

    assert NOT_TOLD in one({})
    assert "0.123 J package-0, 4 J NVIDIA H200" in one({"package-0": 0.1234, "NVIDIA H200": 4.0})


@pytest.mark.parametrize("option", ["--rounds=0", "--seconds=0", "--seconds=nan", "--threads=x"])
def test_numbers_out_of_range_are_usage_errors(
    tiny_bundle: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tiny_bundle), option]) == 2
    assert "expected a " in capsys.readouterr().err


# --- Energy ----------------------------------------------------------------------------------------


def _zone(folder: Path, number: str, name: str, energy_uj: object) -> Path:
    zone = folder / f"intel-rapl:{number}"
    zone.mkdir()
    for file, value in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", 1000_000)):
        (zone / file).write_text(f"{value}\n")
    return zone


def test_rapl_counts_packages_and_turns_over(tmp_path: Path) -> None:
    zone = _zone(tmp_path, "0", "package-0", 900_000)
    _zone(tmp_path, "0:0", "core", 1)
    _zone(tmp_path, "1", "psys", 1)
    _zone(tmp_path, "2", "package-1", "what root alone may read")
    (meter,) = rapl_meters(tmp_path)
    assert meter.name == "package-0"
    meter.start()
    (zone / "energy_uj").write_text("950000\n")
    assert meter.stop() == pytest.approx(0.05)
    (zone / "energy_uj").write_text("100000\n")
    assert meter.stop() == pytest.approx(0.2)
    assert rapl_meters(tmp_path / "none") == []


TEGRASTATS = "RAM 3162/30536MB (lfb 6x4MB) CPU [1%@729,off] GR3D_FREQ 0%@[305] gpu@46.343C"


@pytest.mark.parametrize(
    ("rails", "watts"),
    [
        ("VDD_IN 4940mW/4900mW VDD_CPU_GPU_CV 1200mW/1100mW VDD_SOC 1400mW/1300mW", 4.94),
        ("VDD_GPU_SOC 3175mW/3100mW VDD_CPU_CV 400mW/390mW VIN_SYS_5V0 4038mW/4000mW", 7.613),
        ("POM_5V_IN 2532/2500 POM_5V_GPU 0/0 POM_5V_CPU 407/400", 2.532),
        ("VDD_SOC 1400mW/1300mW", None),
        ("", None),
    ],
)
def test_a_line_of_tegrastats_is_the_module_s_power(rails: str, watts: float | None) -> None:
    assert module_watts(f"{TEGRASTATS} {rails}") == watts


def test_tegrastats_is_sampled_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tegrastats"
    program.write_text(f"#!/bin/sh\necho '{TEGRASTATS} VDD_IN 2000mW/1mW'\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (meter,) = find_meters(tmp_path)
    assert isinstance(meter, Tegrastats)
    joules: Any = None
    for _ in range(50):  # until it has said a line
        meter.start()
        _wait_for_output(meter)
        if (joules := meter.stop()) is not None:
            break
    assert joules is not None and joules > 0.0


def _wait_for_output(meter: Tegrastats) -> None:
    assert meter._process.stdout is not None
    select.select([meter._process.stdout], [], [], 5.0)
