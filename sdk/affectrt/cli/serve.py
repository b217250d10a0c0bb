"""``affectrt serve``: streams for other programs over a WebSocket, and a web page."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from affectrt.cli import Command
from affectrt.cli.bundles import add_backend_option, add_bundle_option, find_bundle
from affectrt.errors import require

TOKEN_VARIABLE = "AFFECTRT_TOKEN"
"""Environment variable with the token."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle_option(parser)
    add_backend_option(parser)
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="where to listen (default: 127.0.0.1, this machine alone); others take a token",
    )
    parser.add_argument("--port", metavar="N", type=_port, default=8765, help="default: 8765; 0: a free one")
    parser.add_argument(
        "--sessions", metavar="N", type=_count, default=4, help="streams at once (default: 4)"
    )
    parser.add_argument(
        "--every",
        metavar="S",
        type=_hop,
        default=0.5,
        help="seconds from result to result, for clients that want no others (default: 0.5)",
    )
    parser.add_argument(
        "--idle", metavar="S", type=_idle, default=60.0, help="let silent clients go (default: after 60 s)"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help=f"what clients must know; made with a new one if it isn't there (default: ${TOKEN_VARIABLE})",
    )
    parser.add_argument(
        "--origin",
        metavar="URL",
        type=_origin,
        action="append",
        default=[],
        help="a web page of another server may connect, such as https://example.org; may be repeated",
    )
    parser.add_argument("--certificate", metavar="FILE", type=Path, help="serve https: PEM, with its chain")
    parser.add_argument("--key", metavar="FILE", type=Path, help="key of the certificate, unless it has it")
    parser.add_argument(
        "--threads", metavar="N", type=_count, default=1, help="threads of each graph (default: 1)"
    )


def _within(text: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"expected {what} from {low:g} to {high:g}, got '{text}'")
    return value


def _hop(text: str) -> float:
    return _within(text, 0.05, 60.0, "seconds")


def _idle(text: str) -> float:
    return _within(text, 0.1, 86_400.0, "seconds")


def _whole(text: str, low: int, high: int) -> int:
    value = _within(text, low, high, "a whole number")
    if value != int(value):
        raise argparse.ArgumentTypeError(f"expected a whole number, got '{text}'")
    return int(value)


def _port(text: str) -> int:
    return _whole(text, 0, 65_535)


def _count(text: str) -> int:
    return _whole(text, 1, 256)


def _origin(text: str) -> str:
    scheme, separator, host = text.lower().rstrip("/").partition("://")
    if scheme not in ("http", "https") or not separator or not host or "/" in host:
        raise argparse.ArgumentTypeError(f"expected an origin such as https://example.org, got '{text}'")
    return f"{scheme}://{host}"


def _run(args: argparse.Namespace) -> int:
    for module in ("starlette", "uvicorn", "websockets", "prometheus_client"):
        require(module, "serve")
    from affectrt.model import load
    from affectrt.serving.access import checked_token, read_token
    from affectrt.serving.server import Server, Settings

    token: str | None = None
    if args.token_file is not None:
        token = read_token(args.token_file)
    elif TOKEN_VARIABLE in os.environ:
        token = checked_token(os.environ[TOKEN_VARIABLE], f"${TOKEN_VARIABLE}")
    model = load(find_bundle(args.bundle), backend=args.backend, threads=args.threads)
    server = Server(
        model,
        Settings(
            host=args.host,
            port=args.port,
            session_limit=args.sessions,
            hop_s=args.every,
            idle_s=args.idle,
            token=token,
            origins=frozenset(args.origin),
            certificate=args.certificate,
            key=args.key,
        ),
    )
    print(f"{model.manifest.name} on {model.backend}: {server.url}  (Ctrl+C stops it)")
    if token is not None:
        where = args.token_file if args.token_file is not None else f"${TOKEN_VARIABLE}"
        print(f"clients need the token in {where}; the page takes it after #token= in its address")
    sys.stdout.flush()
    server.run()
    return 0


COMMAND = Command(
    summary="Serve streams to other programs over a WebSocket, and a web page to try them.",
    add_arguments=_add_arguments,
    run=_run,
    examples="""\
The page asks for consent, then reads camera, microphone and a text box; it shows how you appear to feel
and that it is sensing. Nothing is stored, and nothing leaves this machine unless --host says so.
docs/serve.md tells how to use it, docs/protocol.md what goes over the WebSocket. /metrics is for
Prometheus, /healthz for whoever watches over it.

examples:
  affectrt serve                                       # then open http://127.0.0.1:8765/
  affectrt serve --bundle mine.affect --every 0.1      # ten results a second
  affectrt serve --port 0 --sessions 1                 # any free port, one person at a time
  affectrt serve --host 0.0.0.0 --token-file token --certificate cert.pem --key key.pem
  affectrt serve --origin https://app.example.org      # that site's own page may connect, too
""",
)
