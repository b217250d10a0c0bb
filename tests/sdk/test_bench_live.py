"""``affectrt bench --stream`` and ``--soak``: figures of real streams."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from affectrt.benchmark_live import measure_live, soak
from affectrt.cli import main
from affectrt.errors import AffectError

DEMO = Path(__file__).parents[2] / "demo"


def test_streams_in_real_time(tiny_bundle: Path) -> None:
    found = measure_live(tiny_bundle, streams=2, seconds=1.0, hop_s=0.2)
    assert len(found.results_per_s) == 2
    for rate in found.results_per_s:
        assert 0.9 <= rate <= 7.0
    assert 0.0 < found.cores_per_stream < 64.0
    assert 0.0 < found.latency.p50_ms <= found.latency.p99_ms
    assert {"audio features", "face tracking", "text encoder", "fusion"} <= set(found.stages)
    assert found.latency.count == round(sum(found.results_per_s) * found.seconds)


def test_a_soak_reads_every_result_and_drops_nothing(tiny_bundle: Path) -> None:
    told: list[float] = []
    steps = soak(
        tiny_bundle,
        minutes=0.25,
        steps=3,
        hop_s=0.5,
        clip=DEMO / "clip.mp4",
        transcript=DEMO / "clip.srt",
        progress=told.append,
    )
    assert [step.media_s for step in steps] == [5.0, 10.0, 15.0]
    assert all(step.rss_bytes > 1e6 and step.result_ms > 0.0 for step in steps)
    assert told == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_on_the_command_line(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "live.json"
    argv = ["bench", str(tiny_bundle), "--stream", "--seconds", "0.5", "--every", "0.1", "--json", str(out)]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert re.search(r"^processor +\d+% of one core", text, re.M)
    assert re.search(r"^capture to result +[\d.]+ +[\d.]+ +[\d.]+$", text, re.M)
    (told,) = json.loads(out.read_text(encoding="utf-8"))
    assert told["streams"] == 1 and told["latency"]["count"] > 0
    assert main(["bench", str(tiny_bundle), "--soak", "0.05", "--every", "1"]) == 0
    assert re.search(r"^after the first step +[+-][\d.]+%", capsys.readouterr().out, re.M)


def test_settings_that_make_no_sense_are_refused(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(tiny_bundle)
    for argv in (
        ["bench", bundle, bundle, "--stream"],
        ["bench", bundle, "--soak", "1", "--html", "page.html"],
        ["bench", bundle, "--stream", "2", "--rounds", "3"],
    ):
        assert main(argv) == 2
        assert "bench.settings" in capsys.readouterr().err
    with pytest.raises(AffectError) as caught:
        measure_live(tiny_bundle, seconds=0.1, hop_s=60.0)
    assert caught.value.code == "bench.nothing"
