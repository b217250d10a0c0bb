"""``affectrt serve`` as it is called: its options, its token, https, its examples and its documents."""

from __future__ import annotations

import ast
import json
import re
import shutil
import signal
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

import affectrt
from affectrt.cli import main
from affectrt.errors import AffectError
from affectrt.serving import protocol
from affectrt.serving.access import MIN_TOKEN_CHARS, Access, checked_token, read_token
from affectrt.serving.server import Server, Settings
from tests.sdk.serving import PATIENCE_S, Client, running, voice

ROOT = Path(__file__).parents[2]


def test_it_serves_until_it_is_interrupted(tiny_bundle: Path, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    argv = ["serve", "--bundle", str(tiny_bundle), "--port", "0", "--token-file", str(token_file)]
    process = subprocess.Popen(
        [sys.executable, "-m", "affectrt", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        first, second = process.stdout.readline(), process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+/", first)
        assert url, first
        with urlopen(f"{url[0]}healthz", timeout=PATIENCE_S) as answer:
            assert json.load(answer)["token_required"] is True
        assert str(token_file) in second
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode in (0, 130)
    assert read_token(token_file) not in first + second + out + err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--host", "0.0.0.0"], "serve.token"),
        (["--host", "203.0.113.7", "--token-file", "token"], "serve.address"),
        (["--certificate", "nowhere.pem"], "serve.certificate"),
        (["--port", "70000"], "cli.usage"),
        (["--sessions", "0"], "cli.usage"),
        (["--every", "nan"], "cli.usage"),
        (["--origin", "example.org"], "cli.usage"),
        (["--bundle", "nowhere.affect"], "bundle."),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    code: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFFECTRT_TOKEN", raising=False)
    assert main(["serve", "--bundle", str(tiny_bundle), *argv]) == 2
    assert f"[{code}" in capsys.readouterr().err


def test_a_port_that_is_taken(tiny_model: affectrt.Model) -> None:
    with running(tiny_model) as server:
        port = int(server.url.rstrip("/").rpartition(":")[2])
        with pytest.raises(AffectError, match="can't be had") as caught:
            Server(tiny_model, Settings(port=port))
    assert caught.value.code == "serve.address"


def test_a_token_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = read_token(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) > MIN_TOKEN_CHARS and read_token(path) == token
    for bad in ("short", "with a space in between", "x" * 15, "é" * 20):
        with pytest.raises(AffectError) as caught:
            checked_token(bad, "there")
        assert caught.value.code == "serve.token" and bad not in caught.value.message


@pytest.mark.parametrize(
    ("loopback", "host", "origin", "admitted"),
    [
        (True, "127.0.0.1:8765", None, True),
        (True, "localhost:8765", "http://localhost:8765", True),
        (True, "[::1]:8765", "http://[::1]:8765", True),
        (True, "evil.example:8765", "http://evil.example:8765", False),
        (True, "127.0.0.1:8765", "http://evil.example", False),
        (True, "127.0.0.1:8765", "http://127.0.0.1:9999", False),
        (True, "", None, False),
        (True, "[", None, False),
        (False, "kiosk.example:8765", "https://kiosk.example:8765", True),
        (False, "kiosk.example:8765", "https://evil.example", False),
        (False, "kiosk.example:8765", "https://app.example", True),
    ],
)
def test_where_requests_may_come_from(loopback: bool, host: str, origin: str | None, admitted: bool) -> None:
    access = Access(loopback, None, frozenset({"https://app.example"}))
    headers = {"host": host} if origin is None else {"host": host, "origin": origin}
    assert access.admits(headers) is admitted


def test_https(tiny_model: affectrt.Model, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl, to make a certificate")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    with running(tiny_model, certificate=certificate, key=key) as server:
        assert server.url.startswith("https://")
        with Client(server, ssl=ssl.create_default_context(cafile=str(certificate))) as client:
            client.sound(voice(1.0), 0.0)
            assert client.flush()


def test_the_example_in_python(tiny_model: affectrt.Model) -> None:
    clip = str(ROOT / "demo" / "clip.mp4")
    with running(tiny_model, hop_s=2.0) as server:
        url = server.url.rstrip("/").replace("http", "ws")
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                str(ROOT / "examples" / "serve_client.py"),
                clip,
                "so happy",
                url,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=3 * PATIENCE_S,
        )
    assert done.returncode == 0, done.stderr
    told = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert "message" not in done.stdout and told[0] == {"model": "tiny"}
    assert [result["time_s"] for result in told[1:-1]] == [2.0 * k for k in range(1, len(told) - 1)]
    assert {"text", "audio", "vision"} == {m for result in told[1:] for m in result["present"]}


def test_the_specification_knows_every_code() -> None:
    folder = ROOT / "sdk" / "affectrt" / "serving"
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    raised = set(re.findall(r'"((?:protocol|serve|vision)\.[a-z_]+)"', source))
    raised |= {f"protocol.{name}" for name in re.findall(r'_refuse\(\s*"([a-z]+)"', source)}
    at_start = {"serve.address", "serve.certificate"}
    page = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    assert len(raised) > 15
    assert {code for code in raised - at_start if f"`{code}`" not in page} == set()
    named = set(re.findall(r"`((?:protocol|serve)\.[a-z_]+)`", page))
    assert named <= raised
    closes = {name: value for name, value in vars(protocol).items() if name.startswith("CLOSE_")}
    assert len(closes) == 5
    assert {name for name, value in closes.items() if f"| {value} |" not in page} == set()
