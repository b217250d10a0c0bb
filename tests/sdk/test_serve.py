"""``affectrt serve`` over real sockets: every message there and back, and the faults that it survives."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from time import perf_counter, sleep
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

import affectrt
from affectrt.affect import EMOTIONS
from affectrt.bundle import Bundle, write_bundle
from affectrt.manifest import Manifest, RowsSpec
from affectrt.serving import app, protocol, session
from affectrt.serving.outgoing import MAX_WAITING
from affectrt.serving.server import Server
from affectrt.streaming.core import StreamCore
from tests.sdk.serving import PATIENCE_S, RATE_HZ, Client, jpeg_of, running, voice

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def server(tiny_model: affectrt.Model) -> Iterator[Server]:
    """With the rules of loopback."""
    with running(tiny_model) as server:
        yield server


def health(server: Server) -> dict[str, Any]:
    with urlopen(f"{server.url}healthz", timeout=PATIENCE_S) as answer:
        told: dict[str, Any] = json.load(answer)
    return told


def metrics(server: Server) -> list[str]:
    with urlopen(f"{server.url}metrics", timeout=PATIENCE_S) as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=")
        lines: list[str] = answer.read().decode().splitlines()
    return lines


def eventually(condition: Callable[[], bool]) -> None:
    deadline = perf_counter() + PATIENCE_S
    while not condition():
        assert perf_counter() < deadline
        sleep(0.01)


def no_sessions(server: Server) -> bool:
    return bool(health(server)["sessions"] == 0)


def ending_of(client: Client) -> tuple[int | None, list[dict[str, Any]]]:
    """How the server ends a connection: its code, and what it said before."""
    said = []
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            said.append(json.loads(client.socket.recv(timeout=PATIENCE_S)))
    return (caught.value.rcvd.code if caught.value.rcvd else None), said


# --- Messages --------------------------------------------------------------------------------------


def test_hello_tells_what_there_is(server: Server, tiny_model: affectrt.Model) -> None:
    with Client(server, hello={"hop_s": 0.25, "window_s": 3}) as client:
        welcome = client.welcome
    assert welcome == {
        "type": "hello",
        "version": 1,
        "model": "tiny",
        "modalities": ["text", "audio", "vision"],
        "emotions": list(EMOTIONS),
        "hop_s": 0.25,
        "mode": "window",
        "window_s": 3.0,
        "frame_rate_hz": tiny_model.encoders.frame_rate_hz,
        "max_message_bytes": protocol.MAX_MESSAGE_BYTES,
        "max_pixels": 1920 * 1920,
        "idle_s": 60.0,
    }


def test_a_recording_gives_what_a_stream_gives(server: Server, tiny_model: affectrt.Model) -> None:
    pcm = (voice(2.0) * 32767).astype(np.int16)
    with Client(server, hello={"hop_s": 0.5}) as client:
        for start in range(0, len(pcm), 800):
            client.sound(pcm[start : start + 800], start / RATE_HZ)
        client.say(type="text", text="so very happy", start_s=0.5, end_s=1.5)
        client.picture(jpeg_of(), 1.7)
        told = client.flush()
    with tiny_model.stream(hop_s=0.5) as stream:
        for start in range(0, len(pcm), 800):
            stream.push_audio(pcm[start : start + 800], RATE_HZ, start / RATE_HZ)
        stream.push_text("so very happy", 0.5, 1.5)
        expected = [affect.to_dict() for affect in stream.flush()]
    assert [result["time_s"] for result in told] == [0.5, 1.0, 1.5, 2.0]
    assert all(result["latency_ms"] > 0.0 for result in told)
    for result, wanted in zip(told, expected, strict=True):
        for field in ("time_s", "sentiment", "interval", "emotions", "present"):
            assert result[field] == wanted[field]


def test_floats_of_two_channels_at_another_rate(server: Server) -> None:
    with Client(server) as client:
        stereo = np.stack([voice(1.0)] * 2, axis=1)
        client.sound(stereo, 0.0, sample_rate=RATE_HZ, channels=2)
        client.sound(voice(1.0)[::2].copy(), 1.0, sample_rate=RATE_HZ // 2)
        assert [result["present"] for result in client.flush()][-1] == ["audio"]


def test_a_causal_model_serves_incremental_streams(server: Server, causal_bundle: Bundle) -> None:
    model = affectrt.Model(causal_bundle, threads=1)
    with running(model) as causal, Client(causal, hello={"mode": "incremental", "hop_s": 0.1}) as client:
        assert (client.welcome["mode"], client.welcome["window_s"]) == ("incremental", 2.0)
        pcm = voice(1.5)
        for start in range(0, len(pcm), 1600):
            client.sound(pcm[start : start + 1600], start / RATE_HZ)
        results = client.flush()
    stream = StreamCore(model, None, 0.1, mode="incremental")
    stream.push_audio(pcm, RATE_HZ, 0.0)
    expected = stream.flush()
    assert [r["sentiment"] for r in results] == pytest.approx([a.sentiment for a in expected], abs=1e-4)
    for wrong, code in (
        ({"mode": "incremental"}, "model.not_causal"),
        ({"mode": "incremental", "window_s": 2}, "protocol.field"),
        ({"mode": "both"}, "protocol.field"),
    ):
        with Client(server, greet=False) as client:
            client.say(type="hello", version=1, **wrong)
            ended, said = ending_of(client)
        assert (ended, said[-1]["code"]) == (protocol.CLOSE_PROTOCOL, code)


def test_without_times_results_come_by_the_clock(server: Server) -> None:
    with Client(server) as client:
        client.sound(voice(0.1))
        client.picture(jpeg_of())
        client.say(type="text", text="great")
        first = client.wait("result")
        later = client.wait("result")  # nothing else is sent
    assert later["time_s"] == pytest.approx(first["time_s"] + 0.1)


def test_reset_forgets(server: Server) -> None:
    with Client(server) as client:
        client.sound(voice(1.0), 5.0)
        client.say(type="reset")
        client.wait("done", of="reset")
        client.seen.clear()
        client.sound(voice(0.3), 1.0)
        assert {result["time_s"] < 2.0 for result in client.flush()} == {True}


def test_a_clock_that_jumps_back_is_told_and_followed(server: Server) -> None:
    with Client(server) as client:
        client.sound(voice(1.0), 100.0)
        client.flush()
        for second in range(4):
            client.sound(voice(1.0), float(second))
        results = client.flush()
    assert "stream.time_jump" in {event["code"] for result in results for event in result["events"]}
    assert 0.0 < results[-1]["time_s"] < 5.0


def test_a_time_far_ahead_costs_no_results_in_between(server: Server) -> None:
    with Client(server) as client:
        client.sound(voice(0.5), 0.0)
        client.sound(voice(0.5), 3000.0)
        assert client.wait("error")["code"] == "protocol.gap"
        assert 0 < len(client.flush()) < 20
        client.say(type="text", text="so", start_s=3000, end_s=4000)
        assert client.wait("error")["code"] == "protocol.time"


def test_either_all_inputs_have_times_or_none(server: Server) -> None:
    with Client(server) as client:
        client.sound(voice(0.5), 0.0)
        client.picture(jpeg_of())
        assert client.wait("error")["code"] == "protocol.time"
        client.say(type="reset")
        client.say(type="text", text="so very happy")
        client.wait("done", of="reset")
        client.wait("result", present=["text"])
        client.sound(voice(0.5), 1e10)
        assert client.wait("error")["code"] == "protocol.time"


# --- Faults of one message, which costs that message alone -------------------------------------------


def header(**changed: Any) -> bytes:
    """A binary message of one second of silence with a wrong field."""
    fields = {
        "kind": 1,
        "version": 1,
        "channels": 1,
        "sequence": 77,
        "time_s": 0.0,
        "rate": RATE_HZ,
        "zero": 0,
    }
    fields.update(changed)
    payload = fields.pop("payload", b"\0" * 2 * RATE_HZ)
    assert isinstance(payload, bytes)
    return protocol.HEADER.pack(*fields.values()) + payload


def samples(*values: float) -> bytes:
    return header(kind=2, payload=np.array(values, "<f4").tobytes())


def picture(payload: bytes, **changed: Any) -> bytes:
    return header(kind=3, channels=0, **{"rate": 0, **changed}, payload=payload)


FAULTS: dict[str, tuple[str | bytes, str]] = {
    "no header": (b"\x01\x01", "protocol.header"),
    "nothing at all": (b"", "protocol.header"),
    "another version": (header(version=2), "protocol.version"),
    "unknown kind": (header(kind=9), "protocol.kind"),
    "the last field set": (header(zero=1), "protocol.header"),
    "a time that is infinite": (header(time_s=float("inf")), "protocol.time"),
    "a time beyond reason": (header(time_s=-1e300), "protocol.time"),
    "half a sample": (header(payload=b"\0\0\0"), "protocol.payload"),
    "no samples": (header(payload=b""), "protocol.payload"),
    "no channels": (header(channels=0), "protocol.header"),
    "a rate of nought": (header(rate=0), "audio.sample_rate"),
    "a burst of NaN": (samples(*[float("nan")] * 800), "audio.not_finite"),
    "infinity and its opposite": (
        header(kind=2, channels=2, payload=np.array([np.inf, -np.inf], "<f4").tobytes()),
        "audio.not_finite",
    ),
    "samples beyond ±1": (samples(0.0, 3e38), "audio.range"),
    "a picture that is none": (picture(b"GIF89a" * 9), "vision.jpeg"),
    "a corrupt picture": (picture(jpeg_of()[:2] + bytes(300)), "vision.jpeg"),
    "a picture cut off": (picture(jpeg_of()[:-200]), "vision.jpeg"),
    "a picture without contents": (picture(jpeg_of()[:170] + b"\xff\xd9"), "vision.jpeg"),
    "a picture with a rate": (picture(jpeg_of(), rate=8), "protocol.header"),
    "a picture too small for a face": (picture(jpeg_of(8, 8)), "vision.frame_shape"),
    "a picture that would fill the memory": (
        picture(jpeg_of().replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 60_000, 60_000))),
        "vision.jpeg_size",
    ),
    "no JSON": ("{type: text}", "protocol.json"),
    "a list": ("[1, 2]", "protocol.json"),
    "too deep": ("[" * 60_000, "protocol.json"),
    "too long": (json.dumps({"type": "text", "text": "a" * 70_000}), "protocol.json"),
    "a number too long": ('{"type": "text", "text": "a", "start_s": ' + "9" * 5000 + "}", "protocol.json"),
    "a number too large": ('{"type": "text", "text": "a", "start_s": ' + "9" * 400 + "}", "protocol.field"),
    "NaN in JSON": ('{"type": "text", "text": "a", "start_s": NaN}', "protocol.json"),
    "unknown type": ('{"type": "dance"}', "protocol.type"),
    "no type": ("{}", "protocol.type"),
    "a type that is a list": ('{"type": []}', "protocol.type"),
    "unknown field": ('{"type": "flush", "now": true}', "protocol.field"),
    "text that is a number": ('{"type": "text", "text": 5}', "protocol.field"),
    "no text": ('{"type": "text"}', "protocol.field"),
    "half a letter": ('{"type": "text", "text": "\\ud800"}', "protocol.field"),
    "a time that is true": ('{"type": "text", "text": "a", "end_s": true}', "protocol.field"),
    "an end before the start": ('{"type": "text", "text": "a", "start_s": 2, "end_s": 1}', "text.times"),
    "hello again": ('{"type": "hello", "version": 1}', "protocol.hello"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_message_costs_that_message_alone(server: Server, fault: str) -> None:
    message, code = FAULTS[fault]
    with Client(server) as client:
        client.sound(voice(0.5), 0.0)
        client.socket.send(message)
        told = client.wait("error")
        assert (told["code"], told["fatal"]) == (code, False)
        assert told.get("sequence") == (77 if isinstance(message, bytes) and len(message) > 2 else None)
        assert str(told["message"]).split(":")[0] in ("protocol", "audio", "vision", "text")
        client.sound(voice(0.5), 0.5)
        assert client.flush()[-1]["present"] == ["audio"]


def test_a_model_of_words_alone_refuses_sound(
    tiny_manifest: Manifest, tiny_members: dict[str, bytes], tmp_path: Path
) -> None:
    assert tiny_manifest.audio is not None and tiny_manifest.vision is not None
    manifest = replace(
        tiny_manifest, audio=RowsSpec(tiny_manifest.audio.dim), vision=RowsSpec(tiny_manifest.vision.dim)
    )
    members = {k: v for k, v in tiny_members.items() if k not in ("audio.onnx", "vision.onnx")}
    write_bundle(tmp_path / "words.affect", manifest, members)
    model = affectrt.load(tmp_path / "words.affect", threads=1)
    with running(model) as server, Client(server) as client:
        assert client.welcome["modalities"] == ["text"] and client.welcome["frame_rate_hz"] is None
        client.sound(voice(0.1))
        assert client.wait("error")["code"] == "model.no_extractor"


# --- Faults that end a connection ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ('{"type": "text", "text": "hi"}', "protocol.hello"),
        (protocol.pack(1, b"\0\0", sample_rate=8000, channels=1), "protocol.hello"),
        ('{"type": "hello", "version": 2}', "protocol.version"),
        ('{"type": "hello", "version": true}', "protocol.version"),
        ('{"type": "hello", "version": 1, "hop_s": 0.001}', "protocol.field"),
        ('{"type": "hello", "version": 1, "window_s": 1e9}', "protocol.field"),
        ("hello", "protocol.json"),
    ],
)
def test_a_connection_begins_with_hello(server: Server, first: str | bytes, code: str) -> None:
    with Client(server, greet=False) as client:
        client.socket.send(first)
        ended, said = ending_of(client)
    assert ended == protocol.CLOSE_PROTOCOL
    assert [(m["type"], m["code"], m["fatal"]) for m in said] == [("error", code, True)]


def test_who_says_nothing_is_let_go(tiny_model: affectrt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "HELLO_S", 0.2)
    with running(tiny_model, idle_s=0.3) as server:
        with Client(server, greet=False) as client:
            assert ending_of(client)[0] == protocol.CLOSE_PROTOCOL
        with Client(server) as client:
            ended, said = ending_of(client)
            assert ended == protocol.CLOSE_IDLE
            assert said[-1]["code"] == "serve.idle"


@pytest.mark.parametrize("fragmented", [False, True])
def test_an_oversize_message_ends_its_connection_alone(server: Server, fragmented: bool) -> None:
    with Client(server) as other, Client(server) as client:
        too_long = bytes(protocol.MAX_MESSAGE_BYTES + 1)
        with suppress(ConnectionClosed):  # the server may not wait for the end of it
            client.socket.send([too_long[:1000], too_long[1000:]] if fragmented else too_long)
        assert ending_of(client)[0] in (1009, None)  # None: the rest of it was still on its way
        other.sound(voice(1.0), 0.0)
        assert other.flush()


def test_text_that_is_no_unicode_ends_its_connection(server: Server) -> None:
    with Client(server) as client:
        client.socket.send(b"\xff\xfe", text=True)
        assert ending_of(client)[0] == 1007


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], "né" * 20])
def test_a_token_is_needed(tiny_model: affectrt.Model, token: str | None, caplog: Any, capfd: Any) -> None:
    with running(tiny_model, token=TOKEN) as server:
        with Client(server, greet=False) as client:
            client.say(type="hello", version=1, **({} if token is None else {"token": token}))
            ended, said = ending_of(client)
        assert (ended, [m["code"] for m in said]) == (protocol.CLOSE_TOKEN, ["serve.token"])
        with Client(server, hello={"token": TOKEN}) as client:
            assert client.welcome["type"] == "hello"
        with pytest.raises(HTTPError, match="401"):
            urlopen(f"{server.url}metrics", timeout=PATIENCE_S).close()
        with urlopen(Request(f"{server.url}metrics", headers={"Authorization": f"Bearer {TOKEN}"})) as page:
            assert b"affectrt_sessions" in page.read()
    written = capfd.readouterr()
    assert TOKEN not in caplog.text + written.out + written.err


def test_other_pages_may_not_connect(tiny_model: affectrt.Model) -> None:
    with running(tiny_model, origins=frozenset({"https://app.example.org"})) as server:
        own = server.url.rstrip("/")
        for origin in (own, "https://app.example.org"):
            with Client(server, origin=origin) as client:
                assert client.welcome["type"] == "hello"
        for origin in ("https://evil.example", "null", f"{own}0", "file://"):
            with pytest.raises(InvalidStatus, match="403"):
                Client(server, origin=origin)


def test_another_name_for_this_machine_is_refused(server: Server) -> None:
    netloc = f"evil.example:{urlsplit(server.url).port}"
    with pytest.raises(HTTPError, match="403"):
        urlopen(Request(server.url, headers={"Host": netloc}), timeout=PATIENCE_S).close()
    raw = handshake(server, host=netloc, origin=f"http://{netloc}")
    assert raw.recv(100).startswith(b"HTTP/1.1 403")
    raw.close()


def test_too_many_sessions_are_told(tiny_model: affectrt.Model) -> None:
    with running(tiny_model, session_limit=2) as server:
        with Client(server) as first, Client(server):
            assert health(server)["sessions"] == 2
            with Client(server, greet=False) as third:
                third.say(type="hello", version=1)
                ended, said = ending_of(third)
            assert (ended, [m["code"] for m in said]) == (protocol.CLOSE_FULL, ["serve.full"])
            first.sound(voice(1.0), 0.0)
            assert first.flush()
        eventually(lambda: no_sessions(server))
        with Client(server) as again:
            assert again.welcome["type"] == "hello"


def test_two_hundred_connections(tiny_model: affectrt.Model) -> None:
    with running(tiny_model, session_limit=2) as server, Client(server) as client:
        crowd = [handshake(server) for _ in range(200)]
        answers = [raw.recv(12) for raw in crowd]
        assert answers.count(b"HTTP/1.1 101") == 1 + app.MAX_STRANGERS
        assert answers.count(b"HTTP/1.1 503") == 200 - 1 - app.MAX_STRANGERS
        client.sound(voice(1.0), 0.0)
        assert client.flush()
        for raw in crowd:
            raw.close()
        with Client(server) as another:
            assert another.welcome["type"] == "hello"


def test_a_client_that_never_reads(tiny_model: affectrt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SEND_S", 0.3)
    monkeypatch.setattr(session, "LAST_WORD_S", 0.1)
    monkeypatch.setattr("affectrt.serving.server.SEND_BUFFER_BYTES", 4096)
    with (
        running(tiny_model) as server,
        Client(server) as other,
        closing(opened(server, receive_bytes=4096)) as deaf,
    ):
        eventually(lambda: bool(health(server)["sessions"] == 2))
        deaf.sendall(2000 * frame(b"?"))  # each is answered: more than the buffers on the way hold
        eventually(lambda: bool(health(server)["sessions"] == 1))
        assert f'affectrt_connections_closed_total{{code="{protocol.CLOSE_SLOW}"}} 1.0' in metrics(server)
        other.sound(voice(1.0), 0.0)
        assert other.flush()


def test_a_server_that_stops_hangs_up_on_who_never_reads(
    tiny_model: affectrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("affectrt.serving.server.GRACE_S", 1)
    monkeypatch.setattr("affectrt.serving.server.SEND_BUFFER_BYTES", 4096)
    with ExitStack() as stack:
        with running(tiny_model) as server:
            deaf = stack.enter_context(closing(opened(server, receive_bytes=4096)))
            deaf.sendall(2000 * frame(b"?"))
            eventually(lambda: 'affectrt_errors_total{code="protocol.json"} 2000.0' in metrics(server))
        deaf.settimeout(1.0)
        with suppress(ConnectionResetError):
            while deaf.recv(65536):
                pass


def test_who_reads_late_is_told_what_it_missed(
    tiny_model: affectrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("affectrt.serving.server.SEND_BUFFER_BYTES", 4096)
    count = 2000
    with running(tiny_model) as server, closing(opened(server, receive_bytes=4096)) as late:
        late.sendall(count * frame(b"?"))
        eventually(lambda: f'affectrt_errors_total{{code="protocol.json"}} {count:.1f}' in metrics(server))
        late.sendall(frame(b'{"type":"flush"}'))
        heard = b""
        while b'"done"' not in heard[-4000:]:
            heard += late.recv(65536)
    assert heard.count(b"serve.dropped") >= 1
    assert MAX_WAITING < heard.count(b"protocol.json") < count


@pytest.mark.parametrize("gone", ["vision", "audio"])
def test_a_device_that_goes_and_comes_back_is_told(server: Server, gone: str) -> None:
    with Client(server, hello={"hop_s": 0.5}) as client:
        for turn in range(70):
            time_s = turn / 10
            away = 10 <= turn < 50
            if not (away and gone == "audio"):
                client.sound(voice(0.1), time_s)
            if not (away and gone == "vision"):
                client.picture(jpeg_of(), time_s)
        results = client.flush()
    told = {(round(r["time_s"], 1), e["code"]) for r in results for e in r["events"] if gone in e["message"]}
    assert {code for _, code in told} == {"modality_lost", "modality_back"}
    assert 3.0 <= min(time_s for time_s, code in told if code == "modality_lost") <= 4.0
    assert [r["time_s"] for r in results] == pytest.approx(np.arange(1, len(results) + 1) / 2, abs=0.1)


def test_stalls_of_200_ms_cost_nobody_a_result(server: Server) -> None:
    def stream(client: Client, stall_s: float) -> list[dict[str, Any]]:
        for _ in range(6):
            client.sound(voice(0.3))
            sleep(0.3 - stall_s)
            client.picture(jpeg_of())
            sleep(stall_s)
        return client.flush()

    often: dict[str, object] = {"hop_s": 0.1}
    with (
        Client(server, hello=often) as stalling,
        Client(server, hello=often) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        both = list(pool.map(stream, (stalling, other), (0.2, 0.0)))
    for results in both:
        steps = np.diff([r["time_s"] for r in results[:-1]])  # the last one lies at the end
        lost = {e["code"] for r in results for e in r["events"]} & {"modality_lost", "dropped_audio"}
        assert len(results) >= 10 and not lost
        # A machine that is busy with other tests leaves results out, and says so.
        told = any(e["code"] == "dropped_results" for r in results for e in r["events"])
        assert told or steps == pytest.approx(0.1, abs=1e-3)


def test_a_connection_dropped_in_the_middle_of_a_message(server: Server) -> None:
    with Client(server) as other:
        for reset in (False, True):
            raw = opened(server)
            eventually(lambda: bool(health(server)["sessions"] == 2))
            raw.sendall(b"\x82\xfe\x10\x00" + b"\0" * 100)  # 100 of 4096 bytes
            if reset:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()
            eventually(lambda: bool(health(server)["sessions"] == 1))
        other.sound(voice(1.0), 0.0)
        assert other.flush()


def test_a_server_that_stops_says_so(tiny_model: affectrt.Model) -> None:
    with running(tiny_model) as server, Client(server) as client:
        client.sound(voice(0.5))
        server.stop()
        assert ending_of(client)[0] == 1012


def test_many_come_and_go(tiny_model: affectrt.Model) -> None:
    with running(tiny_model) as server:
        before = threading.active_count()
        for _ in range(20):
            with Client(server) as client:
                client.sound(voice(0.1))
        eventually(lambda: no_sessions(server))
        threads = [t.name for t in threading.enumerate() if t.name == "affectrt stream"]
        assert threads == [] and threading.active_count() <= before + 4  # those of the executor stay


# --- What a monitor asks for --------------------------------------------------------------------------


def test_metrics_count(tiny_model: affectrt.Model) -> None:
    with running(tiny_model, session_limit=3) as server:
        with Client(server) as client:
            client.sound(voice(1.0), 0.0)
            client.socket.send("{}")
            results = len(client.flush())
        eventually(lambda: no_sessions(server))
        page = metrics(server)
    for line in (
        f"affectrt_results_total {results:.1f}",
        'affectrt_messages_received_total{kind="sound"} 1.0',
        'affectrt_errors_total{code="protocol.type"} 1.0',
        'affectrt_connections_closed_total{code="1000"} 1.0',
        f"affectrt_latency_seconds_count {results:.1f}",
        "affectrt_session_limit 3.0",
        "affectrt_sessions 0.0",
    ):
        assert line in page


def test_health(server: Server) -> None:
    assert health(server).items() >= {"status": "ok", "protocol": 1, "token_required": False}.items()


def handshake(
    server: Server, *, host: str | None = None, origin: str | None = None, receive_bytes: int | None = None
) -> socket.socket:
    """A socket whose WebSocket handshake was sent, for what no client library would do."""
    where = urlsplit(server.url)
    raw = socket.socket()
    if receive_bytes is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    raw.settimeout(PATIENCE_S)
    raw.connect((where.hostname, where.port))
    lines = [
        "GET /v1/stream HTTP/1.1",
        f"Host: {host or where.netloc}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        *([f"Origin: {origin}"] if origin else []),
    ]
    raw.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    return raw


def opened(server: Server, **options: Any) -> socket.socket:
    """The same, once the server has accepted it and hello has been said."""
    raw = handshake(server, **options)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += raw.recv(1)
    assert answer.startswith(b"HTTP/1.1 101")
    raw.sendall(frame(b'{"type":"hello","version":1}'))
    return raw


def frame(payload: bytes) -> bytes:
    """A whole small text message, masked with zeros."""
    return bytes([0x81, 0x80 | len(payload)]) + b"\0\0\0\0" + payload
