"""Outputs to other programs: OSC over a real UDP socket, LSL to a real inlet, a disk that is full."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from affectrt.affect import EMOTIONS, Affect, Event
from affectrt.errors import AffectError
from affectrt.outputs.osc import OscOutput, address
from affectrt.outputs.output import FanOut
from affectrt.outputs.recording import Recording, read_recording

PROBABILITIES = dict(zip(EMOTIONS, (0.05, 0.05, 0.1, 0.5, 0.1, 0.1, 0.1), strict=True))
AFFECT = Affect(
    time_s=2.5,
    sentiment=1.25,
    interval=(-0.5, 2.75),
    emotions=PROBABILITIES,
    contributions={"audio": 0.5},
    present=frozenset({"audio"}),
    latency_ms=42.0,
    events=(Event(2.0, "modality_lost", "stream: vision came until 0.00 s"),),
)


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        opened.settimeout(20.0)
        yield opened


def received(receiver: socket.socket) -> dict[str, list[object]]:
    bundles = pytest.importorskip("pythonosc.osc_bundle", reason="needs the extra 'osc'")
    bundle = bundles.OscBundle(receiver.recv(65536))
    return {message.address: list(message.params) for message in bundle}


def test_a_result_is_one_bundle(receiver: socket.socket) -> None:
    pytest.importorskip("pythonosc", reason="needs the extra 'osc'")
    output = OscOutput(*address(f"127.0.0.1:{receiver.getsockname()[1]}"))
    output.send(AFFECT)
    told = received(receiver)
    assert told == {
        "/affectrt/time": [2.5],
        "/affectrt/present": [0, 1, 0],
        "/affectrt/latency": [42.0],
        "/affectrt/sentiment": [1.25, -0.5, 2.75],
        "/affectrt/emotion": ["joy", 0.5],
        **{f"/affectrt/emotions/{name}": [pytest.approx(p)] for name, p in PROBABILITIES.items()},
        "/affectrt/event": ["modality_lost", "stream: vision came until 0.00 s"],
    }
    # What rests on nothing is the model's prior, not this person: it isn't sent.
    output.send(replace(AFFECT, present=frozenset(), events=()))
    assert set(received(receiver)) == {"/affectrt/time", "/affectrt/present", "/affectrt/latency"}
    output.close()


def test_every_address_is_documented() -> None:
    from affectrt.outputs.osc import messages

    page = (Path(__file__).parents[2] / "docs" / "live.md").read_text(encoding="utf-8")
    for where, _ in messages(AFFECT):
        named = "/affectrt/emotions/NAME" if where.startswith("/affectrt/emotions/") else where
        assert f"`{named}`" in page


@pytest.mark.parametrize("text", ["", "localhost", "localhost:", "localhost:0", "localhost:65536", ":9000"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(AffectError, match="HOST:PORT") as caught:
        address(text)
    assert caught.value.code == "osc.address"


def test_an_address_may_be_ipv6() -> None:
    assert address("[::1]:9000") == ("::1", 9000)


def test_lsl_to_a_real_inlet() -> None:
    pylsl = pytest.importorskip("pylsl", reason="needs the extra 'lsl'")
    from affectrt.outputs.lsl import CHANNELS, LslOutput

    name = f"affectrt-test-{uuid4().hex}"
    output = LslOutput(name, 0.5)
    found = pylsl.resolve_byprop("name", name, timeout=5.0)
    if not found:
        pytest.skip("this network carries no multicast, by which LSL streams are found")
    inlet = pylsl.StreamInlet(found[0])
    inlet.open_stream(timeout=20.0)
    info = inlet.info(timeout=20.0)
    assert (info.type(), info.nominal_srate()) == ("Affect", 2.0)
    assert tuple(info.get_channel_labels()) == CHANNELS
    before = pylsl.local_clock()
    output.send(AFFECT)
    output.send(replace(AFFECT, present=frozenset()))
    sample, time = inlet.pull_sample(timeout=20.0)
    told = dict(zip(CHANNELS, sample, strict=True))
    assert told["sentiment"] == 1.25 and told["joy"] == 0.5 and told["present_audio"] == 1.0
    assert before - 0.1 < time < before, "stamped with the capture, not with the sending"
    sample, _ = inlet.pull_sample(timeout=20.0)
    told = dict(zip(CHANNELS, sample, strict=True))
    assert math.isnan(told["sentiment"]) and told["present_audio"] == 0.0
    inlet.close_stream()
    output.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_an_output_that_fails_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "out.jsonl"
    outputs = FanOut(
        [Recording(Path("/dev/full")), Recording(path)],
        lambda code, message: told.append(f"{code} {message}"),
    )
    for _ in range(3):
        outputs.send(AFFECT)
    assert len(told) == 1 and told[0].startswith("output.failed recording /dev/full: OSError")
    assert len(list(read_recording(path))) == 3
    outputs.close()


class Flaky:
    """An application's own output, which fails the first time."""

    name = "own"
    sent = 0

    def send(self, affect: Affect) -> None:
        self.sent += 1
        if self.sent == 1:
            raise ConnectionRefusedError("nobody there")

    def close(self) -> None:
        raise ConnectionResetError("gone")


def test_an_output_that_recovers_says_so() -> None:
    codes: list[str] = []
    outputs = FanOut([Flaky()], lambda code, message: codes.append(code))
    outputs.send(AFFECT)
    outputs.send(AFFECT)
    outputs.close()
    assert codes == ["output.failed", "output.back", "output.failed"]


def test_a_recording_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    # Equal to four digits: which emotion was on top must survive.
    tie = replace(AFFECT, emotions={**PROBABILITIES, "anger": 0.300041, "joy": 0.300049, "fear": 0.0})
    recording = Recording(path)
    for affect in (AFFECT, tie):
        recording.send(affect)
    recording.close()
    again = list(read_recording(path))
    assert [affect.to_dict() for affect in again] == [AFFECT.to_dict(), tie.to_dict()]
    assert again[1].emotion == "joy" and again[0].events == AFFECT.events


@pytest.mark.parametrize("line", ["", "{", "[]", "{}", '{"time_s": 1}', "null"])
def test_a_damaged_recording_is_refused_with_the_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "out.jsonl"
    recording = Recording(path)
    recording.send(AFFECT)
    recording.close()
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(AffectError, match="line 2") as caught:
        list(read_recording(path))
    assert caught.value.code == "recording.malformed"


def test_numbers_of_a_recording_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    recording = Recording(path)
    recording.send(AFFECT)
    recording.close()
    whole = path.read_text(encoding="utf-8")
    for found, wrong in (("1.25", "NaN"), ("1.25", '"1.25"'), ("1.25", "true"), ('"joy"', '"hope"')):
        assert found in whole
        path.write_text(whole.replace(found, wrong), encoding="utf-8")
        with pytest.raises(AffectError, match="line 1"):
            list(read_recording(path))


def test_an_older_recording_goes_with_the_first_result_only(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("older\n", encoding="utf-8")
    Recording(path).close()
    assert path.read_text(encoding="utf-8") == "older\n"
    recording = Recording(path)
    recording.send(AFFECT)
    recording.send(AFFECT)
    recording.close()
    assert len(list(read_recording(path))) == 2


def test_a_recording_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(AffectError) as caught:
        Recording(tmp_path / "none" / "out.jsonl")
    assert caught.value.code == "output.unwritable"
    with pytest.raises(AffectError) as caught:
        list(read_recording(tmp_path / "none.jsonl"))
    assert caught.value.code == "recording.unreadable"
